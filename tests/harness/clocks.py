"""Time that passes only when a test lets it pass."""

import heapq
import itertools
from collections.abc import Callable
from typing import Any

from kvd.requests.turns import SLICE_NS


class ManualClock:
    """A clock that shows ``now``; a test sets it. Its unit is the one that the reader expects."""

    def __init__(self, now: float = 0) -> None:
        self.now: Any = now

    def __call__(self) -> Any:  # noqa: ANN401 - the unit, and so the type, is the reader's
        return self.now

    def advance(self, by: float) -> None:
        """Let time pass."""
        self.now += by


class TickingClock:
    """A clock that shows one unit more each time it is read, so that no two commits have the same time."""

    def __init__(self, first: int) -> None:
        self._ticks = itertools.count(first)

    def __call__(self) -> int:
        return next(self._ticks)


class SliceClock:
    """A clock by which each step of work takes a whole slice of it, so that others have their turn after each."""

    def __init__(self) -> None:
        self._now = 0

    def __call__(self) -> int:
        self._now += SLICE_NS
        return self._now


class Handle:
    """A call that a `ManualScheduler` will make after ``delay_s``, unless it is cancelled."""

    def __init__(self, delay_s: float, callback: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self.delay_s = delay_s
        self.callback = callback
        self._arguments = arguments
        self.is_cancelled = False

    def cancel(self) -> None:
        """Make the call never."""
        self.is_cancelled = True

    def cancelled(self) -> bool:
        """Whether the call will not be made, by the name that asyncio gives it."""
        return self.is_cancelled

    def run(self) -> None:
        """Make the call, unless it was cancelled."""
        if not self.is_cancelled:
            self.callback(*self._arguments)


class ManualScheduler:
    """What the daemon's objects use of an event loop: the time in seconds, and calls at a time.

    ``calls``: all that were ever scheduled, in order; a test may clear them.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._due: list[tuple[float, int, Handle]] = []
        self._numbers = itertools.count()  # calls due at the same time are made in the order they were scheduled
        self.calls: list[Handle] = []

    def now(self) -> float:
        """The current time in seconds."""
        return self._now

    def time(self) -> float:
        """The current time in seconds, by the name that asyncio gives it."""
        return self._now

    def call_later(self, delay_s: float, callback: Callable[..., object], *arguments: object) -> Handle:
        """Make a call ``delay_s`` seconds from now."""
        handle = Handle(delay_s, callback, arguments)
        self.calls.append(handle)
        heapq.heappush(self._due, (self._now + delay_s, next(self._numbers), handle))
        return handle

    def calls_of(self, owner: object) -> list[Handle]:
        """The scheduled calls of methods of ``owner``."""
        return [call for call in self.calls if getattr(call.callback, "__self__", None) is owner]

    def call_soon(self, callback: Callable[..., object], *arguments: object) -> Handle:
        """Make a call at the next ``advance``."""
        return self.call_later(0, callback, *arguments)

    def advance(self, seconds: float = 0) -> None:
        """Let time pass, and make each call at its time."""
        end = self._now + seconds
        while self._due and self._due[0][0] <= end:
            due, _, handle = heapq.heappop(self._due)
            self._now = max(self._now, due)
            handle.run()
        self._now = end
