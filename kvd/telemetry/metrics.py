"""What the server measures beside the store's own counters: how long frames take, who came, what was refused.

Measuring must not cost what it measures. So one frame in SAMPLED is timed, and all that others pay is a subtraction;
errors are counted where they arise, and nothing is counted that a difference of what is there already tells.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from time import perf_counter, perf_counter_ns

from kvd.protocol.messages import AnyRequest

# A prime: frames come in patterns (begin, get, commit, begin, …), and a multiple of their length would see one of them.
SAMPLED = 31
MIXED = "mixed"  # a frame of requests of several kinds

# Upper bounds in seconds. Most frames take from 2 to 50 µs; a turn of the loop shall not take more than some ms.
FRAME_BOUNDS = (
    2e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.1,
)  # fmt: skip
# What takes more than a turn: slices of a frame, a sync, a loop that comes late. (Timers go by whole milliseconds.)
SLICED_BOUNDS = (1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
SYNC_BOUNDS = (1e-4, 2.5e-4, 5e-4, *SLICED_BOUNDS)
LAG_BOUNDS = SLICED_BOUNDS


class Histogram:
    """How many durations, in seconds, were at or below each of ``bounds``; the last count is of those above all."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Take one duration in."""
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
        "loop_lag",
        "open_connections",
        "rejected",
        "sliced",
    )

    def __init__(self, version: int) -> None:
        self.first_version = version  # each commit since then took the next one
        # By the kind of their requests, None for several.
        self._frames: dict[type | None, Histogram] = {}
        self.sliced = Histogram(SLICED_BOUNDS)
        self.errors: Counter[str] = Counter()  # by code
        self.get_misses = 0
        self.accepted = 0
        self.rejected = 0
        # Whoever has the connections says how many.
        self.open_connections: Callable[[], int] = lambda: 0
        self.loop_lag: LoopLag | None = None

    @property
    def conflicts(self) -> int:
        """Commits refused since what they had read had changed."""
        return self.errors["conflict"]

    def note_frame(self, requests: Sequence[AnyRequest], began_ns: int) -> None:
        """A frame has run that began at this time of ``perf_counter_ns``."""
        seconds = (perf_counter_ns() - began_ns) * 1e-9
        kind: type | None = type(requests[0])
        if len(requests) > 1 and len(set(map(type, requests))) > 1:
            kind = None
        times = self._frames.get(kind)
        if times is None:
            times = self._frames[kind] = Histogram(FRAME_BOUNDS)
        times.observe(seconds)

    def frames(self) -> list[tuple[str, Histogram]]:
        """The frames that were timed, by the names of their requests, in order."""
        return sorted((_name(kind), times) for kind, times in self._frames.items())


def _name(kind: type | None) -> str:
    return MIXED if kind is None else str(kind.__struct_config__.tag)  # type: ignore[attr-defined]


class LoopLag:
    """How late the loop calls what is due: looked at ten times a second, while somebody asks for the result.

    An idle daemon is not woken for it: WATCHED_S after the last question it stops.
    """

    WATCHED_S = 90.0  # longer than the usual time between two scrapes
    INTERVAL_S = 0.1

    def __init__(self, call_later: Callable[[float, Callable[[], None]], object]) -> None:
        self.times = Histogram(LAG_BOUNDS)
        self._call_later = call_later
        self._until = self._due = 0.0
        self._is_armed = False

    def watch(self) -> None:
        """Somebody asks: look for a while."""
        self._until = perf_counter() + self.WATCHED_S
        if not self._is_armed:
            self._arm()

    def _arm(self) -> None:
        self._is_armed = True
        self._due = perf_counter() + self.INTERVAL_S
        self._call_later(self.INTERVAL_S, self._look)

    def _look(self) -> None:
        now = perf_counter()
        self.times.observe(max(0.0, now - self._due))
        self._is_armed = False
        if now < self._until:
            self._arm()
