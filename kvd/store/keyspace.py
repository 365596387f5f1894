"""Key → head: the current head of every key, in a dict that grows in small steps (``sharded.py``)."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from kvd.store.heads import Head
from kvd.store.sharded import MASK, ShardedDict

# Below the 174,762 keys at which CPython grows a dict of 2**18 slots (about 4 ms). Deletions cannot make it grow
# either.
FIRST_KEYS = 131_072
# The memory of a key in addition to its characters and its value: head, object headers, its places in a dict and in the
# index. Measured.
KEY_BYTES = 200


class Keyspace(ShardedDict[Head]):
    """The current head of every key, tombstones included. ``bytes`` is what all keys take, without their values."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        super().__init__(FIRST_KEYS)
        self.bytes = 0

    def supersede(
        self, writes: Mapping[str, bytes | None], in_first: list[Head | None], version: int
    ) -> tuple[Head, ...]:
        """Give each key its value of ``version``, key by key; return the new heads in the order of ``writes``.

        ``in_first`` are the keys' heads in ``first``, which the caller has looked up already. Each access to a large
        dict is a cache miss, so each key's shard is read once, and written at once.
        """
        first, shards, heads = self.first, self.shards, list[Head]()
        first_keys = self.first_keys
        old: Head | None
        for (key, value), current in zip(writes.items(), in_first, strict=True):
            if current is not None:
                old, place = current, first
            else:
                shard = shards[hash(key) & MASK]
                old = shard.get(key)
                place = first if old is None and len(first) < first_keys else shard
            # Keep the key object that the keyspace has; the one of the request can be freed with the request.
            head = Head(key if old is None else old.key, value, version, old)
            place[head.key] = head
            heads.append(head)
        self.is_sharded = self.is_sharded or len(first) >= first_keys
        return tuple(heads)

    def add_all(self, heads: Sequence[Head]) -> None:
        """Add ``heads``, whose keys are all different and absent."""
        remaining = max(self.first_keys - len(self.first), 0)
        self.first.update([(head.key, head) for head in heads[:remaining]])
        if remaining < len(heads):
            self.is_sharded = True
            for head in heads[remaining:]:
                self.shards[hash(head.key) & MASK][head.key] = head

    def add_by_shard(self, by_shard: Mapping[int, dict[str, Head]], count: int) -> None:
        """Add ``count`` heads, whose keys are all absent, by the number of the shard that would take each."""
        if len(self.first) + count <= self.first_keys and not self.is_sharded:
            for heads in by_shard.values():
                self.first.update(heads)
        elif len(self.first) >= self.first_keys:
            self.is_sharded = self.is_sharded or bool(count)
            for number, heads in by_shard.items():
                self.shards[number].update(heads)
        else:
            self.add_all([head for heads in by_shard.values() for head in heads.values()])

    def replace_all(self, heads: Iterable[Head]) -> None:
        """Make ``heads`` current, whose keys are all there."""
        first, shards = self.first, self.shards
        for head in heads:
            key = head.key
            if key in first:
                first[key] = head
            else:
                shards[hash(key) & MASK][key] = head

    def put_all(self, heads: Iterable[Head]) -> None:
        """Make ``heads`` current, whether their keys are there or new."""
        dict_for = self.dict_for
        for head in heads:
            dict_for(head.key)[head.key] = head

    def count_new(self, keys: Collection[str]) -> None:
        """Count ``keys``, which are new, in ``bytes``."""
        self.bytes += KEY_BYTES * len(keys) + sum(map(len, keys))

    def remove(self, key: str) -> None:
        """Remove ``key``, which must be there."""
        del self.dict_for(key)[key]
        self.bytes -= KEY_BYTES + len(key)

    def remove_all(self, heads: Iterable[Head]) -> list[str]:
        """Remove the keys of those of ``heads`` that are current; return these keys."""
        first, shards, gone = self.first, self.shards, list[str]()
        for head in heads:
            key = head.key
            if first.get(key) is head:
                del first[key]
                gone.append(key)
            elif (shard := shards[hash(key) & MASK]).get(key) is head:
                del shard[key]
                gone.append(key)
        self.bytes -= KEY_BYTES * len(gone) + sum(map(len, gone))
        return gone
