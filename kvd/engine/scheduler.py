"""Timers for the engine, which knows no event loop: the service passes its loop's in, and tests pass a list."""

from collections.abc import Callable
from typing import Protocol


class Handle(Protocol):
    """One call that is due later."""

    def cancel(self) -> None:
        """Drop the call. A call that was made or cancelled before is no error."""


class Scheduler(Protocol):
    """Calls functions later, in the thread that runs the engine."""

    def now(self) -> float:
        """Seconds of a clock that runs evenly."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Handle:
        """Call ``callback`` after ``delay_s``; with 0, after everything that is due already."""


class NullHandle:
    """A call that is never made."""

    def cancel(self) -> None:
        """Do nothing."""


class NullScheduler:
    """Never calls: for a database that no loop serves, such as one that only checks a backup."""

    def now(self) -> float:
        """Time stands still."""
        return 0.0

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Handle:
        """Forget ``callback``."""
        return NullHandle()
