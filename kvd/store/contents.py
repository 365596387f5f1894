"""The contents of a store: its keys, history and counters, and the paths by which a commit changes them.

**Paths of a commit.** ``_commit_key_by_key`` is the reference path. It is correct for all writes in every state, and is
taken if keys lie in the shards of a large keyspace. All other paths are fast paths, and leave the store as the
reference path does: ``_commit_one`` for one key, and those of ``batch.py`` for many keys, column by column. All paths
count in one place, ``_account``.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

from kvd.store import batch
from kvd.store.authors import EVICTED, Author
from kvd.store.draft import Draft
from kvd.store.heads import Head
from kvd.store.index import PENDING_KEYS, OrderedIndex
from kvd.store.keyspace import Keyspace
from kvd.store.lifetimes import Lifetimes
from kvd.store.retention import Retention
from kvd.store.steps import Steps
from kvd.store.window import GROUP_BYTES, PLACE_BYTES, SUPERSEDED_BYTES, Group, Window, WindowLimits


class Counters:
    """What the metrics report: exact after every operation; operations are counted per key."""

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


class Contents:
    """Versioned keys and values, without most operations on them (``store.py``)."""

    def __init__(self, limits: WindowLimits | None = None) -> None:
        self.version = 0
        self.counters = Counters()
        self.window = Window(limits or WindowLimits())
        self.retention = Retention(self.window)
        self.lifetimes = Lifetimes()
        self._keyspace = Keyspace()
        # The keys in order: those that have a value, and the deleted ones that the history still holds. A scan of the
        # present walks the first only, so a queue or a lock costs the same however often it was used.
        self._living = OrderedIndex()
        self._deleted = OrderedIndex()
        self.time = 0
        # No value so far was larger. It bounds the size of the replies to a batch of reads.
        self.largest_value_bytes = 0
        # The number of keys that were removed after they were deleted or expired, evicted ones excepted. Only rises.
        self.forgotten_keys = 0
        # Each takes note of the heads of all commits, for as long as it is here (``following.py``).
        self.followers: list[deque[tuple[Head, ...]]] = []
        # What was prepared for a commit of very many keys.
        self.draft: Draft | None = None
        # The hot path's way in: the heads of most keys, tombstones included. A key that is absent here may still exist.
        self.first: Mapping[str, Head] = self._keyspace.first
        self.find: Callable[[str], Head | None] = self._keyspace.find
        self.find_all: Callable[[Sequence[str]], list[Head | None]] = self._keyspace.find_all

    def exists(self, key: str) -> bool:
        """Whether ``key`` has a value now."""
        head = self.find(key)
        return head is not None and head.value is not None

    def heads_of(self, keys: Collection[str]) -> list[Head | None]:
        """Return the current heads of ``keys``; from the draft, if there is one of them, because that is quicker."""
        if self.draft is not None and (drafted := self.draft.take(keys)) is not None:
            return [head.previous for head in drafted]
        return self._keyspace.find_all(keys)

    def evict(self, heads: Sequence[Head]) -> int:
        """Delete the keys of ``heads`` in one commit; return its version.

        The heads must be current, all different, and have values.
        """
        keys = [head.key for head in heads]
        self.counters.evicted_keys += len(keys)
        self.lifetimes.clear(keys)
        tombstones, _, superseded, size = batch.delete_heads(self._keyspace, keys, heads, self.version + 1)
        self._account(tombstones, 0, superseded, size, (), 1, EVICTED)
        return self.version

    def parts(self) -> list[dict[str, Head]]:
        """Return all current heads, tombstones included, in dicts that are small enough to be listed in one step."""
        return self._keyspace.parts()

    def part_of(self, key: str) -> int:
        """Return which of ``parts`` holds ``key``, which must be there."""
        return self._keyspace.part_of(key)

    def __len__(self) -> int:
        """The number of keys, tombstones included."""
        return len(self._keyspace)

    # ------------------------------------------------------------------ the paths of a commit

    def _commit(self, writes: Mapping[str, bytes | None], author: Author, stored: list[int]) -> int:
        """Apply ``writes`` (None deletes a key, which must exist) as one version; ``stored`` are the values' sizes."""
        if not writes:
            return self.version
        if len(writes) == 1:
            ((key, value),) = writes.items()
            return self._commit_one(key, value, author)
        if self.draft is not None and (drafted := self.draft.take(writes)) is not None:
            return self._commit_draft(self.draft, drafted, writes, stored, author)
        in_first, version = list(map(self.first.get, writes)), self.version + 1
        written = batch.write_all(self._keyspace, writes, in_first, version)
        if written is None:
            return self._commit_key_by_key(writes, in_first, stored, author)
        heads, new, superseded, size = written
        if new:
            self._add_to_index(new)
        self._account(heads, len(new), superseded, size, stored, 1, author)
        return version

    def _commit_kept(self, entries: Mapping[str, bytes], author: Author) -> None:
        """Give keys the values that they have again, as one version that shares them with the one before it."""
        if entries:
            self._commit(entries, author, list(map(len, entries.values())))
            self.window.share_newest()

    def _commit_draft(
        self, draft: Draft, heads: list[Head], writes: Mapping[str, bytes | None], stored: list[int], author: Author
    ) -> int:
        """Apply ``writes`` as one version with heads that were prepared: a fast path for very many keys."""
        version = self.version + 1
        for head, value in zip(heads, writes.values(), strict=True):
            head.version = version
            head.value = value
        new, superseded, size = draft.publish(self._keyspace, heads)
        if new:
            self._add_to_index(new)
        self._account(tuple(heads), len(new), superseded, size, stored, 1, author)
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
        self._account(heads, len(new), len(superseded), sum(superseded), stored, 1, author)
        return self.version

    def _commit_one(self, key: str, value: bytes | None, author: Author) -> int:
        """Commit one key: a fast path, because columns of one key would cost twice as much."""
        place, version = self._keyspace.dict_for(key), self.version + 1
        old = place.get(key)
        head = Head(key if old is None else old.key, value, version, old)
        place[head.key] = head
        if old is None:
            self._keyspace.count_new((key,))
            self._living.add(key)
            self._flush_if_full()
        stored = () if value is None else (len(value),)
        if old is None:
            self._account((head,), 1, 0, 0, stored, 1, author)
        elif (superseded := old.value) is None:
            self._account((head,), 0, 0, 0, stored, 1, author)
        else:
            self._account((head,), 0, 1, len(superseded), stored, 1, author)
        return version

    def _commit_each(self, keys: list[str], values: list[bytes], author: Author) -> list[int]:
        """Give each of ``keys`` its value in a commit of its own; return the versions."""
        count, begin = len(keys), self.version + 1
        self.counters.set_operations += count
        self.lifetimes.clear(keys)
        versions = list(range(begin, begin + count))
        heads, new, superseded, size = batch.write_each(self._keyspace, keys, values, versions)
        if new:
            self._add_to_index(new)
        self._account(heads, len(new), superseded, size, list(map(len, values)), count, author)
        return versions

    def _account(
        self,
        heads: tuple[Head, ...],
        new: int,
        superseded: int,
        superseded_bytes: int,
        stored: Sequence[int],
        commits: int,
        author: Author,
    ) -> None:
        """Count the changes of ``heads``, which are current by now, and add them to the window as one group.

        ``new`` is the number of keys that were absent from the keyspace, ``superseded`` the number of values that the
        heads superseded, ``superseded_bytes`` the size of these. ``stored`` are the sizes of their own values, without
        tombstones.
        """
        counters, values = self.counters, len(stored)
        counters.keys += values - superseded
        counters.value_bytes -= superseded_bytes
        if stored:
            counters.value_bytes += sum(stored)
            if (largest := max(stored)) > self.largest_value_bytes:
                self.largest_value_bytes = largest
        if values < len(heads) or new + superseded < len(heads):
            self._move_in_indexes(heads)
        size = GROUP_BYTES + PLACE_BYTES * len(heads) + SUPERSEDED_BYTES * superseded + superseded_bytes
        if self.followers:
            for noted in self.followers:
                noted.append(heads)
        self.window.append(Group(self.time, author, heads, commits, size, values < len(heads)))
        self.version = heads[-1].version

    def _add_to_index(self, keys: Collection[str]) -> None:
        """Add ``keys``, which are new, to the index, and count them."""
        self._keyspace.count_new(keys)
        self._living.add_all(keys)
        self._flush_if_full()

    def _move_in_indexes(self, heads: Sequence[Head]) -> None:
        """Move the keys that ``heads`` deleted to the deleted ones, and those that they brought back to the living."""
        died = [head.key for head in heads if head.value is None]
        revived = [head.key for head in heads if (old := head.previous) is not None and old.value is None]
        self._living.discard_all(died)
        self._deleted.add_all(died)
        self._deleted.discard_all(revived)
        self._living.add_all(revived)
        self._flush_if_full()

    def _flush_if_full(self) -> None:
        """Flush notes of an index if it has too many. The commit that noted the last key pays for all of them.

        After a commit of very many keys others pay, too, or ``flush_in_steps`` is called.
        """
        for index in (self._living, self._deleted):
            if index.pending >= PENDING_KEYS:
                index.flush(2 * PENDING_KEYS)

    def flush_in_steps(self) -> Steps[None]:
        """Flush the indexes until they have few notes."""
        for index in (self._living, self._deleted):
            while index.pending >= PENDING_KEYS:
                index.flush(PENDING_KEYS)
                yield
