"""Why a daemon could not start, and the exit codes of ``kv serve`` (sysexits.h where it has a fitting one)."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_DAMAGED = 65
EXIT_IO_ERROR = 74
EXIT_ALREADY_RUNNING = 75
EXIT_CONFIGURATION = 78


class StartError(Exception):
    """The daemon cannot start, or what a command was to do offline cannot be done; ``text`` says why and what to do."""

    def __init__(self, exit_code: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.text = text
