"""How long keys live: until a deadline, or as long as an owner's connection. Most keys have neither, and cost nothing.

        key ──▶ first (up to 65,536 entries) ───miss──▶ shards[hash(key) & 255]     keys that expire
                  │
                  ▼
                entry (wake_at, key, deadline) ◀── schedule          when to check a key again: at its deadline,
                                                                     or earlier
        owners    key ─▶ owner ─▶ {key…}                             keys that are deleted when their owner goes

Every key with a deadline has one entry that counts, and the schedule (``schedule.py``) returns it at the deadline or
earlier. A later deadline moves no entry: when the schedule returns the entry, it is scheduled again for the new
deadline. So a session that is prolonged a thousand times costs one entry. With an earlier deadline the key gets a new
entry, and the old one is stale.

No step here takes longer than a few milliseconds, however many keys there are. Hence the shards: ``sharded.py`` says
what a single dict would cost, and why there is a first one. And ``take_due`` counts the entries that it visits, not the
keys that it finds, because a million sessions may have been prolonged together.

Times here are in microseconds of a clock that runs evenly (CLOCK_BOOTTIME): setting the wall clock moves no deadline.
"""

from collections.abc import Collection, Hashable, Mapping
from itertools import islice

import msgspec

from kvd.store.schedule import NEVER, Entry, Schedule
from kvd.store.sharded import MASK, ShardedDict

# Half of the keyspace's, so that the two dicts do not grow to their last size, which takes 4 ms, at the same key.
FIRST_KEYS = 65_536
# For more keys, columns are quicker.
_FEW_KEYS = 8


class Expiry(msgspec.Struct, frozen=True, kw_only=True):
    """What a write says about when its keys expire.

    ``keep``: existing keys keep their deadline and owner; only new keys take those given here. ``deadlines``: deadlines
    of single keys, in place of ``deadline``. ``owner``: the keys are deleted when this owner is gone.
    """

    deadline: int | None = None
    deadlines: Mapping[str, int] = {}
    keep: bool = False
    owner: Hashable = None


NO_EXPIRY = Expiry()
KEEP_TTL = Expiry(keep=True)


