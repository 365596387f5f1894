"""What can be wrong with a data directory, by what the person has to do about it."""


class JournalError(Exception):
    """The data directory cannot be used; nothing in it was changed."""


class NoSpace(Exception):
    """There is no room on the disk for a commit; nothing was changed. Reads go on, and space may come back."""


class Damaged(JournalError):
    """What was promised to be on disk is not readable. ``path`` and ``offset`` say where, ``reason`` what."""

    def __init__(self, path: str, offset: int, reason: str) -> None:
        super().__init__(f"{path} is damaged at byte {offset}: {reason}")
        self.path = path
        self.offset = offset
        self.reason = reason


class Unfinished(JournalError):
    """A restore into the directory, or a salvage, was interrupted."""

    def __init__(self, directory: str) -> None:
        super().__init__(f"what is in {directory} is not whole: a restore or salvage did not end; do it again")


class NewerFormat(JournalError):
    """A file was written by a newer kvd."""

    def __init__(self, path: str, found: int, known: int) -> None:
        super().__init__(f"{path} has format {found}; this kvd reads formats up to {known}: start a newer one")
        self.path = path
