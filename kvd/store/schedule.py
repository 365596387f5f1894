"""When to check which key: the earliest first, and never much work in one step.

        open    a heap that takes new entries, up to 4,096; when it is full it becomes a run
        runs    [entry, entry…], [entry…], …    each sorted, the earliest last, where it is taken off

Most deadlines pass in about the order in which they were set. So a run covers a stretch of time, and its entries lie
next to each other in memory: of a million keys that are due, one run after the other is used up, without a search. (One
heap of a million entries takes longer for each entry, because every step down in it is a cache miss.)

An entry is *stale* if its key is gone, or if another entry checks the key earlier. It stays until its time comes. But
if more entries are stale than not, or if most runs are nearly used up, each change also merges the oldest run into the
open heap, without its stale entries. So there are never many superfluous entries, and no step takes longer the more
entries there are.
"""

from heapq import heappop, heappush
from operator import attrgetter

import msgspec

# Sorting or merging a run of this length takes about a millisecond.
RUN_ENTRIES = 4_096
# Up to this number of runs it does not matter how full they are.
_FEW_RUNS = 4
# One step merges no more runs than this number of changed entries require; later changes merge the others.
_MAX_COMPACTED = 2 * RUN_ENTRIES
NEVER = 2**63
_GONE = -1  # the deadline of a stale entry

_wake_at = attrgetter("wake_at")


class Entry(msgspec.Struct, gc=False, order=True):
    """A key that expires at ``deadline``; it is checked at ``wake_at``, which is not after the deadline.

    Entries are ordered by ``wake_at``; the other fields only decide between equal times.
    """

    wake_at: int
    key: str
    deadline: int


class Schedule:
    """The entries, by the time at which to check them. ``stale`` is the number of stale entries."""

    __slots__ = ("_open", "_runs", "_runs_wake_at", "stale")

    def __init__(self) -> None:
        self.stale = 0
        self._open: list[Entry] = []
        self._runs: list[list[Entry]] = []  # as they became full; none is empty
        self._runs_wake_at = NEVER  # the earliest wake_at in them

    @property
    def next_wake_at(self) -> int:
        """The earliest ``wake_at``, of stale entries too; NEVER if there is none."""
        return min(self._open[0].wake_at, self._runs_wake_at) if self._open else self._runs_wake_at

    def add(self, entry: Entry) -> None:
        """Schedule an entry for its ``wake_at``."""
        heappush(self._open, entry)
        if len(self._open) >= RUN_ENTRIES:
            run, self._open = self._open, []
            run.sort(key=_wake_at, reverse=True)
            self._runs.append(run)
            self._runs_wake_at = min(self._runs_wake_at, run[-1].wake_at)

    def add_all(self, entries: list[Entry]) -> None:
        """Schedule entries that all have the same ``wake_at``."""
        full = len(entries) - len(entries) % RUN_ENTRIES
        for begin in range(0, full, RUN_ENTRIES):
            self._runs.append(entries[begin : begin + RUN_ENTRIES])
        if full:
            self._runs_wake_at = min(self._runs_wake_at, entries[0].wake_at)
        for entry in entries[full:]:
            self.add(entry)

    def cancel(self, entry: Entry) -> None:
        """Make a scheduled entry stale; it stays until its time comes. Call ``compact`` afterwards."""
        entry.deadline = _GONE
        self.stale += 1

    def cancel_all(self, entries: list[Entry]) -> None:
        """As ``cancel``, for each of ``entries``."""
        for entry in entries:
            entry.deadline = _GONE
        self.stale += len(entries)

    def take_due(self, now: int, max_entries: int) -> list[str]:
        """Return the keys whose deadline has passed, of the first ``max_entries``. Call ``compact`` afterwards.

        The result may be empty although keys are due. There may be more as long as ``next_wake_at`` is not after
        ``now``.
        """
        due: list[str] = []
        for entry in self._take(now, max_entries):
            if entry.deadline > now:
                entry.wake_at = entry.deadline
                self.add(entry)
            elif entry.deadline == _GONE:
                self.stale -= 1
            else:
                due.append(entry.key)
        return due

    def _take(self, now: int, max_entries: int) -> list[Entry]:
        """Take off up to ``max_entries`` entries whose time has come."""
        taken: list[Entry] = []
        if self._runs_wake_at <= now:
            # The entry that has waited longest goes first.
            for run in sorted([run for run in self._runs if run[-1].wake_at <= now], key=lambda run: run[-1].wake_at):
                while len(taken) < max_entries and run and run[-1].wake_at <= now:
                    taken.append(run.pop())
            self._runs = [run for run in self._runs if run]
            self._update_runs_wake_at()
        while len(taken) < max_entries and self._open and self._open[0].wake_at <= now:
            taken.append(heappop(self._open))
        return taken

    def compact(self, count: int, changed: int) -> None:
        """Merge as many runs as ``changed`` entries require, which were added, taken or cancelled.

        ``count`` is the number of entries that are not stale.
        """
        for _ in range(0, min(changed, _MAX_COMPACTED), RUN_ENTRIES // 2):
            max_runs = _FEW_RUNS + 2 * (count + self.stale) // RUN_ENTRIES
            if self.stale <= RUN_ENTRIES + count and len(self._runs) <= max_runs:
                return
            self._merge_run(self._runs.pop(0))

    def _merge_run(self, run: list[Entry]) -> None:
        for entry in reversed(run):  # in ascending order, in which a heap takes them fastest
            if entry.deadline == _GONE:
                self.stale -= 1
            else:
                entry.wake_at = entry.deadline
                self.add(entry)
        self._update_runs_wake_at()

    def _update_runs_wake_at(self) -> None:
        self._runs_wake_at = min([run[-1].wake_at for run in self._runs], default=NEVER)
