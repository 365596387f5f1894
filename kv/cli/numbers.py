"""Whole numbers on the command line, and in what it prints."""

from kv.cli.failures import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_HIGHEST = (1 << 63) - 1


def whole_number(name: str, minimum: int = 0) -> "Callable[[str], int]":
    """Return a function that reads the value of the option ``name``, a whole number of at least ``minimum``.

    It raises UsageError.
    """

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20 and minimum <= int(text) <= _HIGHEST):
            raise UsageError(f"{name} is a whole number from {minimum} on, not {text!r}")
        return int(text)

    return read


def plural(number: int, noun: str) -> str:
    """``1 key``, ``2 keys``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
