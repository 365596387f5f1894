"""The store: every key's versions in memory, changed by commits that happen completely or not at all.

Each commit takes the next **version**, a number that only rises and is never given twice. A key's head is its newest
value, and leads to its older versions:

        key      head
        "cake" ─▶ (value C, version 9) ─▶ (value B, version 4) ─▶ (value A, version 2)

A read at version v walks to the first head at or below v. So a reader of version 5 sees B, however often the key is
written meanwhile, and readers and writers never wait for each other. A deletion is a commit like any other: its head is
a tombstone (value None), which stays until no readable version is older than it.

How a commit changes the store is the matter of ``contents.py``; recovery fills it through ``loading.py``. The history
window (``window.py``) decides how far back one can read, ``isolation.py`` whether a transaction may commit, and
``lifetimes.py`` how long keys live. Nothing here reads a clock: the caller gives the times of commits, and the store
makes sure that they go back only where it says that its clock was set.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from itertools import chain, islice

import msgspec

from kvd.protocol.numbers import is_number
from kvd.store.authors import EVICTED, EXPIRED, NO_AUTHOR, Author
from kvd.store.errors import KeysNotFound, NotANumber, SnapshotGone, VersionAhead
from kvd.store.heads import FORGOTTEN, Head, head_at
from kvd.store.lifetimes import KEEP_TTL, NO_EXPIRY, Expiry
from kvd.store.loading import LoadableContents
from kvd.store.numbers import parse_number
from kvd.store.steps import STEP_KEYS, Steps, slices
from kvd.store.window import Group, WindowLimits

# One page of a scan visits at most this number of keys, including tombstones and keys of other versions. So it takes at
# most a few milliseconds.
SCAN_VISITS = 8_192
# Each batch of commits drops this number of keys more than it adds, so that the window shrinks to a lowered limit.
DROP_BUDGET_KEYS = 8
# Of a commit that is dropped, this number of keys is cut off in one step.
CUT_KEYS = 2_048


class Item(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One key of a scan; ``value`` is None if the request wants keys only."""

    key: str
    value: bytes | None
    version: int


class Page(msgspec.Struct, array_like=True, frozen=True):
    """A stretch of keys in order, and the key from which to go on; None after the last page."""

    items: list[Item]
    next: str | None


