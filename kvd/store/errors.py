"""What the store refuses, with the fields from which the message is built."""

import msgspec

from kvd.store.authors import Author


class StoreError(Exception):
    """The operation was refused as a whole: nothing changed."""


class KeysNotFound(StoreError):
    """A delete named keys that do not exist."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__(keys)
        self.keys = keys


class SnapshotGone(StoreError):
    """The requested version is older than the oldest version that is still held: of the whole store, or of ``key``.

    ``version`` is None if the request named a time.
    """

    def __init__(self, version: int | None, oldest_readable: int, key: str | None = None) -> None:
        super().__init__(version, oldest_readable, key)
        self.version = version
        self.oldest_readable = oldest_readable
        self.key = key


class VersionLost(SnapshotGone):
    """A crash took the requested version; ``next_version`` is the first after it that can be read."""

    def __init__(self, version: int, oldest_readable: int, next_version: int) -> None:
        super().__init__(version, oldest_readable)
        self.next_version = next_version


class ClockWasSet(SnapshotGone):
    """A request named a time before the clock was set, ``by`` microseconds ahead, after ``step_version``."""

    def __init__(self, oldest_readable: int, step_version: int, by: int) -> None:
        super().__init__(None, oldest_readable)
        self.step_version = step_version
        self.by = by


class VersionAhead(StoreError):
    """The requested version has not been given to any commit yet."""

    def __init__(self, version: int, newest: int) -> None:
        super().__init__(version, newest)
        self.version = version
        self.newest = newest


class Change(msgspec.Struct, array_like=True, frozen=True):
    """One reason for a conflict: the version that was read and the current one, 0 for an absent key.

    ``time`` (µs since the epoch) and ``author`` belong to the key's last change; None if it has left the history.
    """

    key: str
    expected: int
    found: int
    time: int | None
    author: Author | None


class Conflict(StoreError):
    """What a transaction read has changed since."""

    def __init__(self, changes: list[Change]) -> None:
        super().__init__(changes)
        self.changes = changes


class NotANumber(StoreError):
    """An increment met a value that is not a number, or its sum would need more than 64 bits."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason


class OutOfMemory(StoreError):
    """The write needs more memory than there is; the text says which limit is reached."""


class OutcomeUnknown(StoreError):
    """The store no longer remembers whether a write with this id has committed."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version
