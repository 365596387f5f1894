"""The pairs of ``kv set`` as one mapping of keys to values: operands, --key/--value, files, standard input.

    k=v       the text after the first ``=``, byte for byte as it was typed
    k=@file   the contents of the file
    k=-       standard input, to its end
    k==text   ``text``, even if it begins with ``@`` or is ``-``
    -         pairs from standard input, one JSON object a line: {"key": "...", "value": "..."},
              where a value that is no text is {"base64": "..."}

A later pair for the same key wins.
"""

import os

from kv.cli.context import checked_key
from kv.cli.failures import UsageError


def collect(operands: list[str], keys: list[str], values: list[str], *, raw_values: bool = False) -> dict[str, bytes]:
    """Return all pairs, operands first. Raises UsageError if any pair is wrong."""
    if len(keys) != len(values):
        raise UsageError(f"--key and --value come in pairs: {len(keys)} --key and {len(values)} --value were given")
    if not operands and not keys:
        raise UsageError("no pairs given; write 'kv set KEY=VALUE...'")
    stdin = _StandardInput()
    pairs: dict[str, bytes] = {}
    for operand in operands:
        if operand == "-":
            pairs.update(json_lines(stdin.read("the operand '-'")))
        else:
            key, value = _split(operand)
            pairs[key] = os.fsencode(value) if raw_values else _value(key, value, stdin)
    pairs.update((checked_key(key), os.fsencode(value)) for key, value in zip(keys, values, strict=True))
    return pairs


def _split(operand: str) -> tuple[str, str]:
    key, equals, value = operand.partition("=")
    if not equals:
        raise UsageError(f"invalid key-value format for {operand!r}; write key=value")
    if not key:
        raise UsageError(f"a key cannot be empty: {operand!r}")
    return checked_key(key), value


def _value(key: str, text: str, stdin: "_StandardInput") -> bytes:
    if text.startswith("="):
        return os.fsencode(text[1:])
    if text == "-":
        return stdin.read(f"the value of {key}")
    return _file(text[1:]) if text.startswith("@") else os.fsencode(text)


def _file(path: str) -> bytes:
    from kv.cli.input import read_file

    try:
        return read_file(path if path != "-" else "./-")
    except UsageError as error:
        raise UsageError(f"{error.message}; for a value that begins with @ write k==@...") from None


class _StandardInput:
    """Standard input, which can be read only once."""

    def __init__(self) -> None:
        self._used_by = ""

    def read(self, purpose: str) -> bytes:
        if self._used_by:
            raise UsageError(f"standard input can be read once: {self._used_by} and {purpose} both want it")
        self._used_by = purpose
        from kv.cli.input import read_stdin

        return read_stdin()


def json_lines(data: bytes) -> dict[str, bytes]:
    """Return the pairs of JSON lines, without empty lines. Raises UsageError with the number of the line."""
    pairs = {}
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                key, value = _pair_of_json(line)
            except ValueError as error:
                raise UsageError(f"line {number} of standard input: {error}; nothing was set") from None
            pairs[key] = value
    return pairs


def _pair_of_json(line: bytes) -> tuple[str, bytes]:
    """Return one line as a pair. Raises ValueError."""
    import json

    try:
        pair = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    return pair_of(pair)


def pair_of(pair: object) -> tuple[str, bytes]:
    """Return the pair in a decoded JSON object. Raises ValueError."""
    if not isinstance(pair, dict) or pair.keys() != {"key", "value"}:
        raise ValueError('not an object of the form {"key": ..., "value": ...}')
    key = pair["key"]
    if not isinstance(key, str) or not key:
        raise ValueError("the key is not a text of at least one character")
    return _encode(key).decode(), _json_value(pair["value"])


def _json_value(value: object) -> bytes:
    if isinstance(value, str):
        return _encode(value)
    if isinstance(value, dict) and value.keys() == {"base64"} and isinstance(value["base64"], str):
        import base64

        return base64.b64decode(value["base64"].encode("ascii"), validate=True)
    raise ValueError('the value is neither a text nor {"base64": "..."}')


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write
        raise ValueError("a text holds half of a character (an unpaired surrogate)") from None