class Store(LoadableContents):
    """Versioned keys and values. Times are microseconds since the epoch, sizes bytes."""

    def __init__(self, limits: WindowLimits | None = None) -> None:
        super().__init__(limits)
        self._written_before = 0  # keys written or deleted before the last call of advance
        # Commits of very many keys that were dropped, and what of them is not cut off yet.
        self._uncut: deque[tuple[Group, Iterator[Sequence[Head]]]] = deque()

    # ------------------------------------------------------------------ reading

    def get(self, key: str) -> bytes | None:
        """Return the current value of ``key``, or None."""
        self.counters.get_operations += 1
        try:
            return self.first[key].value
        except KeyError:
            head = self.find(key)
            return None if head is None else head.value

    def get_many(self, keys: list[str], at: int | None = None) -> list[bytes | None]:
        """Return the values of ``keys``, None for absent ones, all current or all as of version ``at``.

        Raises SnapshotGone, VersionAhead.
        """
        if at is None:
            values = self._current_values(keys)
        else:
            values = [None if head is None else head.value for head in self._heads_at(keys, at)]
        self.counters.get_operations += len(keys)
        return values

    def _current_values(self, keys: list[str]) -> list[bytes | None]:
        first = self.first
        try:
            return [first[key].value for key in keys]
        except KeyError:
            find = self.find
            return [None if (head := find(key)) is None else head.value for key in keys]

    def fetch(self, keys: list[str], at: int | None = None) -> list[tuple[bytes | None, int, int | None]]:
        """Return value, version and deadline of each of ``keys``, all current or all (without deadlines) as of ``at``.

        An absent key has None, 0, None.

        Raises SnapshotGone, VersionAhead.
        """
        if at is None:
            rows = list(map(_row, map(self.find, keys), self.lifetimes.deadlines_of(keys)))
        else:
            rows = [_row(head, None) for head in self._heads_at(keys, at)]
        self.counters.get_operations += len(keys)
        return rows

    def _heads_at(self, keys: list[str], at: int) -> list[Head | None]:
        """Return each key's head of version ``at``, whose value is known. Raises SnapshotGone, VersionAhead."""
        self.check_readable(at)
        newest = {key: self.find(key) for key in keys}  # a key that is named twice is searched for once
        heads = {key: None if head is None else head.at(at) for key, head in newest.items()}
        for key, head in heads.items():
            if head is not None and head.value is FORGOTTEN:
                raise SnapshotGone(at, newest[key].known_since(), key)  # type: ignore[union-attr]
        return [heads[key] for key in keys]

    def scan(
        self,
        start: str,
        end: str | None,
        limit: int,
        *,
        at: int | None = None,
        keys_only: bool = False,
        max_bytes: int = 256 * 1024,
    ) -> Page:
        """Return the keys from ``start`` on, before ``end`` (None: no end), in order of their UTF-8 bytes.

        A page ends after ``limit`` keys, about ``max_bytes`` of keys and values, or SCAN_VISITS visited keys; it may be
        empty and still have a ``next``. Raises SnapshotGone, VersionAhead.
        """
        if at is None:
            at = self.version
        self.check_readable(at)
        items: list[Item] = []
        keys = self.living_between(start, end) if at == self.version else self.keys_between(start, end)
        for visits, key in enumerate(keys):
            if len(items) >= limit or visits >= SCAN_VISITS or max_bytes <= 0:
                return Page(items, key)
            newest = self.find(key)
            if newest is not None and (head := newest.at(at)) is not None and head.value is not None:
                if head.value is FORGOTTEN and not keys_only:
                    raise SnapshotGone(at, newest.known_since(), key)
                items.append(Item(key, None if keys_only else head.value, head.version))
                max_bytes -= len(key) + (0 if keys_only else len(head.value))
        return Page(items, None)

    def scan_at(
        self, start: str, end: str | None, limit: int, *, at: int, keys_only: bool, max_bytes: int
    ) -> Steps[Page]:
        """Return a page as ``scan`` does, in steps, because a key may have very many versions newer than ``at``."""
        items: list[Item] = []
        visits, following = 0, start
        while True:
            self.check_readable(at)
            keys = list(islice(self.keys_between(following, end), STEP_KEYS))
            for key in keys:
                if len(items) >= limit or visits >= SCAN_VISITS or max_bytes <= 0:
                    self.check_readable(at)
                    return Page(items, key)
                visits += 1
                newest = self.find(key)
                head = yield from head_at(newest, at)
                if newest is not None and head is not None and head.value is not None:
                    if head.value is FORGOTTEN and not keys_only:
                        raise SnapshotGone(at, newest.known_since(), key)
                    items.append(Item(key, None if keys_only else head.value, head.version))
                    max_bytes -= len(key) + (0 if keys_only else len(head.value))
            if len(keys) < STEP_KEYS:
                self.check_readable(at)
                return Page(items, None)
            following = keys[-1] + "\0"
            yield

    def keys_between(self, start: str, end: str | None) -> Iterator[str]:
        """Yield all keys from ``start`` on, before ``end``, tombstones included. Nothing may be written meanwhile."""
        return merge(self._living.range(start, end), self._deleted.range(start, end))

    def living_between(self, start: str, end: str | None) -> Iterator[str]:
        """Yield the keys that have a value, from ``start`` on, before ``end``. Nothing may be written meanwhile."""
        return self._living.range(start, end)

    def check_readable(self, version: int) -> None:
        """Raise SnapshotGone or VersionAhead unless ``version`` can be read."""
        if version > self.version:
            raise VersionAhead(version, self.version)
        self.window.check_kept(version)

    # ------------------------------------------------------------------ snapshots

    def pin(self) -> int:
        """Keep the current version readable, within the window's limit for pins; return it."""
        self.window.pin(self.version)
        return self.version

    def unpin(self, version: int) -> None:
        """Remove one pin of ``version``. Raises KeyError if it has none."""
        self.window.unpin(version)

    # ------------------------------------------------------------------ writing

    def advance(self, now: int) -> None:
        """Set the time of the next commits. Call this once before each batch of commits.

        It goes back only by ``note_step``: a clock that is a little slow, or is read twice, sets it to what it was.

        It also drops as much of the history over the limits as the commits since the last call added. Doing that once
        a batch instead of once a commit halves the cost of a small commit.
        """
        if now > self.time:
            self.time = now
        written = self.counters.set_operations + self.counters.delete_operations
        budget_keys = written - self._written_before + DROP_BUDGET_KEYS
        self._written_before = written
        if self._uncut:
            self._cut_some()
        if self.retention.is_active:
            self.drop_history(budget_keys)
        elif dropped := self.window.drop(self.time, budget_keys):  # as drop_history does, with one call less
            self._cut(dropped)

    def set(self, entries: Mapping[str, bytes], author: Author = NO_AUTHOR, expiry: Expiry = NO_EXPIRY) -> int:
        """Store all ``entries`` in one commit; return its version (the current one if there are no entries)."""
        self.counters.set_operations += len(entries)
        if expiry is not NO_EXPIRY or self.lifetimes.count or self.lifetimes.owners:
            self._record_expiry(entries, expiry)
        return self._commit(entries, author, list(map(len, entries.values())))

    def write(self, writes: Mapping[str, bytes | None], author: Author = NO_AUTHOR, expiry: Expiry = NO_EXPIRY) -> int:
        """Store values and delete keys (None; missing keys are ignored) in one commit; return its version."""
        entries = {key: value for key, value in writes.items() if value is not None}
        deleted = [key for key, value in writes.items() if value is None]
        if deleted:
            heads = zip(deleted, self.heads_of(deleted), strict=True)
            deleted = [key for key, head in heads if head is not None and head.value is not None]
        self.counters.set_operations += len(entries)
        self.counters.delete_operations += len(deleted)
        self._record_expiry(entries, expiry)
        self.lifetimes.clear(deleted)
        stored = list(map(len, entries.values()))
        return self._commit(entries | dict.fromkeys(deleted) if deleted else entries, author, stored)

    def increment(self, key: str, by: int, author: Author = NO_AUTHOR, expiry: Expiry = KEEP_TTL) -> tuple[int, int]:
        """Add ``by`` to the number stored under ``key`` (0 if absent); return the sum and the version.

        Raises NotANumber, with nothing changed.
        """
        head = self.find(key)
        value = None if head is None else head.value
        total = by if value is None else parse_number(key, value) + by
        if not is_number(total):
            raise NotANumber(key, f"{total} needs more than 64 bits")
        return total, self.set({key: b"%d" % total}, author, expiry)

    def touch(self, keys: list[str], deadline: int | None, author: Author = NO_AUTHOR) -> list[bool]:
        """Give ``keys`` another deadline in one commit that keeps their values; return whether each key exists."""
        heads = zip(keys, self.heads_of(keys), strict=True)
        entries = {key: value for key, head in heads if head is not None and (value := head.value) is not None}
        self.counters.set_operations += len(entries)
        self.lifetimes.set_deadline(entries, deadline)
        self._commit_kept(entries, author)
        return [key in entries for key in keys]

    def _record_expiry(self, entries: Mapping[str, bytes], expiry: Expiry) -> None:
        """Record when ``entries``, which are about to be written, expire."""
        if expiry is NO_EXPIRY:
            self.lifetimes.clear(entries.keys())
        else:
            self.lifetimes.record_write(entries, expiry, _living(self, list(entries)) if expiry.keep else ())

    def set_each(self, batch: list[dict[str, bytes]], author: Author = NO_AUTHOR) -> list[int]:
        """Store each mapping of ``batch`` in a commit of its own, in order; return their versions."""
        if len(batch) == 1 or set(map(len, batch)) != {1}:
            return [self.set(entries, author) for entries in batch]
        keys = list(chain.from_iterable(batch))
        values = list(chain.from_iterable(map(dict.values, batch)))
        return self._commit_each(keys, values, author)

    def delete(self, keys: Iterable[str], author: Author = NO_AUTHOR, *, missing_ok: bool = False) -> tuple[int, int]:
        """Delete all ``keys`` in one commit; return its version and the number of deleted keys.

        A key that is named twice counts once. Raises KeysNotFound, with nothing deleted, if a key does not exist and
        ``missing_ok`` is false.
        """
        tombstones: dict[str, None] = {}
        missing: dict[str, None] = {}
        named = list(keys)
        for key, head in zip(named, self.heads_of(named), strict=True):
            (missing if head is None or head.value is None else tombstones)[key] = None
        if missing and not missing_ok:
            raise KeysNotFound(list(missing))
        self.counters.delete_operations += len(tombstones)
        self.lifetimes.clear(tombstones.keys())
        return self._commit(tombstones, author, []), len(tombstones)

    def expire(self, due: list[str]) -> int:
        """Delete ``due``, the keys whose deadline has passed, in one commit; return its version."""
        heads = zip(due, self.find_all(due), strict=True)
        tombstones = dict.fromkeys(key for key, head in heads if head is not None and head.value is not None)
        self.counters.expired_keys += len(tombstones)
        return self._commit(tombstones, EXPIRED, [])

    def delete_owned(self, owner: Hashable, author: Author = NO_AUTHOR) -> int:
        """Delete the keys of ``owner`` in one commit; return their number."""
        return self.delete(self.lifetimes.owned(owner), author, missing_ok=True)[1]

    # ------------------------------------------------------------------ upkeep

    def drop_history(self, budget_keys: int) -> int:
        """Drop history over the limits, about ``budget_keys`` keys of it; return 0 if there was none.

        Values below prefixes with a shorter history go first, because that leaves more history for all others.
        """
        forgotten = self.retention.forget(self.time, budget_keys) if self.retention.is_active else 0
        dropped = self.window.drop(self.time, budget_keys)
        return forgotten + self._cut(dropped) + len(self._uncut)

    def trim_history(self, size: int, visible: int, budget_keys: int, *, even_pinned: bool) -> int:
        """Drop history until ``size`` bytes are freed, about ``budget_keys`` keys of it; return how many groups.

        No commits after version ``visible`` are dropped. Pinned versions stay, unless ``even_pinned``.
        """
        return self._cut(self.window.trim(size, visible, budget_keys, even_pinned=even_pinned))

    def _cut(self, dropped: list[Group]) -> int:
        for group in dropped:
            if len(group.heads) <= CUT_KEYS:
                self._cut_off(group, group.heads)
            else:
                self._uncut.append((group, slices(group.heads, CUT_KEYS)))
        return len(dropped)

    def _cut_some(self) -> None:
        """Go on with the first large commit that was dropped. No version that can be read needs its links."""
        group, parts = self._uncut[0]
        heads = next(parts, None)
        if heads is None:
            self._uncut.popleft()
        else:
            self._cut_off(group, heads)

    def _cut_off(self, group: Group, heads: Sequence[Head]) -> None:
        for head in heads:
            head.previous = None
        if group.has_tombstones:
            self._forget_deleted(group, heads)

    @property
    def key_bytes(self) -> int:
        """The memory of all keys, including deleted keys that the history still holds."""
        return self._keyspace.bytes

    @property
    def memory_bytes(self) -> int:
        """The memory of keys, values and history."""
        return self._keyspace.bytes + self.counters.value_bytes + self.window.bytes

    def _forget_deleted(self, group: Group, heads: Sequence[Head]) -> None:
        """Remove the keys that ``heads`` deleted and that were not set again: no readable version has their values."""
        removed = self._keyspace.remove_all([head for head in heads if head.value is None])
        if group.author != EVICTED:
            self.forgotten_keys += len(removed)
        self._deleted.discard_all(removed)
        self._flush_if_full()


def _row(head: Head | None, deadline: int | None) -> tuple[bytes | None, int, int | None]:
    return (None, 0, None) if head is None or head.value is None else (head.value, head.version, deadline)


def _living(store: Store, keys: list[str]) -> set[str]:
    heads = zip(keys, store.heads_of(keys), strict=True)
    return {key for key, head in heads if head is not None and head.value is not None}
