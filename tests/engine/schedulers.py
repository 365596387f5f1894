"""A scheduler that a test drives: it only notes what it is to call, and when."""

from collections.abc import Callable

from kvd.engine.expiry import TIMER_GRAIN_S


class Call:
    """One call that was asked for."""

    def __init__(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.delay_s = delay_s
        self.callback = callback
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class ListScheduler:
    """All calls that were asked for, in order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def now(self) -> float:
        return 0.0

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Call:
        self.calls.append(Call(delay_s, callback))
        return self.calls[-1]

    def of(self, owner: object) -> list[Call]:
        """The calls of a method of ``owner``."""
        return [call for call in self.calls if getattr(call.callback, "__self__", None) is owner]

    def deadlines_us(self, owner: object) -> list[int]:
        """In how many microseconds each deadline was, of those that ``owner`` set a timer for."""
        return [round((call.delay_s - TIMER_GRAIN_S) * 1_000_000) for call in self.of(owner)]
