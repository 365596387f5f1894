"""Why a daemon could not start, and the exit codes of ``kv serve`` (sysexits.h where it has a fitting one)."""

from kvd.protocol import exits

EXIT_FAILURE = exits.FAILURE
EXIT_USAGE = exits.USAGE
EXIT_DAMAGED = exits.DAMAGED_DATA
EXIT_IO_ERROR = exits.IO_ERROR
EXIT_ALREADY_RUNNING = exits.ALREADY_RUNNING
EXIT_CONFIGURATION = exits.CONFIGURATION


class StartError(Exception):
    """The daemon cannot start, or what a command was to do offline cannot be done; ``text`` says why and what to do."""

    def __init__(self, exit_code: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.text = text
