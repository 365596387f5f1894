"""Key → head, in dictionaries that never grow by more than a few milliseconds at a time.

A CPython dict grows by copying itself in one step: 22 ms for one of a million keys on the machine of the design,
far more later, and nothing else can run meanwhile. Sharding by hash bounds that step, but choosing the shard costs
as much as the lookup itself (measured: 45 ns a key for one dict, 100 ns for ``shards[hash(key) & 63]``). So there
are both:

- ``first``, a single dict, takes new keys until it holds FIRST_KEYS of them. Most stores never need more, and
  readers on the hot path look here directly;
- ``shards`` take the rest, by hash. A key never moves: it stays where it was put until it is removed.

        key ──▶ first (up to 131,072 keys) ──miss──▶ shards[hash(key) & 63]
"""

from collections.abc import Collection, Iterator

from kvd.store.heads import Head

# Below the 174,762 at which CPython grows a dict of 2**18 slots (about 4 ms); deletions cannot push it past that.
FIRST_KEYS = 131_072
SHARDS = 64
# What a key takes besides its characters and its value: head, headers, its places in a dict and in the index; measured.
KEY_BYTES = 200
_MASK = SHARDS - 1


class Keyspace:
    """The current head of every key, tombstones included."""

    __slots__ = ("_shards", "bytes", "first")

    def __init__(self) -> None:
        self.first: dict[str, Head] = {}
        self.bytes = 0  # of all keys, without their values
        self._shards: list[dict[str, Head]] = [{} for _ in range(SHARDS)]

    def find(self, key: str) -> Head | None:
        """The head of ``key``, or None."""
        head = self.first.get(key)
        if head is None:
            return self._shards[hash(key) & _MASK].get(key)
        return head

    def place(self, key: str) -> dict[str, Head]:
        """The dict that holds ``key``, or that has to take it if it is new."""
        first = self.first
        if key in first:
            return first
        shard = self._shards[hash(key) & _MASK]
        return first if len(first) < FIRST_KEYS and key not in shard else shard

    def note_new(self, keys: Collection[str]) -> None:
        """Count keys that were put where ``place`` said."""
        self.bytes += KEY_BYTES * len(keys) + sum(map(len, keys))

    def remove(self, key: str) -> None:
        """Forget ``key``, which must be there."""
        del self.place(key)[key]
        self.bytes -= KEY_BYTES + len(key)

    def parts(self) -> list[dict[str, Head]]:
        """All the dicts, for work that goes part by part."""
        return [self.first, *self._shards]

    def __len__(self) -> int:
        return len(self.first) + sum(map(len, self._shards))

    def __iter__(self) -> Iterator[str]:
        for part in self.parts():
            yield from part
