"""What the store refuses, with the fields from which a message is made."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvd.store.isolation import Change


class StoreError(Exception):
    """The operation was refused as a whole: nothing was changed."""


class KeysNotFound(StoreError):
    """A delete named keys that do not exist."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__(keys)
        self.keys = keys


class SnapshotGone(StoreError):
    """The version asked for (None: the one of a time) is older than what is still held: all of it, or of ``key``."""

    def __init__(self, version: int | None, oldest_readable: int, key: str | None = None) -> None:
        super().__init__(version, oldest_readable, key)
        self.version = version
        self.oldest_readable = oldest_readable
        self.key = key


class VersionAhead(StoreError):
    """The version asked for has not been given to any commit yet."""

    def __init__(self, version: int, newest: int) -> None:
        super().__init__(version, newest)
        self.version = version
        self.newest = newest


class Conflict(StoreError):
    """What a commit had read has changed since; the entries of ``changes`` are isolation.Change."""

    def __init__(self, changes: "list[Change]") -> None:
        super().__init__(changes)
        self.changes = changes


class NotANumber(StoreError):
    """An increment met a value that is not a number, or would leave the range of 64 bits."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason


class OutOfMemory(StoreError):
    """There is no room for what was to be written; the text says what is full."""


class OutcomeUnknown(StoreError):
    """Whether a write with this id has committed is not remembered any more."""

    def __init__(self, version: int) -> None:
        super().__init__(version)
        self.version = version
