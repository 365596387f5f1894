"""The history window: the last commits, and with them the versions that can still be read.

Commits stand in a queue in commit order. Dropping the oldest one, of version v, raises one number, ``oldest_readable``,
to v, and cuts off what its heads superseded. Every version from v on is still a consistent snapshot of the whole store:

        commits      5      7      8             oldest_readable = 4: any version >= 4 can be read
        key a   3 ◀─ 5      │      │
        key b   4 ◀──┼───── 7 ◀─── 8
                     │
        drop 5:  the link 5 ─▶ 3 of key a is cut; oldest_readable = 5

Commits that were made together stand in the queue as one group, and are dropped together.

The window is bounded by bytes, age and number of commits. A pinned version keeps it open up to a byte limit of its own.
Commits are dropped in small steps, of as many keys as were written or a few more. But if the window is over its byte
limit, a step drops at least as many bytes as were added, because one large value may take the place of a hundred
thousand small ones.

Versions have no gaps but one: what a crash took. A start after a crash goes on at a version that no client has seen,
and the versions between the last commit on the disk and that one are *lost*. A client may have seen one of them, with a
state that no longer exists. So they cannot be read:

        commits      5      6                  12          7 to 10 are lost, 11 is the state of 6 under a new number
                     └──────┴─ on the disk ────┴─ the first commit after the crash; versions went on at 11

Commit times are what the wall clock said, and rise as long as nobody sets it. A *step* notes that it was set: after
which version, to which time, and by how much. A time before the newest step may mean two moments or none, so it is
never looked up. The age of a commit is what its clock would say today: its time, and all steps since.
"""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from kvd.store.authors import Author
from kvd.store.errors import ClockWasSet, SnapshotGone, VersionLost
from kvd.store.heads import Head

# What the window itself keeps alive, in bytes of CPython objects by sys.getsizeof: a group with its tuple and numbers,
# a head's place in the tuple, and a superseded head with its version and its value's header. The value's bytes come on
# top.
GROUP_BYTES = 224
PLACE_BYTES = 8
SUPERSEDED_BYTES = 112
# The clock of a machine is set a few times in its life. Of more steps, the two oldest become one.
MAX_STEPS = 8
# The queue is compacted once it has this number of places of dropped groups, and at least as many as of held ones.
_COMPACT_PLACES = 4096


class WindowLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much history is kept; the limit that is reached first counts. The age is in microseconds."""

    max_age_us: int = 600_000_000
    max_bytes: int = 64 * 1024 * 1024
    max_commits: int = 1_000_000
    # A pinned version holds the window open beyond the limits above, but only up to this one.
    max_pinned_bytes: int = 256 * 1024 * 1024


class ClockStep(NamedTuple):
    """The wall clock was set: after ``version`` was the newest, to ``time``, by ``by``; both in microseconds."""

    version: int
    time: int
    by: int


class Group(msgspec.Struct, gc=False, eq=False):
    """Consecutive commits of one author at one time: those of one frame, or a single one.

    ``heads`` are all that they wrote, in order; heads of one commit share its version. ``time`` is in microseconds
    since the epoch. ``size`` is what the window counts for the group, in bytes; it shrinks when values go before their
    commits do (``retention.py``). ``keeps``: the heads have the values that they supersede, which count where others
    supersede them. Many commits share one object, because objects that lie in memory until the window
    drops them make a small commit expensive: each is a cache miss then.
    """

    time: int
    author: Author
    heads: tuple[Head, ...]
    commits: int
    size: int
    has_tombstones: bool
    keeps: bool = False

    def each(self) -> Iterator[tuple[int, tuple[Head, ...]]]:
        """Yield its commits in order: the version, and the heads that it wrote."""
        if self.commits == 1:
            yield self.heads[0].version, self.heads
        else:  # each commit wrote one key
            for head in self.heads:
                yield head.version, (head,)


def _last_version(group: Group) -> int:
    return group.heads[-1].version


def _time(group: Group) -> int:
    return group.time


class Window:
    """The queue of commits, newest last. A list, because a deque has no quick binary search."""

    NOTHING_PINNED = 2**64  # above every version

    __slots__ = (
        "_begin",
        "_compacted",
        "_kept_bytes",
        "_lost",
        "_pins",
        "_queue",
        "_shift",
        "bytes",
        "commits",
        "limits",
        "oldest_readable",
        "oldest_time",
        "steps",
    )

    def __init__(self, limits: WindowLimits) -> None:
        self.limits = limits
        self._queue: list[Group | None] = []
        self._begin = 0  # the groups before it have been dropped
        self._compacted = 0  # how many places of dropped groups have been removed from the queue
        self.commits = 0
        self.bytes = 0
        self._kept_bytes = 0  # the bytes after the last drop
        self.oldest_readable = 0
        self.oldest_time = 0  # when that version was committed
        # Version → number of pins; versions are pinned in ascending order only. Not a dict: its iterator passes over
        # the places of all pins that were removed before the oldest one that is left.
        self._pins: OrderedDict[int, int] = OrderedDict()
        self.steps: list[ClockStep] = []  # those after the oldest readable version, oldest first
        self._shift = 0  # how far they set the clock together
        self._lost: list[tuple[int, int]] = []  # the first and the last version of each lost stretch, oldest first

    @property
    def groups(self) -> list[Group]:
        """A copy of all groups, oldest first."""
        return self._queue[self._begin :]  # type: ignore[return-value]

    @property
    def oldest(self) -> Group | None:
        """The group that is dropped next; None if the window is empty."""
        return self._queue[self._begin] if self._begin < len(self._queue) else None

    def append(self, group: Group) -> None:
        """Add the newest commits."""
        self._queue.append(group)
        self.commits += group.commits
        self.bytes += group.size

    def share_newest(self) -> None:
        """Note that the newest group, a single commit, gave its keys the values that they had: these count once."""
        group: Group = self._queue[-1]  # type: ignore[assignment]
        shared = sum(len(head.value or b"") for head in group.heads)
        group.keeps = True
        group.size -= shared
        self.bytes -= shared

    # ------------------------------------------------------------------ lost versions

    def note_lost(self, first: int, last: int) -> None:
        """Note that a crash took the versions from ``first`` to ``last``, which may be none at all."""
        if first <= last:
            self._lost.append((first, last))

    def check_kept(self, version: int) -> None:
        """Raise SnapshotGone if ``version`` has left the window, VersionLost if a crash took it."""
        if version < self.oldest_readable:
            raise SnapshotGone(version, self.oldest_readable)
        for first, last in self._lost:
            if first <= version <= last:
                raise VersionLost(version, self.oldest_readable, last + 1)

    # ------------------------------------------------------------------ the clock

    def note_step(self, step: ClockStep) -> None:
        """Note that the clock was set; this takes the place of an earlier note after the same version."""
        self.set_steps([*(each for each in self.steps if each.version < step.version), step])

    def set_steps(self, steps: Iterable[ClockStep]) -> None:
        """Replace all notes, oldest first."""
        self.steps = list(steps)
        while len(self.steps) > MAX_STEPS:
            first, second, *later = self.steps
            self.steps = [second._replace(by=first.by + second.by), *later]
        self.forget_steps()

    def forget_steps(self) -> None:
        """Forget the steps that no readable version is older than."""
        while self.steps and self.steps[0].version <= self.oldest_readable:
            step = self.steps.pop(0)
            if step.version == self.oldest_readable:
                self.oldest_time = step.time
        self._shift = sum(step.by for step in self.steps)

    def present_time(self, group: Group) -> int:
        """Return what today's clock would have said at the time of ``group``."""
        if not self.steps:
            return group.time
        return group.time + sum(step.by for step in self.steps if step.version >= group.heads[0].version)

    # ------------------------------------------------------------------ finding

    def group_of(self, version: int) -> Group | None:
        """Return the group that holds the commit of ``version``; None if it has left the window."""
        place = self._find(version)
        if version <= self.oldest_readable or place == len(self._queue):
            return None
        return self._queue[place]

    def since(self, version: int) -> Iterator[Group]:
        """Yield the groups with commits after ``version``, oldest first; the first group may begin at or before it.

        The window must not change meanwhile. Raises SnapshotGone unless ``version`` can be read.
        """
        self.check_kept(version)
        for place in range(self._find(version + 1), len(self._queue)):
            yield self._queue[place]  # type: ignore[misc]

    def newest_since(self, version: int) -> list[Group]:
        """Return the groups after ``version``, which is the last of a group: in most cases only the newest group."""
        newest = self._queue[-1] if len(self._queue) > self._begin else None
        if newest is None or newest.heads[-1].version <= version:
            return []
        if newest.heads[0].version == version + 1:
            return [newest]
        return list(self.since(version))

    def next_from(self, number: int) -> tuple[int, Group] | None:
        """Return the first group with this number or a later one, and its number. Groups are numbered in order."""
        place = max(number - self._compacted, self._begin)
        return (place + self._compacted, self._queue[place]) if place < len(self._queue) else None  # type: ignore[return-value]

    @property
    def next_number(self) -> int:
        """The number that the next group will have."""
        return len(self._queue) + self._compacted

    def numbered(self, number: int) -> Group | None:
        """Return the group with this number; None if it has left the window."""
        place = number - self._compacted
        return self._queue[place] if self._begin <= place < len(self._queue) else None

    def newest(self, below: int | None = None) -> Iterator[Group]:
        """Yield the groups, newest first. The window must not change meanwhile.

        With ``below``: only those that have a commit before this version, of which the first may have later ones too.
        """
        end = len(self._queue)
        if below is not None:
            end = min(end, self._find(below) + 1)  # the group that holds ``below`` may begin before it
        for place in range(end - 1, self._begin - 1, -1):
            yield self._queue[place]  # type: ignore[misc]

    def version_at(self, time: int) -> int:
        """Return the version that was current at ``time``.

        Raises SnapshotGone if the window begins later, ClockWasSet if the clock was set since.
        """
        begin = self._begin
        if self.steps:
            step = self.steps[-1]
            if time < step.time:
                raise ClockWasSet(self.oldest_readable, step.version, step.by)
            begin = self._find(step.version + 1)
        elif time < self.oldest_time:
            raise SnapshotGone(None, self.oldest_readable)
        place = bisect_right(self._queue, time, lo=begin, key=_time)  # type: ignore[arg-type]
        return _last_version(self._queue[place - 1]) if place > self._begin else self.oldest_readable  # type: ignore[arg-type]

    def _find(self, version: int) -> int:
        """Return the place of the first group that has ``version`` or a later one."""
        return bisect_left(self._queue, version, lo=self._begin, key=_last_version)  # type: ignore[arg-type]

    # ------------------------------------------------------------------ pins

    def pin(self, version: int) -> None:
        """Keep ``version``, which must be the newest, readable until it is unpinned as often as it was pinned."""
        self._pins[version] = self._pins.get(version, 0) + 1

    def unpin(self, version: int) -> None:
        """Remove one pin of ``version``. Raises KeyError if it has none."""
        if self._pins[version] == 1:
            del self._pins[version]
        else:
            self._pins[version] -= 1

    @property
    def pinned(self) -> int:
        """The number of pinned versions."""
        return len(self._pins)

    @property
    def oldest_pinned(self) -> int:
        """The oldest pinned version; NOTHING_PINNED if there is none."""
        return next(iter(self._pins), self.NOTHING_PINNED)

    def drop(self, now: int, budget_keys: int) -> list[Group]:
        """Remove the oldest commits that exceed the limits, about ``budget_keys`` keys of them; return their groups.

        While the window exceeds its byte limit, remove at least as many bytes as were added since the last drop.
        Afterwards no version before the last removed commit can be read.
        """
        limits = self.limits
        oldest_time = now - limits.max_age_us
        queue, begin = self._queue, self._begin
        is_within = self.bytes <= limits.max_bytes and self.commits <= limits.max_commits
        if is_within and (begin == len(queue) or queue[begin].time + self._shift >= oldest_time):  # type: ignore[union-attr]
            self._kept_bytes = self.bytes  # the common case: there is nothing to remove
            return []
        max_bytes = max(limits.max_bytes, self._kept_bytes)
        pinned = self.oldest_pinned
        dropped: list[Group] = []
        size, commits = self.bytes, self.commits
        for place in range(self._begin, len(self._queue)):
            oldest: Group = self._queue[place]  # type: ignore[assignment]
            if budget_keys <= 0 and size <= max_bytes:
                break
            if size <= limits.max_bytes and commits <= limits.max_commits and self.present_time(oldest) >= oldest_time:
                break
            if oldest.heads[-1].version > pinned and size <= limits.max_pinned_bytes:
                break
            dropped.append(oldest)
            size -= oldest.size
            commits -= oldest.commits
            budget_keys -= len(oldest.heads)
        self._drop(dropped)
        return dropped

    def trim(self, size: int, visible: int, budget_keys: int, *, even_pinned: bool) -> list[Group]:
        """Remove the oldest commits, up to version ``visible``, until ``size`` bytes are freed; return their groups.

        About ``budget_keys`` keys of them are removed at most.
        """
        last = visible if even_pinned else min(visible, self.oldest_pinned)
        dropped: list[Group] = []
        for place in range(self._begin, len(self._queue)):
            oldest: Group = self._queue[place]  # type: ignore[assignment]
            if size <= 0 or budget_keys <= 0 or oldest.heads[-1].version > last:
                break
            dropped.append(oldest)
            size -= oldest.size
            budget_keys -= len(oldest.heads)
        self._drop(dropped)
        return dropped

    def _drop(self, oldest: list[Group]) -> None:
        """Remove ``oldest``, which are the oldest groups."""
        if oldest:
            end = self._begin + len(oldest)
            self._queue[self._begin : end] = [None] * len(oldest)
            self._begin = end
            self.commits -= sum([group.commits for group in oldest])
            self.bytes -= sum([group.size for group in oldest])
            self.oldest_readable = _last_version(oldest[-1])
            self.oldest_time = oldest[-1].time
            if self.steps:
                self.forget_steps()
        self._kept_bytes = self.bytes
        if self._begin >= _COMPACT_PLACES and self._begin * 2 >= len(self._queue):
            del self._queue[: self._begin]
            self._compacted += self._begin
            self._begin = 0
