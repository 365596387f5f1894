"""Which keys are read and written most: one frame in some sixty is sampled, and a bounded summary counts its keys.

Chance chooses the frames, so that what programs do in a fixed rhythm is not missed. It is the remainder of the time in
ns at which a frame began, which is measured anyway (SAMPLE_EVERY is a prime, so a clock that goes in steps does as
well); for gets alone in their frames, which are not measured, it is a countdown from a random number. Each frame has
the same chance, and so has each operation on a key; of a frame with many, some are taken for all.

The summary is that of Misra and Gries (*Finding repeated elements*, 1982): more than 2 k keys are cut back to k by
taking the count of the (k + 1)th off all of them; doing that once for many is from D. Anderson et al., *A
High-Performance Algorithm for Identifying Frequent Items in Data Streams* (IMC 2017). Of n operations no key is
reported with more than it had, and with n / k fewer at most. Two summaries alternate, so that a report covers the last
minute or two.
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
# About how many requests of a frame are sampled, and about how many keys of these.
MAX_SAMPLED_REQUESTS = 16
# Longer keys are not counted, because what is kept must be bounded.
MAX_KEY = 4_096


class Summary:
    """How often each key was counted, for the keys that were counted often."""

    __slots__ = ("_max_keys", "counts")

    def __init__(self, max_keys: int = KEYS) -> None:
        self.counts: dict[str, int] = {}
        self._max_keys = max_keys

    def add(self, keys: Iterable[str], times: int = 1) -> None:
        """Count each of ``keys`` this many times."""
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
        """Count each of ``keys`` this many times."""
        if self._clock() - self._began >= PERIOD_S:
            self._rotate()
        self._now.add(keys, times)

    def most_common(self, limit: int) -> tuple[int, list[tuple[str, int]]]:
        """Return how many ms the report covers, and the keys counted most often, each with about how often."""
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
        # A summary that nothing was added to for more than a period is too old to report.
        self._before = (self._began, self._now) if now - self._began < 2 * PERIOD_S else None
        self._began, self._now = now, Summary()


class HotKeys:
    """The keys that are read, and the keys that are written."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, seed: int | None = None) -> None:
        self._choose = random.Random(seed).random  # noqa: S311  # no secret
        self.reads = LastMinutes(clock)
        self.writes = LastMinutes(clock)

    def sample_get(self, key: str) -> int:
        """Record a get alone in its frame. Return how many such frames there are to the next sample, at least one."""
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
            read, written = keys_of(request)
            reads += read
            writes += written
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
