"""The store: every key's versions in memory, changed by commits that happen completely or not at all.

Each commit takes the next **version**, a number that only rises and is never given twice. A key's head is its
newest value; older versions hang behind it:

        key      head
        "cake" ─▶ (value C, version 9) ─▶ (value B, version 4) ─▶ (value A, version 2)

Reading at version v means walking to the first head at or below v. So a reader of version 5 sees B, however often
the key is written meanwhile, and readers and writers never wait for each other. A deletion is a commit like any
other: its head is a tombstone (value None), which stays until no readable version is older than it.

**Paths of a commit.** ``_commit_key_by_key`` is the reference path: right for all writes in every state, and taken
where keys lie in the shards of a large keyspace. The others are fast paths, which leave the store as the reference path
does: ``_commit_one`` for one key, and those of ``batch.py`` for many keys, column by column. All of them count in one
place, ``_account``.

How far back one may read is the history window's matter (``window.py``), whether a transaction may commit is
``isolation.py``'s, how long keys live ``lifetimes.py``'s. Nothing here reads a clock: commit times come from the
caller and are made never to go back.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat

import msgspec

from kvd.store import batch as batches
from kvd.store.authors import EVICTED, EXPIRED, NOBODY, Author
from kvd.store.errors import KeysNotFound, NotANumber, SnapshotGone, VersionAhead
from kvd.store.heads import FORGOTTEN, Head
from kvd.store.index import PENDING_KEYS, OrderedIndex
from kvd.store.keyspace import Keyspace
from kvd.store.lifetimes import KEEP_TTL, NO_EXPIRY, Expiry, Lifetimes
from kvd.store.numbers import is_number, parse_number
from kvd.store.retention import Retention
from kvd.store.window import GROUP_BYTES, PLACE_BYTES, SUPERSEDED_BYTES, Group, Window, WindowLimits

# One page of a scan looks at no more keys than this, tombstones and keys of another version included, so that it
# ends in a few milliseconds whatever it meets.
SCAN_VISITS = 8_192
# Each batch of commits drops this much more history than it adds, so that the window shrinks to a lowered limit.
DROP_BUDGET_KEYS = 8


class Counters:
    """What the metrics report, exact after every operation; operations are counted per key."""

    __slots__ = (
        "delete_operations",
        "evicted_keys",
        "expired_keys",
        "get_operations",
        "keys",
        "set_operations",
        "value_bytes",
    )

    def __init__(self) -> None:
        self.keys = 0
        self.value_bytes = 0
        self.set_operations = 0
        self.get_operations = 0
        self.delete_operations = 0
        self.expired_keys = 0
        self.evicted_keys = 0


class Item(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """One key of a scan; ``value`` is None where only keys were asked for."""

    key: str
    value: bytes | None
    version: int


class Page(msgspec.Struct, array_like=True, frozen=True):
    """A stretch of keys in order, and the key from which to go on (None: that was all)."""

    items: list[Item]
    next: str | None


class Store:
    """Versioned keys and values. Times are microseconds since the epoch, sizes bytes."""

    def __init__(self, limits: WindowLimits | None = None) -> None:
        self.version = 0
        self.counters = Counters()
        self.window = Window(limits or WindowLimits())
        self.retention = Retention(self.window)
        self.lifetimes = Lifetimes()
        self._keyspace = Keyspace()
        self._index = OrderedIndex()
        self.time = 0
        # No value stored so far was larger: what the replies to a batch of reads can come to.
        self.largest_value_bytes = 0
        # How many keys there are no more that were deleted, or expired: all but evicted ones. Only rises.
        self.forgotten_keys = 0
        self._written_before = 0
        # The hot path's way in: most keys' heads, tombstones included. A key that is not here may still exist.
        self.first: Mapping[str, Head] = self._keyspace.first
        self.find: Callable[[str], Head | None] = self._keyspace.find
        self.find_all: Callable[[Sequence[str]], list[Head | None]] = self._keyspace.find_all

    # ------------------------------------------------------------------ reading

    def get(self, key: str) -> bytes | None:
        """The current value of ``key``, or None."""
        self.counters.get_operations += 1
        try:
            return self.first[key].value
        except KeyError:
            head = self.find(key)
            return None if head is None else head.value

    def get_many(self, keys: list[str], at: int | None = None) -> list[bytes | None]:
        """The values of ``keys``, None for absent ones, all current or all as of version ``at``.

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
        """Value, version and deadline of each of ``keys``; None, 0, None for absent ones. No deadline if ``at``.

        Raises SnapshotGone, VersionAhead.
        """
        if at is None:
            seen = list(map(_seen, map(self.find, keys), self.lifetimes.deadlines_of(keys)))
        else:
            seen = [_seen(head, None) for head in self._heads_at(keys, at)]
        self.counters.get_operations += len(keys)
        return seen

    def _heads_at(self, keys: list[str], at: int) -> list[Head | None]:
        """Each key's head of version ``at``, whose value is known. Raises SnapshotGone, VersionAhead."""
        self.check_readable(at)
        newest = {key: self.find(key) for key in keys}  # one that is named twice is looked for once
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
        """The keys from ``start`` on, before ``end`` (None: no end), in order of their UTF-8 bytes.

        A page ends after ``limit`` keys, about ``max_bytes`` of keys and values, or SCAN_VISITS keys looked at; it
        may be empty and still have a ``next``. Raises SnapshotGone, VersionAhead.
        """
        if at is None:
            at = self.version
        self.check_readable(at)
        items: list[Item] = []
        for visits, key in enumerate(self.keys_between(start, end)):
            if len(items) >= limit or visits >= SCAN_VISITS or max_bytes <= 0:
                return Page(items, key)
            newest = self.find(key)
            if newest is not None and (head := newest.at(at)) is not None and head.value is not None:
                if head.value is FORGOTTEN and not keys_only:
                    raise SnapshotGone(at, newest.known_since(), key)
                items.append(Item(key, None if keys_only else head.value, head.version))
                max_bytes -= len(key) + (0 if keys_only else len(head.value))
        return Page(items, None)

    def keys_between(self, start: str, end: str | None) -> Iterator[str]:
        """All keys from ``start`` on, before ``end``, tombstones included. Nothing may be written meanwhile."""
        return self._index.range(start, end)

    def check_readable(self, version: int) -> None:
        """Raise SnapshotGone or VersionAhead unless ``version`` can be read."""
        if version < self.window.oldest_readable:
            raise SnapshotGone(version, self.window.oldest_readable)
        if version > self.version:
            raise VersionAhead(version, self.version)

    # ------------------------------------------------------------------ snapshots

    def pin(self) -> int:
        """Keep the current version readable, within the window's limit for pins; return it."""
        self.window.pin(self.version)
        return self.version

    def unpin(self, version: int) -> None:
        """Give back one pin of ``version``. Raises KeyError if it has none."""
        self.window.unpin(version)

    # ------------------------------------------------------------------ writing

    def advance(self, now: int) -> None:
        """Set the time of the commits that follow; time never goes back. To be called once before a batch of them.

        It also drops as much of the history over the limits as the commits since the last call added. Doing that
        once a batch instead of once a commit halves the cost of a small commit.
        """
        if now > self.time:
            self.time = now
        written = self.counters.set_operations + self.counters.delete_operations
        self.drop_history(written - self._written_before + DROP_BUDGET_KEYS)
        self._written_before = written

    def set(self, entries: Mapping[str, bytes], author: Author = NOBODY, life: Expiry = NO_EXPIRY) -> int:
        """Store all ``entries`` in one commit; return its version (the current one where there are none)."""
        self.counters.set_operations += len(entries)
        self._give_life(entries, life)
        return self._commit(entries, author, list(map(len, entries.values())))

    def write(self, writes: Mapping[str, bytes | None], author: Author = NOBODY, life: Expiry = NO_EXPIRY) -> int:
        """Store values and delete keys (None; missing ones are passed over) in one commit; return its version."""
        entries = {key: value for key, value in writes.items() if value is not None}
        deleted = [key for key, value in writes.items() if value is None and self.exists(key)]
        self.counters.set_operations += len(entries)
        self.counters.delete_operations += len(deleted)
        self._give_life(entries, life)
        self.lifetimes.ended(deleted)
        stored = list(map(len, entries.values()))
        return self._commit(entries | dict.fromkeys(deleted) if deleted else entries, author, stored)

    def increment(self, key: str, by: int, author: Author = NOBODY, life: Expiry = KEEP_TTL) -> tuple[int, int]:
        """Add ``by`` to the number stored under ``key`` (absent: 0); return the sum and the version.

        Raises NotANumber, with nothing changed.
        """
        head = self.find(key)
        value = None if head is None else head.value
        total = by if value is None else parse_number(key, value) + by
        if not is_number(total):
            raise NotANumber(key, f"{total} needs more than 64 bits")
        return total, self.set({key: b"%d" % total}, author, life)

    def touch(self, keys: list[str], deadline: int | None, author: Author = NOBODY) -> list[bool]:
        """Give ``keys`` another deadline in one commit that leaves their values; whether each exists."""
        found = {key: self.exists(key) for key in keys}
        entries = {key: self.find(key).value for key in found if found[key]}  # type: ignore[union-attr]
        self.counters.set_operations += len(entries)
        self.lifetimes.touched(entries, deadline)
        self._commit(entries, author, list(map(len, entries.values())))  # type: ignore[arg-type]
        return [found[key] for key in keys]

    def _give_life(self, entries: Mapping[str, bytes], life: Expiry) -> None:
        """Note how long ``entries``, which are about to be written, live."""
        if life is NO_EXPIRY:
            self.lifetimes.ended(entries.keys())
        else:
            self.lifetimes.written(entries, life, {key for key in entries if self.exists(key)} if life.keep else ())

    def exists(self, key: str) -> bool:
        """Whether ``key`` has a value now."""
        head = self.find(key)
        return head is not None and head.value is not None

    def set_each(self, batch: list[dict[str, bytes]], author: Author = NOBODY) -> list[int]:
        """Store each mapping of ``batch`` in a commit of its own, in order; return their versions."""
        if len(batch) == 1 or set(map(len, batch)) != {1}:
            return [self.set(entries, author) for entries in batch]
        keys = list(chain.from_iterable(batch))
        values = list(chain.from_iterable(map(dict.values, batch)))
        self.counters.set_operations += len(keys)
        self.lifetimes.ended(keys)
        versions = list(range(self.version + 1, self.version + 1 + len(keys)))
        heads, new, superseded, size = batches.write_each(self._keyspace, keys, values, versions)
        if new:
            self._add_to_index(new)
        self._account(heads, superseded, size, list(map(len, values)), len(keys), author)
        return versions

    def delete(self, keys: Iterable[str], author: Author = NOBODY, *, missing_ok: bool = False) -> tuple[int, int]:
        """Delete all ``keys`` in one commit; return the version and how many there were.

        A key named twice counts once. Raises KeysNotFound, with nothing deleted, if one does not exist and
        ``missing_ok`` is false.
        """
        tombstones: dict[str, None] = {}
        missing: dict[str, None] = {}
        for key in keys:
            head = self.find(key)
            (missing if head is None or head.value is None else tombstones)[key] = None
        if missing and not missing_ok:
            raise KeysNotFound(list(missing))
        self.counters.delete_operations += len(tombstones)
        self.lifetimes.ended(tombstones.keys())
        return self._commit(tombstones, author, []), len(tombstones)

    def expire(self, due: list[str]) -> int:
        """Delete keys whose lives have ended as their deadlines came, in one commit; its version."""
        heads = zip(due, map(self.find, due), strict=True)
        gone = dict.fromkeys(key for key, head in heads if head is not None and head.value is not None)
        self.counters.expired_keys += len(gone)
        return self._commit(gone, EXPIRED, [])

    def evict(self, heads: Sequence[Head]) -> int:
        """Delete the keys of ``heads`` in one commit; return its version.

        The heads must be current, all different, and have values.
        """
        keys = [head.key for head in heads]
        self.counters.evicted_keys += len(keys)
        self.lifetimes.ended(keys)
        tombstones, _, superseded, size = batches.delete_heads(self._keyspace, keys, heads, self.version + 1)
        self._account(tombstones, superseded, size, (), 1, EVICTED)
        return self.version

    def bury(self, owner: Hashable, author: Author = NOBODY) -> int:
        """Delete the keys that die with ``owner``, in one commit; how many there were."""
        return self.delete(self.lifetimes.owned(owner), author, missing_ok=True)[1]

    def _commit(self, writes: Mapping[str, bytes | None], author: Author, stored: list[int]) -> int:
        """Apply ``writes`` (None deletes a key, which must exist) as one version; ``stored`` are its values' sizes."""
        if not writes:
            return self.version
        if len(writes) == 1:
            ((key, value),) = writes.items()
            return self._commit_one(key, value, author)
        in_first, version = list(map(self.first.get, writes)), self.version + 1
        written = batches.write_all(self._keyspace, writes, in_first, version)
        if written is None:
            return self._commit_key_by_key(writes, in_first, stored, author)
        heads, new, superseded, size = written
        if new:
            self._add_to_index(new)
        self._account(heads, superseded, size, stored, 1, author)
        return version

    def _commit_key_by_key(
        self, writes: Mapping[str, bytes | None], in_first: list[Head | None], stored: list[int], author: Author
    ) -> int:
        """Apply ``writes``, which are not empty, as one version: the reference path.

        ``in_first`` are the keys' heads in the keyspace's first dict, ``stored`` the sizes of the values.
        """
        heads = self._keyspace.supersede(writes, in_first, self.version + 1)
        new = [head.key for head in heads if head.previous is None]
        superseded = [len(value) for head in heads if (old := head.previous) and (value := old.value) is not None]
        if new:
            self._add_to_index(new)
        self._account(heads, len(superseded), sum(superseded), stored, 1, author)
        return self.version

    def _commit_one(self, key: str, value: bytes | None, author: Author) -> int:
        """The fast path for one key: columns of one would cost twice as much."""
        place, version = self._keyspace.dict_for(key), self.version + 1
        old = place.get(key)
        head = Head(key if old is None else old.key, value, version, old)
        place[head.key] = head
        if old is None:
            self._keyspace.count_new((key,))
            self._index.add(key)
            self._bring_in_order()
        superseded = None if old is None else old.value
        stored = () if value is None else (len(value),)
        if superseded is None:
            self._account((head,), 0, 0, stored, 1, author)
        else:
            self._account((head,), 1, len(superseded), stored, 1, author)
        return version

    def _account(
        self,
        heads: tuple[Head, ...],
        superseded: int,
        superseded_bytes: int,
        stored: Sequence[int],
        commits: int,
        author: Author,
    ) -> None:
        """Count what ``heads``, which are current by now, changed, and add them to the window as one group.

        ``superseded``: how many values they superseded, of
        ``superseded_bytes``. ``stored``: the sizes of their values, tombstones left out.
        """
        counters, values = self.counters, len(stored)
        counters.keys += values - superseded
        counters.value_bytes -= superseded_bytes
        if stored:
            counters.value_bytes += sum(stored)
            if (largest := max(stored)) > self.largest_value_bytes:
                self.largest_value_bytes = largest
        size = GROUP_BYTES + PLACE_BYTES * len(heads) + SUPERSEDED_BYTES * superseded + superseded_bytes
        self.window.append(Group(self.time, author, heads, commits, size, values < len(heads)))
        self.version = heads[-1].version

    def _add_to_index(self, keys: Collection[str]) -> None:
        """Add ``keys``, which are new."""
        self._keyspace.count_new(keys)
        self._index.add_all(keys)
        self._bring_in_order()

    def _bring_in_order(self) -> None:
        """Bring noted keys into the index, in bulk: paid by whoever noted the last of them."""
        if self._index.pending >= PENDING_KEYS:
            self._index.flush()

    # ------------------------------------------------------------------ from and to disk

    def parts(self) -> list[dict[str, Head]]:
        """All current heads, tombstones included, in dicts that are small enough to be listed in one step."""
        return self._keyspace.parts()

    def load(self, keys: list[str], values: list[bytes], versions: list[int]) -> None:
        """Put values of a checkpoint into the store.

        A key comes twice, the newer last, if it was deleted, forgotten and set anew while the checkpoint was written.
        """
        if any(map(self.find, keys)):
            for key, value, version in zip(keys, values, versions, strict=True):
                self.catch_up(version, [(key, value)], 0)
            return
        self._keyspace.put_all(map(Head, keys, values, versions, repeat(None)))
        self._add_to_index(keys)
        self.counters.keys += len(keys)
        self.counters.value_bytes += sum(map(len, values))
        self.largest_value_bytes = max(self.largest_value_bytes, max(map(len, values), default=0))

    def replay(
        self, version: int, time: int, author: Author, commits: int, writes: list[tuple[str, bytes | None]]
    ) -> None:
        """Make commits of the log again, exactly as they were: all under ``version``, or each under the next one.

        Whoever does this drops history now and then.
        """
        self.time = max(self.time, time)
        self.version = version - 1
        if len(writes) == 1:
            self._commit_one(*writes[0], author)
        elif commits == 1:
            self._commit(dict(writes), author, [len(value) for _, value in writes if value is not None])
        else:
            batch = [{key: value} for key, value in writes if value is not None]
            if len(batch) != commits:
                raise ValueError("a group of several commits deletes nothing")
            self.set_each(batch, author)

    def catch_up(self, version: int, writes: list[tuple[str, bytes | None]], step: int) -> None:
        """Take over what is newer than what a checkpoint had, without history.

        ``step`` is how far it is from one version to the next.
        """
        for key, value in writes:
            head = self.find(key)
            seen = 0 if head is None else head.version
            if version > seen:
                self._overwrite(key, value, version, head)
            version += step

    def _overwrite(self, key: str, value: bytes | None, version: int, head: Head | None) -> None:
        if head is None:
            if value is not None:
                self.load([key], [value], [version])
            return
        self.counters.value_bytes += len(value or b"") - len(head.value or b"")
        if value is None:
            self.counters.keys -= 1
            self._keyspace.remove(key)
            self._index.discard(key)
        else:
            self._keyspace.dict_for(key)[key] = Head(key, value, version, None)
            self.largest_value_bytes = max(self.largest_value_bytes, len(value))

    def begin_history(self, version: int, time: int) -> None:
        """From here on everything is known; nothing before ``version`` can be read."""
        self.version = self.window.oldest_readable = version
        self.time = self.window.oldest_time = time

    # ------------------------------------------------------------------ upkeep

    def drop_history(self, budget_keys: int) -> int:
        """Drop history over the limits, about ``budget_keys`` keys of it; 0 if there was none.

        First the values below prefixes that have a shorter history: then all others have more of it.
        """
        forgotten = self.retention.forget(self.time, budget_keys) if self.retention else 0
        return forgotten + self._cut(self.window.drop(self.time, budget_keys))

    def trim_history(self, size: int, shown: int, *, even_pinned: bool) -> None:
        """Drop history until ``size`` bytes of it are gone, or all up to the commit of version ``shown``.

        What is pinned stays, unless ``even_pinned``.
        """
        self._cut(self.window.squeeze(size, shown, even_pinned=even_pinned))

    def _cut(self, dropped: list[Group]) -> int:
        for group in dropped:
            for head in group.heads:
                head.previous = None
            if group.has_tombstones:
                self._forget_deleted(group)
        return len(dropped)

    @property
    def key_bytes(self) -> int:
        """What keys take, those of deletions that the history holds among them."""
        return self._keyspace.bytes

    @property
    def memory_bytes(self) -> int:
        """What keys, values and history take."""
        return self._keyspace.bytes + self.counters.value_bytes + self.window.bytes

    def _forget_deleted(self, group: Group) -> None:
        """Nobody can see anything before these tombstones any more: forget the keys that were not set again."""
        gone = self._keyspace.remove_all([head for head in group.heads if head.value is None])
        if group.author != EVICTED:
            self.forgotten_keys += len(gone)
        self._index.discard_all(gone)
        self._bring_in_order()


def _seen(head: Head | None, deadline: int | None) -> tuple[bytes | None, int, int | None]:
    return (None, 0, None) if head is None or head.value is None else (head.value, head.version, deadline)
