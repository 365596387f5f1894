"""A dict that never grows by more than a few milliseconds at a time.

A CPython dict grows by copying itself in one step: 22 ms for one of a million keys on the machine of the design, far
more later, and nothing else can run meanwhile. Sharding by hash bounds that step, but choosing the shard costs as much
as the lookup itself (measured: 45 ns a key for one dict, 100 ns for ``shards[hash(key) & 255]``). So there are both:

- ``first``, a single dict, takes new keys until it holds ``first_keys`` of them. Most stores never need more, and the
  hot path reads it directly.
- ``shards`` take the other keys, by hash. A key never moves: it stays in its dict until it is removed.

        key ──▶ first (up to first_keys keys) ──miss──▶ shards[hash(key) & 255]
"""

from collections.abc import Collection, Iterable, Iterator
from typing import Generic, TypeVar

# With 64 shards, growing took too long: all of them grow at the same few sizes, and at 2.8 million keys two shards that
# grew in one commit took 15 ms.
SHARDS = 256
MASK = SHARDS - 1

Value = TypeVar("Value")


class ShardedDict(Generic[Value]):
    """A dict of strings in one first dict and 256 shards. Every value must be true, as Structs are."""

    __slots__ = ("first", "first_keys", "is_sharded", "shards")

    def __init__(self, first_keys: int) -> None:
        self.first: dict[str, Value] = {}
        self.first_keys = first_keys
        self.is_sharded = False  # whether a shard may hold a key
        self.shards: list[dict[str, Value]] = [{} for _ in range(SHARDS)]

    def find(self, key: str) -> Value | None:
        """Return the value of ``key``, or None."""
        value = self.first.get(key)
        if value is None:
            return self.shards[hash(key) & MASK].get(key)
        return value

    def find_all(self, keys: Collection[str]) -> list[Value | None]:
        """Return the value of each of ``keys``, None for an absent one."""
        values = list(map(self.first.get, keys))
        if self.is_sharded and not all(values):
            shards, found = self.shards, zip(keys, values, strict=True)
            return [shards[hash(key) & MASK].get(key) if value is None else value for key, value in found]
        return values

    def present(self, keys: Collection[str]) -> set[str]:
        """Return those of ``keys`` that are there."""
        found = self.first.keys() & keys
        if self.is_sharded:
            shards = self.shards
            found.update([key for key in keys if key in shards[hash(key) & MASK]])
        return found

    def has_in_shards(self, keys: Iterable[str]) -> bool:
        """Whether any of ``keys`` is in a shard."""
        shards = self.shards
        return self.is_sharded and any(key in shards[hash(key) & MASK] for key in keys)

    def dict_for(self, key: str) -> dict[str, Value]:
        """Return the dict that holds ``key``, or that must take it if it is new."""
        first = self.first
        if key in first:
            return first
        is_full = len(first) >= self.first_keys
        if not (is_full or self.is_sharded):
            return first
        shard = self.shards[hash(key) & MASK]
        if not is_full and key not in shard:
            return first
        self.is_sharded = True
        return shard

    def parts(self) -> list[dict[str, Value]]:
        """Return all the dicts, for work that goes part by part."""
        return [self.first, *self.shards]

    def part_of(self, key: str) -> int:
        """The number, in ``parts``, of the dict that holds ``key`` or would take it."""
        return 0 if self.dict_for(key) is self.first else 1 + (hash(key) & MASK)

    def __len__(self) -> int:
        return len(self.first) + sum(map(len, self.shards))

    def __iter__(self) -> Iterator[str]:
        for part in self.parts():
            yield from part
