"""Key → head, in dictionaries that never grow by more than a few milliseconds at a time.

A CPython dict grows by copying itself in one step: 22 ms for one of a million keys on the machine of the design,
far more later, and nothing else can run meanwhile. Sharding by hash bounds that step, but choosing the shard costs
as much as the lookup itself (measured: 45 ns a key for one dict, 100 ns for ``shards[hash(key) & 255]``). So there
are both:

- ``first``, a single dict, takes new keys until it holds FIRST_KEYS of them. Most stores never need more, and
  readers on the hot path look here directly;
- ``shards`` take the rest, by hash. A key never moves: it stays where it was put until it is removed.

        key ──▶ first (up to 131,072 keys) ──miss──▶ shards[hash(key) & 255]
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import repeat

from kvd.store.heads import Head

# Below the 174,762 at which CPython grows a dict of 2**18 slots (about 4 ms); deletions cannot push it past that.
FIRST_KEYS = 131_072
# Of 64 shards each grows at the same few sizes: at 2.8 million keys two of them in one commit took 15 ms.
SHARDS = 256
# What a key takes besides its characters and its value: head, headers, its places in a dict and in the index; measured.
KEY_BYTES = 200
_MASK = SHARDS - 1


class Keyspace:
    """The current head of every key, tombstones included."""

    __slots__ = ("_is_sharded", "_shards", "bytes", "first")

    def __init__(self) -> None:
        self.first: dict[str, Head] = {}
        self.bytes = 0  # of all keys, without their values
        self._is_sharded = False  # whether there ever was a key in the shards
        self._shards: list[dict[str, Head]] = [{} for _ in range(SHARDS)]

    def find(self, key: str) -> Head | None:
        """The head of ``key``, or None."""
        head = self.first.get(key)
        if head is None:
            return self._shards[hash(key) & _MASK].get(key)
        return head

    def find_all(self, keys: Sequence[str]) -> list[Head | None]:
        """The head of each of ``keys``, None for those that are not there."""
        heads = list(map(self.first.get, keys))
        if self._is_sharded and not all(heads):  # heads are always true
            shards = self._shards
            for number, head in enumerate(heads):
                if head is None:
                    key = keys[number]
                    heads[number] = shards[hash(key) & _MASK].get(key)
        return heads

    def place(self, key: str) -> dict[str, Head]:
        """The dict that holds ``key``, or that has to take it if it is new."""
        first = self.first
        if key in first:
            return first
        shard = self._shards[hash(key) & _MASK]
        if len(first) < FIRST_KEYS and key not in shard:
            return first
        self._is_sharded = True
        return shard

    def supersede(self, writes: Mapping[str, bytes | None], version: int) -> tuple[list[Head | None], tuple[Head, ...]]:
        """Give each key its value of ``version``; the heads that were current (None: a new key), and those that are."""
        # Column by column rather than key by key: each line is one loop in C, or nearly so.
        first = self.first
        previous = list(map(first.get, writes))
        # The keys as the keyspace has them: those that came with the request need not outlive it.
        if all(previous):  # as heads are always true: none of them is missing
            keys = [old.key for old in previous]  # type: ignore[union-attr]
        elif len(first) + len(writes) <= FIRST_KEYS and not self._is_sharded:
            keys = [key if old is None else old.key for key, old in zip(writes, previous, strict=True)]
        else:
            return self._supersede_each(writes, previous, version)
        heads = tuple(map(Head, keys, writes.values(), repeat(version), previous))
        first.update(zip(keys, heads, strict=True))
        return previous, heads

    def _supersede_each(
        self, writes: Mapping[str, bytes | None], previous: list[Head | None], version: int
    ) -> tuple[list[Head | None], tuple[Head, ...]]:
        """The same where shards are concerned; ``previous`` is what there is in ``first``.

        Key by key: of a large dict each look is a cache miss, so a key's shard is looked at once, and changed at once.
        """
        first, shards, heads = self.first, self._shards, list[Head]()
        self._is_sharded = True
        for number, (key, value) in enumerate(writes.items()):
            old, place = previous[number], first
            if old is None:
                shard = shards[hash(key) & _MASK]
                old = previous[number] = shard.get(key)
                if old is not None or len(first) >= FIRST_KEYS:
                    place = shard
            head = Head(key if old is None else old.key, value, version, old)
            place[head.key] = head
            heads.append(head)
        return previous, tuple(heads)

    def has_in_shards(self, keys: Iterable[str]) -> bool:
        """Whether any of ``keys`` is there, but not in ``first``."""
        shards = self._shards
        return self._is_sharded and any(key in shards[hash(key) & _MASK] for key in keys)

    def put_new(self, heads: Sequence[Head]) -> None:
        """Take in ``heads``, whose keys are all different and not there."""
        room = max(FIRST_KEYS - len(self.first), 0)
        self.first.update([(head.key, head) for head in heads[:room]])
        if room < len(heads):
            self._is_sharded = True
            for head in heads[room:]:
                self._shards[hash(head.key) & _MASK][head.key] = head

    def replace_all(self, heads: Iterable[Head]) -> None:
        """Make ``heads`` current, whose keys are all there."""
        first, shards = self.first, self._shards
        for head in heads:
            key = head.key
            if key in first:
                first[key] = head
            else:
                shards[hash(key) & _MASK][key] = head

    def note_new(self, keys: Collection[str]) -> None:
        """Count keys that were put where ``place`` said."""
        self.bytes += KEY_BYTES * len(keys) + sum(map(len, keys))

    def remove(self, key: str) -> None:
        """Forget ``key``, which must be there."""
        del self.place(key)[key]
        self.bytes -= KEY_BYTES + len(key)

    def remove_all(self, heads: Iterable[Head]) -> list[str]:
        """Forget the keys of those of ``heads`` that are current; these keys."""
        first, shards, gone = self.first, self._shards, list[str]()
        for head in heads:
            key = head.key
            if first.get(key) is head:
                del first[key]
                gone.append(key)
            elif (shard := shards[hash(key) & _MASK]).get(key) is head:
                del shard[key]
                gone.append(key)
        self.bytes -= KEY_BYTES * len(gone) + sum(map(len, gone))
        return gone

    def parts(self) -> list[dict[str, Head]]:
        """All the dicts, for work that goes part by part."""
        return [self.first, *self._shards]

    def __len__(self) -> int:
        return len(self.first) + sum(map(len, self._shards))

    def __iter__(self) -> Iterator[str]:
        for part in self.parts():
            yield from part
