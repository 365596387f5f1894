"""What the store refuses, with the fields from which a message is made."""


class StoreError(Exception):
    """The operation was refused as a whole: nothing was changed."""


class KeysNotFound(StoreError):
    """A delete named keys that do not exist."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__(keys)
        self.keys = keys


class SnapshotGone(StoreError):
    """The version asked for is older than what the history window still holds."""

    def __init__(self, version: int, oldest_readable: int) -> None:
        super().__init__(version, oldest_readable)
        self.version = version
        self.oldest_readable = oldest_readable


class VersionAhead(StoreError):
    """The version asked for has not been given to any commit yet."""

    def __init__(self, version: int, newest: int) -> None:
        super().__init__(version, newest)
        self.version = version
        self.newest = newest
