"""The exceptions that end a command early. main.py turns each into one line on stderr and an exit code."""

from kvd.protocol import exits


class CommandFailed(Exception):
    """The command cannot go on. ``message`` says what to do; ``status`` is the exit code."""

    status = exits.SERVER_ERROR

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if status is not None:
            self.status = status


class UsageError(CommandFailed):
    """The command line or the input is wrong; the command has done nothing."""

    status = exits.USAGE


class OutputFailed(Exception):
    """The output cannot be written; ``cause`` is the system's error."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause
