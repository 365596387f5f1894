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
    from collections.abc import Iterable, Iterator

# No line is longer: the largest possible value in base64, and a key.
MAX_LINE_BYTES = 512 * 1024 * 1024
_US_A_SECOND = 1_000_000


class Record:
    """One key and its value. ``expires`` is in µs since the epoch; None: never."""

    __slots__ = ("expires", "key", "value")

    def __init__(self, key: str, value: bytes, expires: int | None) -> None:
        self.key = key
        self.value = value
        self.expires = expires

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


def records(lines: "Iterable[bytes]", name: str) -> "Iterator[Record]":
    """Return the lines as records, without empty lines. Raises UsageError with the number of the line."""
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                record = _record(line)
                if record.key in seen:
                    raise ValueError(f"the key {dump(record.key)} is in an earlier line, too")
            except ValueError as error:
                raise UsageError(f"line {number} of {name}: {error}") from None
            seen.add(record.key)
            yield record


def _record(line: bytes) -> Record:
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
    return Record(*pair_of(fields), expires)
