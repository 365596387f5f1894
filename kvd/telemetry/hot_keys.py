"""Which keys are read and written most: one frame in some sixty is sampled, and a bounded summary counts its keys.

Frames are chosen at random, because a fixed rhythm could miss programs that have one, too. The source of randomness is
the start time of the frame in ns, modulo SAMPLE_EVERY, because that time is measured anyway. (SAMPLE_EVERY is a prime,
so a clock that advances in steps is good enough.) A get alone in its frame is not timed, so there the source is a
countdown from a random number. Each frame has the same chance, and so has each operation on a key. In a frame with many
operations some stand for all.

The summary is that of Misra and Gries (*Finding repeated elements*, 1982): when there are more than 2 k keys, the count
of the (k + 1)th is subtracted from all counts, which leaves at most k keys. Doing that once for many keys is from D.
Anderson et al., *A High-Performance Algorithm for Identifying Frequent Items in Data Streams* (IMC 2017). After n
operations no key's count is too high, and it is too low by at most n / k. Two summaries alternate, so that a report
covers the last minute or two.
"""

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeVar

Request = TypeVar("Request")

SAMPLE_EVERY = 61
KEYS = 256
PERIOD_S = 60.0
# About how many requests of a frame are sampled, and about how many keys of these requests.
MAX_SAMPLED_REQUESTS = 16
# Longer keys are not counted, because the memory of a summary must be bounded.
MAX_KEY = 4_096


class Summary:
    """The counts of the most frequent keys."""

    __slots__ = ("_max_keys", "counts")

    def __init__(self, max_keys: int = KEYS) -> None:
        self.counts: dict[str, int] = {}
        self._max_keys = max_keys

    def add(self, keys: Iterable[str], times: int = 1) -> None:
        """Count each of ``keys`` ``times`` times."""
        counts = self.counts
        for key in keys:
            if len(key) <= MAX_KEY:
                counts[key] = counts.get(key, 0) + times
        if len(counts) > 2 * self._max_keys:
            smallest = heapq.nlargest(self._max_keys + 1, counts.values())[-1]
            self.counts = {key: count - smallest for key, count in counts.items() if count > smallest}


class LastMinutes:
    """The summary of the last minute or two."""

    __slots__ = ("_before", "_began", "_clock", "_now")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._before: tuple[float, Summary] | None = None
        self._now = Summary()
        self._began = clock()

    def add(self, keys: Iterable[str], times: int) -> None:
        """Count each of ``keys`` ``times`` times."""
        if self._clock() - self._began >= PERIOD_S:
            self._rotate()
        self._now.add(keys, times)

    def most_common(self, limit: int) -> tuple[int, list[tuple[str, int]]]:
        """Return how many ms the report covers, and the keys counted most often, each with its estimated count."""
        if self._clock() - self._began >= PERIOD_S:
            self._rotate()
        began, counts = self._began, Counter(self._now.counts)
        if self._before is not None:
            began = self._before[0]
            counts.update(self._before[1].counts)
        estimates = [(key, count * SAMPLE_EVERY) for key, count in counts.most_common(limit)]
        return int((self._clock() - began) * 1_000), estimates

    def _rotate(self) -> None:
        now = self._clock()
        # A summary without additions for more than a period is too old to report.
        self._before = (self._began, self._now) if now - self._began < 2 * PERIOD_S else None
        self._began, self._now = now, Summary()


class HotKeys:
    """The keys that are read, and the keys that are written."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, seed: int | None = None) -> None:
        self._choose = random.Random(seed).random  # noqa: S311  # no secret
        self.reads = LastMinutes(clock)
        self.writes = LastMinutes(clock)

    def sample_get(self, key: str) -> int:
        """Record a get alone in its frame. Return after how many such frames the next sample is due, at least one."""
        self.reads.add([key], 1)
        return 1 + int(self._choose() * (2 * SAMPLE_EVERY - 1))

    def sample_frame(
        self, requests: Sequence[Request], keys_of: Callable[[Request], tuple[Collection[str], Collection[str]]]
    ) -> None:
        """Record a frame; ``keys_of`` says which keys a request reads, and which it writes."""
        step = 1
        if len(requests) > MAX_SAMPLED_REQUESTS:
            step = len(requests) // MAX_SAMPLED_REQUESTS
            requests = requests[int(self._choose() * step) :: step]
        reads: list[str] = []
        writes: list[str] = []
        for request in requests:
            read_keys, written_keys = keys_of(request)
            reads += read_keys
            writes += written_keys
        if reads:
            self._add(self.reads, reads, step)
        if writes:
            self._add(self.writes, writes, step)

    def _add(self, to: LastMinutes, keys: list[str], times: int) -> None:
        if len(keys) > MAX_SAMPLED_REQUESTS:
            step = len(keys) // MAX_SAMPLED_REQUESTS
            times *= step
            keys = keys[int(self._choose() * step) :: step]
        to.add(keys, times)
