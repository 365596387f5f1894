"""The near cache: values that a client keeps, and answers from as long as it can prove that they are current.

``kvd/protocol/near_cache.py`` says how it is proved. Here is the client's table of what it has fetched:

    key ─▶ value, the word of its slot's generation, that generation as it was told with the value, deadline

    get:   entry ─▶ the word still has that generation ─▶ the lease has not run out ─▶ nor has the key ─▶ value
                 └──────────────── no, or no entry ────────────────▶ fetch, keep ─▶ value

What nobody uses goes: entries stand in two halves, of which the younger takes new ones. When it is full it becomes the
older one, and what the older one still had is dropped; whatever is found there moves back to the younger. So a hit
changes nothing, and what was used since the last change of halves stays.
"""

from __future__ import annotations

import os
from time import CLOCK_BOOTTIME, clock_gettime_ns, monotonic_ns
from weakref import WeakSet

from kv.near_cache.refresh import FIRST_RIDES, FREE_RIDES, MAX_A_REQUEST, MOST_BYTES, RefreshQueue
from kv.results import Record
from kv.wire import operations
from kv.wire.exchange import Exchange
from kvd.protocol.near_cache import FIRST_GENERATION, LEASE, NOTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    from kv.api.procedures import Procedure
    from kv.wire.protocol import ClientProtocol

    Entry = tuple[bytes | None, int, int, int | None]
    T = TypeVar("T")

DEFAULT_ENTRIES = 65_536
DEFAULT_BYTES = 64 * 1024 * 1024
# What an entry takes besides its key's characters and its value.
ENTRY_BYTES = 400
# Nothing rides along with a write of more than so much.
MAX_WRITTEN_BYTES = 64 * 1024


class NearCacheLimits(Record):
    """How much a near cache may hold: keys, and bytes of memory, about. Raises ValueError for less than two keys."""

    __match_args__ = __slots__ = ("bytes", "entries")

    def __init__(self, *, entries: int = DEFAULT_ENTRIES, bytes: int = DEFAULT_BYTES) -> None:  # noqa: A002
        if entries < 2 or bytes < 2 * ENTRY_BYTES:
            raise ValueError(f"a near cache holds at least 2 entries and {2 * ENTRY_BYTES} bytes")
        self.entries = entries
        self.bytes = bytes


class NearCacheStats(Record):
    """What a near cache has done since the client was made, in keys, and what it holds.

    ``hits``: answered here. ``misses``: not known here. ``refetches``: known, but it might have been changed, or the
    server could not be heard of. ``refreshed``: changed, and fetched again along with something else, by nobody's read.
    ``attached``: whether it works now; if it cannot, ``reason`` says why.
    """

    __match_args__ = __slots__ = ("hits", "misses", "refetches", "refreshed", "entries", "bytes", "attached", "reason")

    def __init__(
        self,
        hits: int,
        misses: int,
        refetches: int,
        refreshed: int,
        entries: int,
        bytes: int,  # noqa: A002
        attached: bool,
        reason: str | None,
    ) -> None:
        self.hits = hits
        self.misses = misses
        self.refetches = refetches
        self.refreshed = refreshed
        self.entries = entries
        self.bytes = bytes
        self.attached = attached
        self.reason = reason


