"""The language of ``kv txn``: one statement a line, words as a shell splits them.

    check KEY version N       check KEY absent       check KEY exists       check KEY = VALUE
    get KEY...                set KEY VALUE          del KEY...             incr KEY [N]

Words with blanks stand in quotes, which may span several lines. A line whose first character is # is a comment.
"""

import re
import shlex

from kv.cli.commands.increment import increment_of
from kv.cli.failures import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Statement:
    """One statement: its verb, its key and its argument. ``line`` is the number of its line.

    ``verb``: "get", "set" (argument: bytes), "del", "incr" (int), or one of the checks "version" (int), "absent",
    "exists" and "=" (bytes).
    """

    __slots__ = ("argument", "key", "line", "verb")

    def __init__(self, line: int, verb: str, key: str, argument: "bytes | int | None" = None) -> None:
        self.line = line
        self.verb = verb
        self.key = key
        self.argument = argument


def parse(script: bytes) -> list[Statement]:
    """Return all statements. Raises UsageError with the number of the line."""
    statements: list[Statement] = []
    for line, words in _split(script.decode("utf-8", "surrogateescape")):
        try:
            statements += _statements(line, words)
        except UsageError as error:
            raise UsageError(f"line {line}: {error.message}; nothing was done") from None
    return statements


# A statement ends with a line that does not end within quotes. Atomic groups: a failed match takes linear time.
_STATEMENT = re.compile(r"""(?>[^\n'"\\]+|\\[^\n]|'[^']*'|"(?>[^"\\]+|\\.)*")*""", re.DOTALL)
_BLANK_OR_COMMENT = re.compile(r"[ \t\r]*(?:#[^\n]*)?(?:\n|\Z)")


def _split(script: str) -> "Iterator[tuple[int, list[str]]]":
    """Yield the number of the first line of each statement, and its words."""
    position, line = 0, 1
    while position < len(script):
        empty = _BLANK_OR_COMMENT.match(script, position)
        if empty is not None:
            position, line = empty.end(), line + 1
            continue
        match = _STATEMENT.match(script, position)
        assert match is not None  # it may be empty
        last_line = line + match[0].count("\n")
        if match.end() < len(script) and script[match.end()] != "\n":
            raise UsageError(f"line {last_line}: a quotation, or a backslash, has no end; nothing was done")
        yield line, shlex.split(match[0])
        position, line = match.end() + 1, last_line + 1


def _statements(line: int, words: list[str]) -> list[Statement]:
    verb, operands = words[0], words[1:]
    if verb in ("get", "del") and operands:
        return [Statement(line, verb, _key(word)) for word in operands]
    if verb == "set" and len(operands) == 2:
        return [Statement(line, verb, _key(operands[0]), _value(operands[1]))]
    if verb == "incr" and 1 <= len(operands) <= 2:
        return [Statement(line, verb, _key(operands[0]), increment_of(operands[1]) if operands[1:] else 1)]
    if verb == "check" and operands:
        return [_check(line, *operands)]
    form = _FORMS.get(verb)
    if form is None:
        raise UsageError(f"no such statement: {verb}; there are {', '.join(_FORMS)}")
    raise UsageError(f"write {form}, with words that hold blanks in quotes")


def _check(line: int, key: str, *condition: str) -> Statement:
    if condition in (("absent",), ("exists",)):
        return Statement(line, condition[0], _key(key))
    if len(condition) == 2 and condition[0] == "=":
        return Statement(line, "=", _key(key), _value(condition[1]))
    if len(condition) == 2 and condition[0] == "version":
        from kv.cli.numbers import whole_number

        return Statement(line, "version", _key(key), whole_number("a version")(condition[1]))
    raise UsageError(f"write {_FORMS['check']}")


_FORMS = {
    "check": "'check KEY version N', 'check KEY absent', 'check KEY exists' or 'check KEY = VALUE'",
    "get": "'get KEY...'",
    "set": "'set KEY VALUE'",
    "del": "'del KEY...'",
    "incr": "'incr KEY [N]'",
}


def _key(word: str) -> str:
    if not word:
        raise UsageError("a key cannot be empty")
    try:
        return word.encode("utf-8", "surrogateescape").decode()
    except UnicodeDecodeError:
        raise UsageError(f"a key must be UTF-8, which this is not: {word}") from None


def _value(word: str) -> bytes:
    return word.encode("utf-8", "surrogateescape")
