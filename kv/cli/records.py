"""The lines of ``kv export`` and ``kv import``: a key each, as JSON.

{"key": "cake", "value": "🎂"}
{"key": "photo", "value": {"base64": "iVBORw0KGgo="}, "expires": "2026-11-23T10:00:00Z"}
"""

import json

from kv.cli.failures import UsageError
from kv.cli.jsontext import dump, value_json
from kv.cli.pairs import pair_of
from kv.cli.times import maybe_time_us, time_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

# No line is longer: the largest value that a daemon can be configured to take, in base64, and a key.
MAX_LINE_BYTES = 512 * 1024 * 1024
_US_A_SECOND = 1_000_000


class Record:
    """One key and its value, and the number of its line. ``expires`` is in µs since the epoch; None: never."""

    __slots__ = ("expires", "key", "line", "value")

    def __init__(self, key: str, value: bytes, expires: int | None, line: int = 0) -> None:
        self.key = key
        self.value = value
        self.expires = expires
        self.line = line

    @property
    def size(self) -> int:
        """About how many bytes the record takes in a request."""
        return 4 * len(self.key) + len(self.value) + 32


def line_of(record: Record) -> str:
    """Return a record as one line. It is the same while nothing changes, so expiry is rounded to the second."""
    fields: dict[str, object] = {"key": record.key, "value": value_json(record.value)}
    if record.expires is not None:
        seconds = (record.expires + _US_A_SECOND // 2) // _US_A_SECOND
        fields["expires"] = (time_json(seconds * _US_A_SECOND) or "").replace(".000000Z", "Z")
    return dump(fields)


def records(stream: "BinaryIO", name: str) -> "Iterator[Record]":
    """Return the lines of ``stream`` as records, without empty lines. Raises UsageError with the number of the line."""
    seen: set[str] = set()
    number = 0
    while line := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise UsageError(f"line {number} of {name} is longer than {MAX_LINE_BYTES} bytes, as no line of keys is")
        if line.strip():
            try:
                record = _record(line, number)
                if record.key in seen:
                    raise ValueError(f"the key {dump(record.key)} is in an earlier line, too")
            except ValueError as error:
                raise UsageError(f"line {number} of {name}: {error}") from None
            seen.add(record.key)
            yield record


def _record(line: bytes, number: int) -> Record:
    """Raises ValueError."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    expires = None
    if isinstance(fields, dict) and "expires" in fields:
        text = fields.pop("expires")
        expires = maybe_time_us(text) if isinstance(text, str) and text.endswith("Z") else None
        if expires is None:
            raise ValueError('"expires" is not a time of the form "2026-11-23T10:00:00Z"')
    return Record(*pair_of(fields), expires, number)