class Table:
    """The words that one server shares on one connection, and the entries that they prove. Threads may share it.

    ``words`` is read word by word: one load each (CPython copies eight aligned bytes), so none is ever torn.
    """

    __slots__ = ("_half_bytes", "_half_entries", "demand", "older", "slots", "words", "younger", "younger_bytes")

    def __init__(self, words: memoryview, slots: int, limits: NearCacheLimits) -> None:
        self.words = words
        self.slots = slots
        self.younger: dict[str, Entry] = {}
        self.older: dict[str, Entry] = {}
        self.younger_bytes = 0
        self._half_entries = limits.entries // 2
        self._half_bytes = limits.bytes // 2
        self.demand = RefreshQueue(slots, words[NOTED])

    def find(self, key: str) -> Entry | None:
        """What there is of ``key``, proved or not."""
        entry = self.younger.get(key)
        if entry is None:
            entry = self.older.pop(key, None)
            if entry is not None:
                self._keep(key, entry)
        return entry

    def is_unchanged(self, entry: Entry) -> bool:
        """Whether the server has not told of a change of it, and it has not expired. Says nothing of the lease."""
        deadline = entry[3]
        return self.words[entry[1]] == entry[2] and (deadline is None or clock_gettime_ns(CLOCK_BOOTTIME) < deadline)

    def values_of(self, keys: list[str]) -> dict[str, bytes | None] | None:
        """The values of ``keys`` as of one instant, if all of them are here and proved."""
        younger, words = self.younger, self.words
        try:
            entries = [younger[key] for key in keys]
        except KeyError:
            return None
        # All are taken out before the first is compared: those that are unchanged now were so together just before.
        for _, word, generation, deadline in entries:
            if words[word] != generation or (deadline is not None and clock_gettime_ns(CLOCK_BOOTTIME) >= deadline):
                return None
        return {key: entry[0] for key, entry in zip(keys, entries, strict=True)} if self.has_lease else None

    @property
    def has_lease(self) -> bool:
        """Whether the server vouches for the words now. To be asked last, for what was found unchanged before."""
        return self.words[LEASE] > monotonic_ns()

    def fill(self, key: str, told: list[Any]) -> None:
        """Keep what a fetch has told of ``key``: the generation as well, never one that is looked up now."""
        value, _, slot, generation, deadline = told
        if type(slot) is int and 0 <= slot < self.slots:
            due_ns = None if deadline is None else deadline * 1_000
            self._keep(key, (value, FIRST_GENERATION + slot, generation, due_ns))

    def refill(self, keys: list[str], told: list[list[Any]]) -> None:
        """As fill, of several keys; the short way for what is held and has kept its size."""
        younger, slots = self.younger, self.slots
        for key, each in zip(keys, told, strict=True):
            value, _, slot, generation, deadline = each
            held = younger.get(key)
            if (
                held is None
                or value is None
                or held[0] is None
                or len(value) != len(held[0])
                or slot is None
                or not 0 <= slot < slots
            ):
                self.fill(key, each)
                if value is not None and slot is not None and len(value) > MOST_BYTES:
                    self.demand.drop(FIRST_GENERATION + slot)
            else:
                due_ns = None if deadline is None else deadline * 1_000
                younger[key] = (value, FIRST_GENERATION + slot, generation, due_ns)

    def _keep(self, key: str, entry: Entry) -> None:
        size = _bytes_of(key, entry)
        if size > self._half_bytes:
            return
        before = self.younger.get(key)
        if before is not None:
            size -= _bytes_of(key, before)
        elif len(self.younger) >= self._half_entries:
            self._turn_over()
        if self.younger_bytes + size > self._half_bytes:
            self._turn_over()
            size = _bytes_of(key, entry)
        self.younger[key] = entry
        self.younger_bytes += size

    def _turn_over(self) -> None:
        self.older, self.younger, self.younger_bytes = self.younger, {}, 0


def _size_of(written: object) -> int:
    """How many bytes of values a write names."""
    return sum(len(value or b"") for value in written.values()) if isinstance(written, dict) else 0


def _bytes_of(key: str, entry: Entry) -> int:
    return ENTRY_BYTES + len(key) + len(entry[0] or b"")


