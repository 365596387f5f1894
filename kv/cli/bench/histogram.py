"""A histogram of latencies in bounded memory: log-linear buckets, as in Gil Tene's HdrHistogram (hdrhistogram.org).

Values below 128 ns have a bucket each. Above, 64 buckets of equal width share each power of two. So any value is known
to 1/64 (1.6 %), and a process keeps 2,240 numbers, however long it runs.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BITS = 6
_PER_POWER = 1 << _BITS
_HIGHEST = (1 << 40) - 1  # ns, 18 minutes: a longer time counts as that
_BUCKETS = (40 - _BITS + 1) * _PER_POWER


def bucket(value: int) -> int:
    """Return the index of the bucket of ``value``."""
    shift = value.bit_length() - _BITS - 1
    return (shift << _BITS) + (value >> shift) if shift > 0 else value


def highest_in(index: int) -> int:
    """Return the greatest value of a bucket."""
    shift = max(0, (index >> _BITS) - 1)
    return ((index - (shift << _BITS) + 1) << shift) - 1


class Histogram:
    """How often each latency occurred, in ns."""

    __slots__ = ("_counts", "_max")

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._max = 0

    def record(self, value: int, count: int = 1) -> None:
        """Count ``value``, ``count`` times."""
        value = min(max(value, 0), _HIGHEST)
        self._max = max(self._max, value)
        shift = value.bit_length() - _BITS - 1  # bucket(), without the call
        self._counts[(shift << _BITS) + (value >> shift) if shift > 0 else value] += count

    def add(self, buckets: "Iterable[Iterable[int]]", highest: int) -> None:
        """Add another histogram: its ``filled`` and its ``max``."""
        for index, count in buckets:
            self._counts[index] += count
        self._max = max(self._max, highest)

    def filled(self) -> "Iterator[tuple[int, int]]":
        """Yield the indexes of the buckets that are not empty, in order, with their counts."""
        return ((index, count) for index, count in enumerate(self._counts) if count)

    @property
    def total(self) -> int:
        """The number of values."""
        return sum(self._counts)

    @property
    def max(self) -> int:
        """The greatest value, exactly; 0 without values."""
        return self._max

    def percentile(self, percent: float) -> int:
        """Return the lowest value that ``percent`` of all values do not exceed (to 1.6 %); 0 without values."""
        target = self.total * percent / 100
        seen = 0
        for index, count in self.filled():
            seen += count
            if seen >= target:
                return min(highest_in(index), self._max)
        return self._max

    def by_powers(self) -> "list[tuple[int, int]]":
        """Return ``(up to ns, count)`` for each power of two, from the first to the last that has values."""
        counts: dict[int, int] = {}
        for index, count in self.filled():
            power = highest_in(index).bit_length()
            counts[power] = counts.get(power, 0) + count
        if not counts:
            return []
        return [((1 << power) - 1, counts.get(power, 0)) for power in range(min(counts), max(counts) + 1)]
