"""When to look at which key: the earliest first, and never much to do at once.

        open    a heap that takes what is new, up to 4,096 entries; when it is full it becomes a run
        runs    [entry, entry…], [entry…], …    each sorted, the earliest last, where it is taken off

Most deadlines come in about the order in which they were given. So a run is a stretch of time, and of memory: of a
million keys that are due, one run after the other is used up, with no search, and next to each other in memory. (One
heap of a million entries takes longer for each, as every step down in it is a cache miss.)

An entry whose key ended, or is to be looked at earlier, is *stale*. It stays where it is until its place comes; but
if more entries are stale than not, or if most runs are nearly used up, then the oldest run is dissolved with each
change: what still counts of it goes into the open heap. So there are never many entries too much, and no step takes
longer the more there are.
"""

from heapq import heappop, heappush
from operator import attrgetter

import msgspec

# To sort, or to dissolve, a run of so many takes about a millisecond.
RUN_ENTRIES = 4_096
# So many runs may be there before it matters how full they are.
_FEW_RUNS = 4
NEVER = 2**63
_GONE = -1  # the deadline of a stale entry

_place_of = attrgetter("place")


class Entry(msgspec.Struct, gc=False, order=True):
    """A key that expires at ``deadline``, and is looked at when its ``place`` comes, then or before.

    The order is that of the places; the rest only decides between equal ones.
    """

    place: int
    key: str
    deadline: int


class Schedule:
    """The entries, by their places. ``stale``: how many are."""

    __slots__ = ("_open", "_runs", "_runs_look", "stale")

    def __init__(self) -> None:
        self.stale = 0
        self._open: list[Entry] = []
        self._runs: list[list[Entry]] = []  # as they became full; none is empty
        self._runs_look = NEVER  # the first place in them

    @property
    def next_look(self) -> int:
        """The first place, also that of a stale entry; NEVER without any."""
        return min(self._open[0].place, self._runs_look) if self._open else self._runs_look

    def add(self, entry: Entry) -> None:
        """Look at it when its place comes."""
        heappush(self._open, entry)
        if len(self._open) >= RUN_ENTRIES:
            run, self._open = self._open, []
            run.sort(key=_place_of, reverse=True)
            self._runs.append(run)
            self._runs_look = min(self._runs_look, run[-1].place)

    def abandon(self, entry: Entry) -> None:
        """Never mind this one, which is in the schedule. To be followed by ``tend``."""
        entry.deadline = _GONE
        self.stale += 1

    def take_due(self, now: int, most: int) -> list[str]:
        """The keys whose deadline has come among the first ``most`` entries. To be followed by ``tend``.

        If none is among them there may still be more behind them: while ``next_look`` is not later than ``now``.
        """
        due: list[str] = []
        for entry in self._take(now, most):
            if entry.deadline > now:
                entry.place = entry.deadline
                self.add(entry)
            elif entry.deadline == _GONE:
                self.stale -= 1
            else:
                due.append(entry.key)
        return due

    def _take(self, now: int, most: int) -> list[Entry]:
        """Take off up to ``most`` entries whose place has come."""
        taken: list[Entry] = []
        if self._runs_look <= now:
            # Who has waited longest goes first.
            for run in sorted([run for run in self._runs if run[-1].place <= now], key=lambda run: run[-1].place):
                while len(taken) < most and run and run[-1].place <= now:
                    taken.append(run.pop())
            self._runs = [run for run in self._runs if run]
            self._note_look()
        while len(taken) < most and self._open and self._open[0].place <= now:
            taken.append(heappop(self._open))
        return taken

    def tend(self, count: int, changed: int) -> None:
        """Make up for ``changed`` entries that were taken, added or abandoned; ``count`` are not stale."""
        for _ in range(0, changed, RUN_ENTRIES // 2):
            few = _FEW_RUNS + 2 * (count + self.stale) // RUN_ENTRIES
            if self.stale <= RUN_ENTRIES + count and len(self._runs) <= few:
                return
            self._dissolve(self._runs.pop(0))

    def _dissolve(self, run: list[Entry]) -> None:
        for entry in reversed(run):  # in their order, which is what a heap takes in fastest
            if entry.deadline == _GONE:
                self.stale -= 1
            else:
                entry.place = entry.deadline
                self.add(entry)
        self._note_look()

    def _note_look(self) -> None:
        self._runs_look = min([run[-1].place for run in self._runs], default=NEVER)
