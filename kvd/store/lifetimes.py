"""How long keys live: until a deadline, or as long as somebody's connection. Most keys do neither, and cost nothing.

        deadlines   key ─▶ when it expires            of keys that expire
        schedule    [(time, key)…], a heap            when to look at a key again, at the latest at its deadline
        owners      key ─▶ owner ─▶ {key…}            of keys that are deleted when their owner goes

Every key with a deadline stands in the schedule at or before it, at most once that counts. A later deadline moves
nothing there: whoever finds the key at its old place puts it back at its new one. So a session that is prolonged a
thousand times costs one entry.

Times here are of a clock that runs evenly (CLOCK_BOOTTIME), in microseconds: setting the wall clock moves no deadline.
"""

from collections.abc import Collection, Hashable, Iterable, Mapping
from heapq import heapify, heappop, heappush

import msgspec

# Entries of the schedule that no key needs any more are swept out when there are so many, and as many as keys.
_MOST_STALE = 65_536
# To find a key that is due no more than so many are looked at that are not, being prolonged or gone.
LOOKS_A_KEY = 4


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """What a write says about the lives of its keys.

    ``keep``: keys that exist keep the life they have, and deadlines count for new ones only. ``deadlines``: those of
    keys with one of their own. ``owner``: the keys are deleted when this owner is gone.
    """

    deadline: int | None = None
    deadlines: Mapping[str, int] = {}
    keep: bool = False
    owner: Hashable = None


ENDLESS = Life()
KEPT = Life(keep=True)


class Lifetimes:
    """The lives of keys, by their latest write."""

    __slots__ = ("_of_owner", "_owners", "_schedule", "_scheduled", "deadlines")

    def __init__(self) -> None:
        self.deadlines: dict[str, int] = {}
        self._schedule: list[tuple[int, str]] = []
        self._scheduled: dict[str, int] = {}  # key → its place in the schedule that counts
        self._owners: dict[str, Hashable] = {}
        self._of_owner: dict[Hashable, set[str]] = {}

    def __len__(self) -> int:
        """How many keys do not simply live on."""
        return len(self._scheduled) + len(self._owners)

    @property
    def next_look(self) -> int | None:
        """When a key may be due; None while none can be."""
        return self._schedule[0][0] if self._schedule else None

    def written(self, keys: Iterable[str], life: Life, existing: Collection[str] = ()) -> None:
        """``keys`` were written; those in ``existing`` were there before (asked for only if ``life.keep``)."""
        for key in keys:
            kept = life.keep and key in existing
            if not kept:
                self._set_deadline(key, life.deadlines.get(key, life.deadline))
            if life.owner is not None or not kept:
                self._set_owner(key, life.owner)

    def touched(self, keys: Iterable[str], deadline: int | None) -> None:
        """``keys`` got another deadline, and keep their owner."""
        for key in keys:
            self._set_deadline(key, deadline)

    def ended(self, keys: Collection[str]) -> None:
        """``keys`` were deleted, or written without any end: what most writes do to most keys is nothing."""
        if self.deadlines:
            for key in self.deadlines.keys() & keys:
                del self.deadlines[key]
        if self._owners:
            for key in self._owners.keys() & keys:
                self._set_owner(key, None)

    def take_due(self, now: int, most: int) -> list[str]:
        """Up to ``most`` keys whose deadline has come; the caller deletes them. ``next_look`` tells of more."""
        due: list[str] = []
        looks = LOOKS_A_KEY * most
        while self._schedule and self._schedule[0][0] <= now and len(due) < most and looks > 0:
            looks -= 1
            time, key = heappop(self._schedule)
            if self._scheduled.get(key) != time:
                continue  # it was scheduled for an earlier time meanwhile, or has gone
            del self._scheduled[key]
            deadline = self.deadlines.get(key)
            if deadline is None:
                continue
            if deadline <= now:
                due.append(key)
            else:
                self._put(deadline, key)
        return due

    def owned(self, owner: Hashable) -> list[str]:
        """The keys that die with ``owner``."""
        return list(self._of_owner.get(owner, ()))

    def __bool__(self) -> bool:
        """Whether any key has an end."""
        return bool(self.deadlines or self._owners)

    @property
    def has_owners(self) -> bool:
        """Whether any key dies with somebody."""
        return bool(self._owners)

    def is_owned(self, key: str) -> bool:
        """Whether ``key`` dies with somebody."""
        return key in self._owners

    def count_owned(self, owner: Hashable) -> int:
        """How many they are."""
        return len(self._of_owner.get(owner, ()))

    def _set_deadline(self, key: str, deadline: int | None) -> None:
        if deadline is None:
            self.deadlines.pop(key, None)
            return
        self.deadlines[key] = deadline
        place = self._scheduled.get(key)
        if place is None or deadline < place:
            self._put(deadline, key)

    def _put(self, time: int, key: str) -> None:
        self._scheduled[key] = time
        heappush(self._schedule, (time, key))
        if len(self._schedule) > _MOST_STALE + 2 * len(self.deadlines):
            self._scheduled = dict(self.deadlines)
            self._schedule = [(deadline, each) for each, deadline in self.deadlines.items()]
            heapify(self._schedule)

    def _set_owner(self, key: str, owner: Hashable) -> None:
        before = self._owners.get(key)
        if before == owner:
            return
        if before is not None:
            del self._owners[key]
            keys = self._of_owner[before]
            keys.discard(key)
            if not keys:
                del self._of_owner[before]
        if owner is not None:
            self._owners[key] = owner
            self._of_owner.setdefault(owner, set()).add(key)