class DecodedObjects:
    """What was made of values, each for as long as the near cache answers with that very value."""

    __slots__ = ("_made", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._made: dict[str, tuple[bytes, object, object]] = {}

    def of(self, key: str, value: bytes, decode: Callable[[bytes], T]) -> T:
        """What ``decode`` makes of ``value``, or made of it before."""
        known = self._made.get(key)
        # Not equal: the same object. A value that was fetched again may be another one that looks alike.
        if known is not None and known[0] is value and known[1] is decode:
            return known[2]  # type: ignore[return-value]  # decode made it
        made = decode(value)
        if len(self._made) >= self._most:
            self._made.clear()
        self._made[key] = value, decode, made
        return made


class NearCache:
    """A client's near cache, over all its connections: ``stats()`` tells how it does."""

    __slots__ = ("__weakref__", "_nothing", "hits", "limits", "misses", "reason", "refetches", "refreshed", "table")

    def __init__(self, limits: NearCacheLimits) -> None:
        self.limits = limits
        self.hits = self.misses = self.refetches = self.refreshed = 0
        self.reason: str | None = None
        self._nothing = Table(memoryview(bytes(8 * (FIRST_GENERATION + 1))).cast("Q"), 0, limits)
        # Whose words and entries belong together: who answers takes it once. Nothing is ever in it while detached.
        self.table = self._nothing
        _caches.add(self)

    def stats(self) -> NearCacheStats:
        """What it has done, and what it holds."""
        table = self.table
        entries = {**table.older, **table.younger}
        held_bytes = sum(_bytes_of(key, entry) for key, entry in entries.items())
        attached = table is not self._nothing
        reason = None if attached else self.reason
        counted = self.hits, self.misses, self.refetches, self.refreshed
        return NearCacheStats(*counted, len(entries), held_bytes, attached, reason)

    def attach(self, channel: ClientProtocol) -> None:
        """From now on ``channel`` is in use: its words count, if it has any, and there are no entries."""
        if channel.table is not None:
            self.table = channel.table
            self.reason = None

    def detach(self, channel: ClientProtocol) -> None:
        """A connection is over: give back its words, and forget everything if they are those in use."""
        table, channel.table = channel.table, None
        if table is self.table:
            self.table = self._nothing

    # ------------------------------------------------------------------ reading

    def answer(self, key: str) -> Entry | None:
        """The entry of ``key``, if it is current."""
        table = self.table
        entry = table.younger.get(key) or table.find(key)
        if entry is None:
            self.misses += 1
        elif table.is_unchanged(entry) and table.has_lease:
            self.hits += 1
            return entry
        else:
            self.refetches += 1
        return None

    def get_many(self, keys: Iterable[str]) -> Procedure[dict[str, bytes | None]]:
        """The steps of reading ``keys`` as of one instant, as many of them as possible from here."""
        wanted = list(dict.fromkeys(keys))
        table = self.table
        values = table.values_of(wanted)
        if values is not None:
            self.hits += len(values)
            return values
        found = {key: table.find(key) for key in wanted}
        # As above: taken out, and then compared.
        entries = {key: entry for key, entry in found.items() if entry is not None and table.is_unchanged(entry)}
        if not table.has_lease:
            entries = {}
        self._count(found, entries)
        missing = [key for key in wanted if key not in entries]
        if missing:
            delivery: Exchange = yield Exchange((operations.fetch_entries(missing),))
            told = self._filled(missing, delivery)
            if entries and not self._are_current(entries.values(), table, delivery):
                delivery = yield Exchange((operations.fetch_entries(wanted),))
                told, entries = self._filled(wanted, delivery), {}
        else:
            told = {}
        return {key: entries[key][0] if key in entries else told[key] for key in wanted}

    def _are_current(self, entries: Iterable[Entry], table: Table, delivery: Exchange) -> bool:
        """Whether ``entries`` still are as when the server answered: together with its answer they are one instant."""
        same = delivery.channel is not None and delivery.channel.table is table
        return same and all(map(table.is_unchanged, entries)) and table.has_lease

    def _filled(self, keys: list[str], delivery: Exchange) -> dict[str, bytes | None]:
        """What was fetched, once it is kept."""
        told = delivery.result()
        self.fill(keys, told, delivery)
        return {key: each[0] for key, each in zip(keys, told, strict=True)}

    def fill(self, keys: list[str], told: list[list[Any]], delivery: Exchange) -> None:
        """Keep what ``delivery`` has fetched, with the words of the connection that it came by."""
        table = delivery.channel.table if delivery.channel is not None else None
        if table is not None:
            for key, each in zip(keys, told, strict=True):
                table.fill(key, each)

    # ------------------------------------------------------------------ fetching along

    def fetched(self, keys: list[str], told: list[list[Any]], channel: ClientProtocol | None) -> bytes | None:
        """The value of the first of ``keys``, which a read did not find current. All are kept; the rest rode along."""
        key, value, slot = keys[0], told[0][0], told[0][2]
        table = channel.table if channel is not None else None
        if table is not None:
            if slot is not None:
                rides = FREE_RIDES if key in table.younger else FIRST_RIDES
                table.demand.add(key, value, FIRST_GENERATION + slot, rides)
            table.fill(key, told[0])
            if len(keys) > 1:
                table.refill(keys[1:], told[1:])
                self.refreshed += len(keys) - 1
        found: bytes | None = value
        return found

    def riders_of_write(self, request: tuple[Any, ...]) -> list[str]:
        """What to fetch behind a write: of what it writes, and of what else has changed, the keys in demand."""
        table = self.table
        if not table.demand:
            return []
        named = request[1]
        keys = (named,) if type(named) is str else named
        if len(keys) > MAX_A_REQUEST or _size_of(named) > MAX_WRITTEN_BYTES:
            return []
        own = []
        for key in keys:
            entry = table.younger.get(key)
            if entry is not None and table.demand.has(key, entry[1]):
                own.append(key)
        return [*own, *table.demand.take(table, own)]

    def rode_along(self, keys: list[str], told: object, channel: ClientProtocol | None) -> None:
        """What was fetched behind a write, or the error that this came to."""
        table = channel.table if channel is not None else None
        if type(told) is list and table is not None:
            table.refill(keys, told)
            self.refreshed += len(keys)
        else:
            self.give_up(keys)

    def give_up(self, keys: Iterable[str]) -> None:
        """These could not be fetched along: for all that is known, because of one of them."""
        table = self.table
        for key in keys:
            entry = table.younger.get(key)
            if entry is not None:
                table.demand.drop(entry[1])

    def _count(self, found: dict[str, Entry | None], entries: dict[str, Entry]) -> None:
        misses = sum(entry is None for entry in found.values())
        self.hits += len(entries)
        self.misses += misses
        self.refetches += len(found) - len(entries) - misses


_caches: WeakSet[NearCache] = WeakSet()


def _forget_all() -> None:
    """In a forked child: its connection will be another, with words of its own."""
    for cache in list(_caches):
        cache.table = cache._nothing


os.register_at_fork(after_in_child=_forget_all)
