"""Why a daemon cannot start, with the exit code that says so."""

import sys

from kvd.protocol import exits


class StartError(Exception):
    """The daemon cannot start, or an offline command cannot do its work; ``text`` says why and what to do."""

    def __init__(self, exit_code: int, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.text = text


class ConfigError(StartError):
    """The configuration cannot be used; the text says where the mistake is and what is allowed there."""

    def __init__(self, text: str) -> None:
        super().__init__(exits.CONFIGURATION, text)


def one_line(text: str) -> str:
    """Return ``text`` with everything escaped that would change a terminal or forge a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def print_error(text: str, exit_code: int) -> int:
    """Print an error on stderr, as one line of ``kv``; return the exit code."""
    print(f"kv: error: {one_line(text)}", file=sys.stderr, flush=True)
    return exit_code
