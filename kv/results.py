"""The values that a client returns: keys, versions, commits, changes, and their authors.

Written out instead of dataclasses, whose import would cost the short-lived command more than all of this.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Record:
    """A value of named fields. Two of one class are equal if all their fields are."""

    __slots__: tuple[str, ...] = ()

    def _fields(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(repr(self._fields()))


class Item(Record):
    """One key of a scan; ``value`` is None if the scan was for keys only.

    ``version`` is 0 for a key that the transaction itself has set and not committed yet.
    """

    __match_args__ = __slots__ = ("key", "value", "version")

    def __init__(self, key: str, value: bytes | None, version: int) -> None:
        self.key = key
        self.value = value
        self.version = version


class Versioned(Record):
    """A value and the version of the commit that stored it; None and 0 for a key that is absent."""

    __match_args__ = __slots__ = ("value", "version")

    def __init__(self, value: bytes | None, version: int) -> None:
        self.value = value
        self.version = version


class Author(Record):
    """The author of a commit: on a Unix socket as the kernel says; ``uid`` and ``pid`` are None otherwise."""

    __match_args__ = __slots__ = ("uid", "pid", "name")

    def __init__(self, uid: int | None, pid: int | None, name: str) -> None:
        self.uid = uid
        self.pid = pid
        self.name = name

    def __str__(self) -> str:
        return self.name if self.uid is None else f"uid {self.uid} pid {self.pid} ({self.name})"


class Version(Record):
    """The state of a key from ``version`` on: its value (None: deleted), the time (µs since the epoch), the author."""

    __match_args__ = __slots__ = ("version", "value", "time", "author")

    def __init__(self, version: int, value: bytes | None, time: int | None, author: Author | None) -> None:
        self.version = version
        self.value = value
        self.time = time
        self.author = author


class Commit(Record):
    """A commit: its time (µs since the epoch), its author, and the keys that it wrote."""

    __match_args__ = __slots__ = ("version", "time", "author", "keys")

    def __init__(self, version: int, time: int | None, author: Author | None, keys: list[str]) -> None:
        self.version = version
        self.time = time
        self.author = author
        self.keys = keys


class SlowFrame(Record):
    """A frame that took the daemon long: its time (µs since the epoch), how many µs it took, and its author.

    ``requests``: the number of requests by kind. ``keys``: the first that they name; ``more_keys``: whether there are
    others.
    """

    __match_args__ = __slots__ = ("time", "held_us", "author", "requests", "keys", "more_keys")

    def __init__(
        self,
        time: int,
        held_us: int,
        author: Author | None,
        requests: Mapping[str, int],
        keys: list[str],
        more_keys: bool,
    ) -> None:
        self.time = time
        self.held_us = held_us
        self.author = author
        self.requests = dict(requests)
        self.keys = keys
        self.more_keys = more_keys


class HotKeys(Record):
    """An estimate of how often each key was read, or written, in the last ``seconds``; the busiest first."""

    __match_args__ = __slots__ = ("seconds", "operations")

    def __init__(self, seconds: float, operations: Mapping[str, int]) -> None:
        self.seconds = seconds
        self.operations = dict(operations)


class Change(Record):
    """A commit as a watch reports it: its writes to keys with the prefix (None: deleted).

    With ``resync`` it is not a commit: ``writes`` is the whole content at ``version``. Forget all other keys.
    """

    __match_args__ = __slots__ = ("version", "time", "author", "writes", "resync")

    def __init__(
        self,
        version: int,
        time: int | None,
        author: Author | None,
        writes: Mapping[str, bytes | None],
        resync: bool = False,
    ) -> None:
        self.version = version
        self.time = time
        self.author = author
        self.writes = dict(writes)
        self.resync = resync


class ConflictEntry(Record):
    """A key that has changed since it was read: the versions expected and found (0: absent), its time and author."""

    __match_args__ = __slots__ = ("key", "expected", "found", "time", "author")

    def __init__(self, key: str, expected: int, found: int, time: int | None, author: Author | None) -> None:
        self.key = key
        self.expected = expected
        self.found = found
        self.time = time
        self.author = author


def author(fields: object) -> Author | None:
    """Return the author for ``[uid, pid, name]`` of the wire, or None. Raises ValueError, TypeError."""
    if fields is None:
        return None
    return Author(*fields)  # type: ignore[misc]  # raises for anything else, which the caller expects


def conflict_entries(field: object) -> list[ConflictEntry]:
    """Return the entries of a conflict's error. Malformed entries are left out."""
    entries = []
    for entry in field if isinstance(field, list) else []:
        try:
            key, expected, found, time, author_fields = entry
            entries.append(ConflictEntry(key, expected, found, time, author(author_fields)))
        except (ValueError, TypeError):
            continue
    return entries
