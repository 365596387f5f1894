"""Timers for the engine, which knows no event loop: the service passes its loop's in, and tests pass a list."""

from collections.abc import Callable
from typing import Protocol

from kvd.store.steps import Steps, run_to_end


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


class Background:
    """Runs one piece of work in steps, each of them after the clients' turn. New work replaces what is unfinished."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._work: Steps[None] | None = None

    def run(self, work: Steps[None], *, at_once: bool = False) -> None:
        """Begin ``work``: its first step runs now. ``at_once``: all of its steps do."""
        if self._work is not None:
            self._work.close()
        self._work = work
        if at_once:
            run_to_end(work)
            self._work = None
        else:
            self._step(work)

    def _step(self, work: Steps[None]) -> None:
        if work is not self._work:
            return
        try:
            next(work)
        except StopIteration:
            self._work = None
        else:
            self._scheduler.call_later(0, lambda: self._step(work))
