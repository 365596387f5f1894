"""What the server counts and times beside the store's own counters: frames, connections, refusals, errors.

Measuring must be cheap beside what it measures. So one frame in SAMPLED is timed, and the others pay a subtraction.
Errors are counted where they arise, and no figure is counted that is the difference of two existing ones.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from time import perf_counter

# A prime, because frames come in patterns (begin, get, commit, begin, …), and a multiple of a pattern's length would
# always time the same frame of it.
SAMPLED = 31
MIXED = "mixed"  # the name for a frame with requests of several kinds

# Upper bounds in seconds. Most frames take from 2 to 50 µs; a turn of the loop should take a few ms at most.
FRAME_BOUNDS = (
    2e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.1,
)  # fmt: skip
# For longer times: a frame in slices, a sync, a late loop. (Timers have whole milliseconds.)
SLICED_BOUNDS = (1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
SYNC_BOUNDS = (1e-4, 2.5e-4, 5e-4, *SLICED_BOUNDS)
LAG_BOUNDS = SLICED_BOUNDS


class Histogram:
    """Counts of durations in seconds, one for each interval that ends at a bound, and one for longer durations."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class ServerMetrics:
    """Counts since the start."""

    __slots__ = (
        "_frames",
        "accepted",
        "errors",
        "first_version",
        "get_misses",
        "rejected",
        "sliced",
    )

    def __init__(self, version: int) -> None:
        self.first_version = version  # each commit since the start took the next version
        self._frames: dict[str, Histogram] = {}  # by the name of the requests
        self.sliced = Histogram(SLICED_BOUNDS)
        self.errors: Counter[str] = Counter()  # by code
        self.get_misses = 0
        self.accepted = 0
        self.rejected = 0

    @property
    def conflicts(self) -> int:
        """How many commits were refused because a key or range that they had read had changed."""
        return self.errors["conflict"]

    def add_frame(self, name: str, seconds: float) -> None:
        """Count a frame that took ``seconds``. ``name``: the name of its requests, or MIXED."""
        times = self._frames.get(name)
        if times is None:
            times = self._frames[name] = Histogram(FRAME_BOUNDS)
        times.observe(seconds)

    def frames(self) -> list[tuple[str, Histogram]]:
        """The times of the frames that were timed, sorted by the name of the requests."""
        return sorted(self._frames.items(), key=lambda item: item[0])


class LoopLag:
    """How late the loop runs callbacks that are due, measured ten times a second while a client asks for the result.

    An idle daemon is not woken for it: the measurement stops WATCHED_S after the last request for it. ``call_later``
    takes seconds and a callback.
    """

    WATCHED_S = 90.0  # longer than the usual time between two scrapes
    INTERVAL_S = 0.1

    def __init__(self, call_later: Callable[[float, Callable[[], None]], object]) -> None:
        self.times = Histogram(LAG_BOUNDS)
        self._call_later = call_later
        self._until = self._due = 0.0
        self._is_armed = False

    def measure(self) -> None:
        """Measure for the next WATCHED_S seconds."""
        self._until = perf_counter() + self.WATCHED_S
        if not self._is_armed:
            self._arm()

    def _arm(self) -> None:
        self._is_armed = True
        self._due = perf_counter() + self.INTERVAL_S
        self._call_later(self.INTERVAL_S, self._observe)

    def _observe(self) -> None:
        now = perf_counter()
        self.times.observe(max(0.0, now - self._due))
        self._is_armed = False
        if now < self._until:
            self._arm()
