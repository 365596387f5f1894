"""Which keys are read and written most: one frame in some sixty is looked at, and a bounded summary counts its keys.

Which frame, chance decides, so that what programs do in a fixed rhythm is not missed: by the remainder of the time in
ns at which a frame began, which is measured anyway (ONE_IN is a prime, so a clock that goes in steps does as well); of
gets alone in their frames, which are not measured, a countdown from a random number. Each frame has the same chance,
and so has each operation on a key; of a frame with many some are taken for the others.

The summary is that of Misra and Gries (*Finding repeated elements*, 1982): more than 2 k keys are cut back to k by
taking the count of the (k + 1)th off all of them; doing that once for many is from D. Anderson et al., *A
High-Performance Algorithm for Identifying Frequent Items in Data Streams* (IMC 2017). Of n that were counted, none is
told to be more often than it was, and less often by n / k at most. Two summaries take turns, so that what is told is of
the last minute or two.
"""

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from kvd.protocol import messages
from kvd.protocol.messages import AnyRequest
from kvd.requests.keys import written_keys

SAMPLE_EVERY = 61
KEYS = 256
PERIOD_S = 60.0
# Of a frame about so many requests are looked at, and of these about so many keys.
MAX_SAMPLED_REQUESTS = 16
# Longer keys are not counted: what is kept has to be bounded, whatever keys there are.
MAX_KEY = 4_096
_READING = frozenset((messages.GetMany, messages.Fetch))
_WRITING = frozenset((messages.Set, messages.Delete, messages.Increment, messages.Commit, messages.Touch))


class Summary:
    """How often each of many things came, for those that came often."""

    __slots__ = ("_most", "counts")

    def __init__(self, most: int = KEYS) -> None:
        self.counts: dict[str, int] = {}
        self._most = most

    def add(self, keys: Iterable[str], times: int = 1) -> None:
        """Each of ``keys`` came so many times more."""
        counts = self.counts
        for key in keys:
            if len(key) <= MAX_KEY:
                counts[key] = counts.get(key, 0) + times
        if len(counts) > 2 * self._most:
            least = heapq.nlargest(self._most + 1, counts.values())[-1]
            self.counts = {key: count - least for key, count in counts.items() if count > least}


class LastMinutes:
    """The summary of the last minute or two."""

    __slots__ = ("_before", "_began", "_clock", "_now")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._before: tuple[float, Summary] | None = None
        self._now = Summary()
        self._began = clock()

    def add(self, keys: Iterable[str], times: int) -> None:
        """Each of ``keys`` came so many times more."""
        if self._clock() - self._began >= PERIOD_S:
            self._turn()
        self._now.add(keys, times)

    def most(self, limit: int) -> tuple[int, list[tuple[str, int]]]:
        """For how many ms back it is, and the keys that came most often, each with about how often."""
        if self._clock() - self._began >= PERIOD_S:
            self._turn()
        began, counts = self._began, Counter(self._now.counts)
        if self._before is not None:
            began = self._before[0]
            counts.update(self._before[1].counts)
        told = [(key, count * SAMPLE_EVERY) for key, count in counts.most_common(limit)]
        return int((self._clock() - began) * 1_000), told

    def _turn(self) -> None:
        now = self._clock()
        # What nothing was added to for longer than a period is no news.
        self._before = (self._began, self._now) if now - self._began < 2 * PERIOD_S else None
        self._began, self._now = now, Summary()


class HotKeys:
    """What is read, and what is written."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, seed: int | None = None) -> None:
        self._choose = random.Random(seed).random  # noqa: S311  # no secret
        self.reads = LastMinutes(clock)
        self.writes = LastMinutes(clock)

    def sample_get(self, key: str) -> int:
        """A get alone in its frame was chosen; the how-manieth of such frames from here on is the next."""
        self.reads.add([key], 1)
        return 1 + int(self._choose() * (2 * SAMPLE_EVERY - 1))

    def look(self, requests: Sequence[AnyRequest]) -> None:
        """A frame was chosen."""
        step = 1
        if len(requests) > MAX_SAMPLED_REQUESTS:
            step = len(requests) // MAX_SAMPLED_REQUESTS
            requests = requests[int(self._choose() * step) :: step]
        reads: list[str] = []
        writes: list[str] = []
        for request in requests:
            kind = type(request)
            if kind is messages.Get:
                reads.append(request.key)  # type: ignore[union-attr]
            elif kind in _READING:
                reads += request.keys  # type: ignore[union-attr]
            elif kind in _WRITING:
                writes += written_keys(request)
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
