"""The words that one server shares on one connection, and the entries that they prove.

    key ─▶ value, the word of its slot's generation, the generation that came with the value, deadline

    get:   entry ─▶ the word still has that generation ─▶ the lease is valid ─▶ the key has not expired ─▶ value
                 └──────────────── no, or no entry ────────────────▶ fetch, keep ─▶ value

Entries that are not used are dropped: the table has two halves, and new entries go into the younger one. When that is
full it becomes the older half, and the entries of the previous older half are dropped. An entry that is found in the
older half moves to the younger one. So a hit changes nothing, and what was used since the last swap is kept.
"""

from __future__ import annotations

from time import CLOCK_BOOTTIME, clock_gettime_ns, monotonic_ns

from kv.near_cache.entries import entry_bytes
from kv.near_cache.refresh import MAX_ENTRY_BYTES, RefreshQueue
from kvd.protocol.near_cache import FIRST_GENERATION, LEASE, NOTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from kv.near_cache.entries import Entry, NearCacheLimits


class Table:
    """The shared words and the entries of one connection. Threads may share it.

    ``words`` is read word by word: one load each (CPython copies eight aligned bytes), so no word is ever torn.
    """

    __slots__ = ("_half_bytes", "_half_entries", "older", "refresh_queue", "slots", "words", "younger", "younger_bytes")

    def __init__(self, words: memoryview, slots: int, limits: NearCacheLimits) -> None:
        self.words = words
        self.slots = slots
        self.younger: dict[str, Entry] = {}
        self.older: dict[str, Entry] = {}
        self.younger_bytes = 0
        self._half_entries = limits.entries // 2
        self._half_bytes = limits.bytes // 2
        self.refresh_queue = RefreshQueue(slots, words[NOTED])

    def find(self, key: str) -> Entry | None:
        """Return the entry of ``key``, proved or not."""
        entry = self.younger.get(key)
        if entry is None:
            entry = self.older.pop(key, None)
            if entry is not None:
                self._keep(key, entry)
        return entry

    def is_unchanged(self, entry: Entry) -> bool:
        """Whether the server has noted no change of ``entry``, and it has not expired. Says nothing of the lease."""
        deadline = entry[3]
        return self.words[entry[1]] == entry[2] and (deadline is None or clock_gettime_ns(CLOCK_BOOTTIME) < deadline)

    def values_of(self, keys: list[str]) -> dict[str, bytes | None] | None:
        """Return the values of ``keys`` as of one instant; None unless all of them are here and proved."""
        younger, words = self.younger, self.words
        try:
            entries = [younger[key] for key in keys]
        except KeyError:
            return None
        # All entries are taken out before the first is compared. So those that are unchanged now were so together.
        for _, word, generation, deadline in entries:
            if words[word] != generation or (deadline is not None and clock_gettime_ns(CLOCK_BOOTTIME) >= deadline):
                return None
        return {key: entry[0] for key, entry in zip(keys, entries, strict=True)} if self.has_lease else None

    @property
    def has_lease(self) -> bool:
        """Whether the server vouches for the words now. Ask it last, for entries that were found unchanged before."""
        return self.words[LEASE] > monotonic_ns()

    # ------------------------------------------------------------------ keeping

    def fill(self, key: str, fetched: list[Any]) -> None:
        """Keep what a fetch has brought of ``key``, with the generation that came with it, never one read now."""
        value, _, slot, generation, deadline = fetched
        if type(slot) is int and 0 <= slot < self.slots:
            deadline_ns = None if deadline is None else deadline * 1_000
            self._keep(key, (value, FIRST_GENERATION + slot, generation, deadline_ns))

    def refill(self, keys: list[str], fetched: list[list[Any]]) -> None:
        """Keep what a fetch has brought of ``keys``. Fast for entries that are here and have kept their size."""
        younger, slots = self.younger, self.slots
        for key, each in zip(keys, fetched, strict=True):
            value, _, slot, generation, deadline = each
            entry = younger.get(key)
            if (
                entry is None
                or value is None
                or entry[0] is None
                or len(value) != len(entry[0])
                or slot is None
                or not 0 <= slot < slots
            ):
                self.fill(key, each)
                if value is not None and slot is not None and len(value) > MAX_ENTRY_BYTES:
                    self.refresh_queue.drop(FIRST_GENERATION + slot)
            else:
                deadline_ns = None if deadline is None else deadline * 1_000
                younger[key] = (value, FIRST_GENERATION + slot, generation, deadline_ns)

    def _keep(self, key: str, entry: Entry) -> None:
        size = entry_bytes(key, entry)
        if size > self._half_bytes:
            return
        previous = self.younger.get(key)
        if previous is not None:
            size -= entry_bytes(key, previous)
        elif len(self.younger) >= self._half_entries:
            self._swap_halves()
        if self.younger_bytes + size > self._half_bytes:
            self._swap_halves()
            size = entry_bytes(key, entry)
        self.younger[key] = entry
        self.younger_bytes += size

    def _swap_halves(self) -> None:
        self.older, self.younger, self.younger_bytes = self.younger, {}, 0

    # ------------------------------------------------------------------ refreshing

    def take_due(self, excluded: Iterable[str]) -> list[str]:
        """Return the keys to refresh with the next request, without ``excluded``, which it fetches anyway."""
        return self.refresh_queue.take(self.words, self.younger, excluded)
