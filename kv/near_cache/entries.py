"""What a near cache keeps of a key: how a fetch brings it, what it takes in memory, and how much there may be."""

from __future__ import annotations

from kv.errors import ProtocolError
from kv.results import Record
from kv.wire.operations import Operation, texts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    # Value, the word of the slot's generation, the generation that came with the value, deadline (ns; None: no end).
    Entry = tuple[bytes | None, int, int, int | None]

DEFAULT_ENTRIES = 65_536
DEFAULT_BYTES = 64 * 1024 * 1024
# What an entry takes besides its key's characters and its value.
ENTRY_BYTES = 400


class NearCacheLimits(Record):
    """How much a near cache may hold: keys, and bytes of memory, about. Raises ValueError for less than two keys."""

    __match_args__ = __slots__ = ("bytes", "entries")

    def __init__(self, *, entries: int = DEFAULT_ENTRIES, bytes: int = DEFAULT_BYTES) -> None:  # noqa: A002
        if entries < 2 or bytes < 2 * ENTRY_BYTES:
            raise ValueError(f"a near cache holds at least 2 entries and {2 * ENTRY_BYTES} bytes")
        self.entries = entries
        self.bytes = bytes


def entry_bytes(key: str, entry: Entry) -> int:
    """Return how much memory an entry takes, about."""
    return ENTRY_BYTES + len(key) + len(entry[0] or b"")


def fetch_entries(keys: list[str]) -> Operation[list[list[Any]]]:
    """What a near cache needs of each key: value, version, slot, generation, deadline (µs)."""
    keys = texts(keys)
    return Operation(("fetch", keys), lambda reply: checked_entries(keys, reply))


def checked_entries(keys: list[str], reply: object) -> list[list[Any]]:
    """Check the form of the reply to a fetch of ``keys``; return it. Raises ProtocolError, ValueError, TypeError."""
    if type(reply) is not list or len(reply) != len(keys):
        raise _unexpected(reply)
    for value, version, slot, generation, deadline in reply:
        if value is not None and type(value) is not bytes:
            raise _unexpected(value)
        if (
            type(version) is not int
            or (type(slot) is not int and slot is not None)
            or (type(generation) is not int and generation is not None)
            or (type(deadline) is not int and deadline is not None)
        ):
            raise _unexpected(reply)
    return reply


def _unexpected(reply: object) -> ProtocolError:
    return ProtocolError(f"the daemon's reply has an unexpected form ({type(reply).__name__})", "bad_reply")