class Lifetimes:
    """The deadlines and owners of keys, by their latest write.

    ``count`` is the number of keys with a deadline; ``owners`` are the owners of keys that have one, only to be read.
    """

    __slots__ = ("_entries", "_of_owner", "_schedule", "count", "owners")

    def __init__(self) -> None:
        self.count = 0
        self._entries: ShardedDict[Entry] = ShardedDict(FIRST_KEYS)
        self._schedule = Schedule()
        self.owners: dict[str, Hashable] = {}
        self._of_owner: dict[Hashable, set[str]] = {}

    def __len__(self) -> int:
        """The number of deadlines and owners."""
        return self.count + len(self.owners)

    @property
    def next_wake_at(self) -> int | None:
        """The earliest time at which a key may be due; None if no key can be."""
        look = self._schedule.next_wake_at
        return None if look == NEVER else look

    def deadline_of(self, key: str) -> int | None:
        """Return when ``key`` expires; None if it does not."""
        entry = self._entries.find(key)
        return None if entry is None else entry.deadline

    def deadlines_of(self, keys: Collection[str]) -> list[int | None]:
        """Return when each of ``keys`` expires; None for a key that does not."""
        if not self.count:
            return [None] * len(keys)
        entries = self._entries.find_all(keys)
        return [None if entry is None else entry.deadline for entry in entries]

    def record_write(self, keys: Collection[str], expiry: Expiry, existing: Collection[str] = ()) -> None:
        """Record a write of ``keys``; ``existing`` are those that existed before (needed only if ``expiry.keep``)."""
        if not (expiry.deadlines or expiry.keep or self.owners) and expiry.owner is None:
            self.set_deadline(keys, expiry.deadline)
            return
        for key in keys:
            kept = expiry.keep and key in existing
            if not kept:
                self._assign_deadline(key, expiry.deadlines.get(key, expiry.deadline))
            if expiry.owner is not None or (self.owners and not kept):
                self._set_owner(key, expiry.owner)
        if self._schedule.stale:
            self._schedule.compact(self.count, len(keys))

    def set_deadline(self, keys: Collection[str], deadline: int | None) -> None:
        """Give ``keys``, which are all different, another deadline (None: remove it); their owners stay."""
        if len(keys) <= _FEW_KEYS:
            for key in keys:
                self._assign_deadline(key, deadline)
        elif deadline is None:
            self._end_all(keys)
        else:
            self._assign_all(keys, deadline)
        if self._schedule.stale:
            self._schedule.compact(self.count, len(keys))

    def clear(self, keys: Collection[str]) -> None:
        """Clear the deadlines and owners of ``keys``. Usually there are none, and that case is fast."""
        if self.count:
            ended = self._end_all(keys)
            if ended:
                self._schedule.compact(self.count, ended)
        if self.owners:
            self._disown(keys)

    def take_due(self, now: int, max_entries: int) -> list[str]:
        """Remove and return keys whose deadline has passed, visiting at most ``max_entries``; the caller deletes them.

        The result may be empty although keys are due. There may be more as long as ``next_wake_at`` is not after
        ``now``.
        """
        due = self._schedule.take_due(now, max_entries)
        for key in due:
            del self._entries.dict_for(key)[key]
        self.count -= len(due)
        self._schedule.compact(self.count, max_entries)
        if self.owners:
            self._disown(due)
        return due

    def take_due_of(self, keys: Collection[str], now: int) -> list[str]:
        """Remove and return those of ``keys`` whose deadline has passed; the caller deletes them."""
        deadlines = zip(keys, self.deadlines_of(keys), strict=True)
        due = list(dict.fromkeys(key for key, deadline in deadlines if deadline is not None and deadline <= now))
        self.clear(due)
        return due

    def owned(self, owner: Hashable, max_keys: int | None = None) -> list[str]:
        """Return the keys that are deleted with ``owner``, at most ``max_keys`` of them."""
        return list(islice(self._of_owner.get(owner, ()), max_keys))

    def __bool__(self) -> bool:
        """Whether any key has a deadline or an owner."""
        return bool(self.count or self.owners)

    def is_owned(self, key: str) -> bool:
        """Whether ``key`` has an owner."""
        return key in self.owners

    def count_owned(self, owner: Hashable) -> int:
        """Return the number of keys that are deleted with ``owner``."""
        return len(self._of_owner.get(owner, ()))

    def _assign_deadline(self, key: str, deadline: int | None) -> None:
        place = self._entries.dict_for(key)
        before = place.get(key)
        if deadline is None:
            if before is not None:
                self._end(place, key)
        elif before is not None and before.wake_at <= deadline:
            before.deadline = deadline
        else:
            if before is None:
                self.count += 1
            else:
                self._schedule.cancel(before)
            entry = place[key] = Entry(deadline, key, deadline)
            self._schedule.add(entry)

    def _assign_all(self, keys: Collection[str], deadline: int) -> None:
        """As ``_assign_deadline`` for each key, column by column."""
        new, stale = list[Entry](), list[Entry]()
        dict_for = self._entries.dict_for
        for key, before in zip(keys, self._entries.find_all(keys), strict=True):
            if before is not None and before.wake_at <= deadline:
                before.deadline = deadline
                continue
            if before is not None:
                stale.append(before)
            new.append(Entry(deadline, key, deadline))
        self.count += len(new) - len(stale)
        self._schedule.cancel_all(stale)
        entries = self._entries
        if not entries.is_sharded and len(entries.first) + len(new) <= entries.first_keys:
            entries.first.update([(entry.key, entry) for entry in new])
        else:
            for entry in new:
                dict_for(entry.key)[entry.key] = entry
        self._schedule.add_all(new)

    def _end_all(self, keys: Collection[str]) -> int:
        """Clear the deadlines of ``keys``, column by column; return how many there were."""
        found = self._entries.present(keys) if self.count else ()
        first, shards = self._entries.first, self._entries.shards
        gone = [first.pop(key) if key in first else shards[hash(key) & MASK].pop(key) for key in found]
        self._schedule.cancel_all(gone)
        self.count -= len(gone)
        return len(gone)

    def _end(self, place: dict[str, Entry], key: str) -> None:
        self._schedule.cancel(place.pop(key))
        self.count -= 1

    def _disown(self, keys: Collection[str]) -> None:
        for key in self.owners.keys() & keys:
            self._set_owner(key, None)

    def _set_owner(self, key: str, owner: Hashable) -> None:
        before = self.owners.get(key)
        if before == owner:
            return
        if before is not None:
            del self.owners[key]
            keys = self._of_owner[before]
            keys.discard(key)
            if not keys:
                del self._of_owner[before]
        if owner is not None:
            self.owners[key] = owner
            self._of_owner.setdefault(owner, set()).add(key)
