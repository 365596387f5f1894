"""A histogram of latencies in bounded memory: log-linear buckets, as in Gil Tene's HdrHistogram (hdrhistogram.org).

Values below 128 ns have a bucket each; above, every power of two is divided into 64 of equal width. So a value is known
to 1/64 (1.6 %), whatever its size, and what a process keeps is 2,240 numbers, however long it runs.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BITS = 6
_PER_POWER = 1 << _BITS
_HIGHEST = (1 << 40) - 1  # ns, 18 minutes: anything longer counts as that
_BUCKETS = (40 - _BITS + 1) * _PER_POWER


def bucket(value: int) -> int:
    """Where a value belongs."""
    shift = value.bit_length() - _BITS - 1
    return (shift << _BITS) + (value >> shift) if shift > 0 else value


def highest_in(index: int) -> int:
    """The greatest value of a bucket."""
    shift = max(0, (index >> _BITS) - 1)
    return ((index - (shift << _BITS) + 1) << shift) - 1


class Histogram:
    """How often each latency occurred, in ns."""

    __slots__ = ("_counts", "_max")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._max = 0

    def record(self, value: int, count: int = 1) -> None:
        """Count ``value`` so many times."""
        value = min(max(value, 0), _HIGHEST)
        self._max = max(self._max, value)
        shift = value.bit_length() - _BITS - 1  # bucket(), without the call
        self._counts[(shift << _BITS) + (value >> shift) if shift > 0 else value] += count

    def add(self, buckets: "Iterable[Iterable[int]]", highest: int) -> None:
        """Count in what another histogram told by ``filled`` and ``max``."""
        for index, count in buckets:
            self._counts[index] += count
        self._max = max(self._max, highest)

    def filled(self) -> "Iterator[tuple[int, int]]":
        """The buckets that have something in them, in order, with their counts."""
        return ((index, count) for index, count in enumerate(self._counts) if count)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return sum(self._counts)

    @property
    def max(self) -> int:
        """The greatest value, exactly; 0 if there was none."""
        return self._max

    def percentile(self, percent: float) -> int:
        """The least known value that ``percent`` of all do not exceed (to 1.6 %); 0 if there was none."""
        wanted = self.total * percent / 100
        seen = 0
        for index, count in self.filled():
            seen += count
            if seen >= wanted:
                return min(highest_in(index), self._max)
        return self._max

    def by_powers(self) -> "list[tuple[int, int]]":
        """For people: ``(up to ns, count)`` for each power of two, from the first to the last that has any."""
        counts: dict[int, int] = {}
        for index, count in self.filled():
            power = highest_in(index).bit_length()
            counts[power] = counts.get(power, 0) + count
        if not counts:
            return []
        return [((1 << power) - 1, counts.get(power, 0)) for power in range(min(counts), max(counts) + 1)]
