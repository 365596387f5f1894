"""What can be wrong with a data directory; one class for each thing that a person can do about it."""


class JournalError(Exception):
    """The data directory cannot be used; nothing in it changed."""


class NoSpace(Exception):
    """The disk has no space for a commit; nothing changed. Reads go on, and the disk may have space again later."""


class Damaged(JournalError):
    """Data that was known to be on disk cannot be read. ``path`` and ``offset`` say where, ``reason`` says why."""

    def __init__(self, path: str, offset: int, reason: str) -> None:
        super().__init__(f"{path} is damaged at byte {offset}: {reason}")
        self.path = path
        self.offset = offset
        self.reason = reason


class Unfinished(JournalError):
    """A restore into the directory, or a salvage, was interrupted."""

    def __init__(self, directory: str) -> None:
        super().__init__(f"{directory} is incomplete: a restore or salvage into it was interrupted; run it again")


class NewerFormat(JournalError):
    """A file was written by a newer kvd."""

    def __init__(self, path: str, found: int, known: int) -> None:
        super().__init__(f"{path} has format {found}; this kvd reads formats up to {known}: start a newer one")
        self.path = path
