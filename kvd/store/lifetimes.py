"""How long keys live: until a deadline, or as long as somebody's connection. Most keys do neither, and cost nothing.

        key ──▶ first (up to 65,536 entries) ───miss──▶ shards[hash(key) & 255]     of keys that expire
                  │
                  ▼
                entry (place, key, deadline) ◀── schedule            when to look at a key again, at the latest
                                                                     at its deadline
        owners    key ─▶ owner ─▶ {key…}                             of keys that are deleted when their owner goes

Every key with a deadline has one entry that counts, whose place in the schedule (``schedule.py``) is at the deadline
or before it. A later deadline moves nothing: whoever finds the entry at its old place puts it at its new one. So a
session that is prolonged a thousand times costs one entry. With an earlier deadline the key gets another entry, and
the old one is stale.

Nothing here is done in one step that grows with the number of keys beyond a few milliseconds. Hence the shards: see
``sharded.py`` for what a single dict would cost, and for why there is a first one. And ``take_due`` counts the entries
that it looks at, not the keys that it finds, for a million sessions may have been prolonged together.

Times here are of a clock that runs evenly (CLOCK_BOOTTIME), in microseconds: setting the wall clock moves no deadline.
"""

from collections.abc import Collection, Hashable, Mapping

import msgspec

from kvd.store.schedule import NEVER, Entry, Schedule
from kvd.store.sharded import ShardedDict

# Half as many as of the keyspace: not both dicts grow to their last size, which takes 4 ms, at the same key.
FIRST_KEYS = 65_536


class Expiry(msgspec.Struct, frozen=True, kw_only=True):
    """What a write says about the lives of its keys.

    ``keep``: keys that exist keep the life they have, and deadlines count for new ones only. ``deadlines``: those of
    keys with one of their own. ``owner``: the keys are deleted when this owner is gone.
    """

    deadline: int | None = None
    deadlines: Mapping[str, int] = {}
    keep: bool = False
    owner: Hashable = None


NO_EXPIRY = Expiry()
KEEP_TTL = Expiry(keep=True)


class Lifetimes:
    """The lives of keys, by their latest write. ``count``: how many have a deadline."""

    __slots__ = ("_entries", "_of_owner", "_owners", "_schedule", "count")

    def __init__(self) -> None:
        self.count = 0
        self._entries: ShardedDict[Entry] = ShardedDict(FIRST_KEYS)
        self._schedule = Schedule()
        self._owners: dict[str, Hashable] = {}
        self._of_owner: dict[Hashable, set[str]] = {}

    def __len__(self) -> int:
        """How many keys do not simply live on."""
        return self.count + len(self._owners)

    @property
    def next_look(self) -> int | None:
        """When a key may be due; None while none can be."""
        look = self._schedule.next_look
        return None if look == NEVER else look

    def deadline_of(self, key: str) -> int | None:
        """When ``key`` expires; None if it does not."""
        entry = self._entries.find(key)
        return None if entry is None else entry.deadline

    def deadlines_of(self, keys: Collection[str]) -> list[int | None]:
        """When each of ``keys`` expires; None for those that do not."""
        if not self.count:
            return [None] * len(keys)
        entries = self._entries.find_all(keys)
        return [None if entry is None else entry.deadline for entry in entries]

    def written(self, keys: Collection[str], life: Expiry, existing: Collection[str] = ()) -> None:
        """``keys`` were written; those in ``existing`` were there before (asked for only if ``life.keep``)."""
        for key in keys:
            kept = life.keep and key in existing
            if not kept:
                self._set_deadline(key, life.deadlines.get(key, life.deadline))
            if life.owner is not None or (self._owners and not kept):
                self._set_owner(key, life.owner)
        if self._schedule.stale:
            self._schedule.tend(self.count, len(keys))

    def touched(self, keys: Collection[str], deadline: int | None) -> None:
        """``keys`` got another deadline, and keep their owner."""
        for key in keys:
            self._set_deadline(key, deadline)
        if self._schedule.stale:
            self._schedule.tend(self.count, len(keys))

    def ended(self, keys: Collection[str]) -> None:
        """``keys`` were deleted, or written without any end: what most writes do to most keys is nothing."""
        if self.count:
            found = self._entries.present(keys)
            if found:
                for key in found:
                    self._end(self._entries.dict_for(key), key)
                self._schedule.tend(self.count, len(found))
        if self._owners:
            self._disown(keys)

    def take_due(self, now: int, most: int) -> list[str]:
        """Keys whose deadline has come: their lives have ended, the caller deletes them. It looks at ``most`` at most.

        That may find none though some are due: there can be more while ``next_look`` is not later than ``now``.
        """
        due = self._schedule.take_due(now, most)
        for key in due:
            del self._entries.dict_for(key)[key]
        self.count -= len(due)
        self._schedule.tend(self.count, most)
        if self._owners:
            self._disown(due)
        return due

    def take_due_of(self, keys: Collection[str], now: int) -> list[str]:
        """Those of ``keys`` whose deadline has come: their lives have ended, the caller deletes them."""
        found = zip(keys, self.deadlines_of(keys), strict=True)
        due = list(dict.fromkeys(key for key, deadline in found if deadline is not None and deadline <= now))
        self.ended(due)
        return due

    def owned(self, owner: Hashable) -> list[str]:
        """The keys that die with ``owner``."""
        return list(self._of_owner.get(owner, ()))

    def __bool__(self) -> bool:
        """Whether any key has an end."""
        return bool(self.count or self._owners)

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
        place = self._entries.dict_for(key)
        before = place.get(key)
        if deadline is None:
            if before is not None:
                self._end(place, key)
        elif before is not None and before.place <= deadline:
            before.deadline = deadline
        else:
            if before is None:
                self.count += 1
            else:
                self._schedule.abandon(before)
            entry = place[key] = Entry(deadline, key, deadline)
            self._schedule.add(entry)

    def _end(self, place: dict[str, Entry], key: str) -> None:
        self._schedule.abandon(place.pop(key))
        self.count -= 1

    def _disown(self, keys: Collection[str]) -> None:
        for key in self._owners.keys() & keys:
            self._set_owner(key, None)

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
