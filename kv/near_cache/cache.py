"""A client's near cache over all its connections: which table is in use, what is read from it, and how well it works.

``kvd/protocol/near_cache.py`` has the proof that what is read here is current; ``table.py`` has the entries.
"""

from __future__ import annotations

import os
from weakref import WeakSet

from kv.near_cache.entries import NearCacheLimits, entry_bytes, fetch_entries
from kv.near_cache.refresh import FIRST_REFRESH_BUDGET, MAX_KEYS_PER_REQUEST, REFRESH_BUDGET
from kv.near_cache.table import Table
from kv.results import Record
from kv.wire.exchange import Exchange
from kvd.protocol.near_cache import FIRST_GENERATION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    from kv.api.procedures import Procedure
    from kv.near_cache.entries import Entry
    from kv.wire.protocol import ClientProtocol

    T = TypeVar("T")

# No refresh is added to a write of more bytes than this.
MAX_WRITTEN_BYTES = 64 * 1024


class NearCacheStats(Record):
    """What a near cache has done since the client was made, in keys, and what it holds.

    ``hits``: answered here. ``misses``: not known here. ``refetches``: known, but perhaps changed, or the server could
    not be heard. ``refreshed``: changed, and fetched again along with another request, not by a read. ``attached``:
    whether it works now; if it cannot, ``reason`` says why.
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


class DecodedObjects:
    """Decoded values. Each object is kept for as long as the near cache answers with that very value."""

    __slots__ = ("_max_objects", "_objects")

    def __init__(self, max_objects: int) -> None:
        self._max_objects = max_objects
        self._objects: dict[str, tuple[bytes, object, object]] = {}

    def of(self, key: str, value: bytes, decode: Callable[[bytes], T]) -> T:
        """Return what ``decode`` makes of ``value``, or made of it before."""
        kept = self._objects.get(key)
        # The same object, not an equal one: a value that was fetched again may be another one that looks alike.
        if kept is not None and kept[0] is value and kept[1] is decode:
            return kept[2]  # type: ignore[return-value]  # decode returned it
        decoded = decode(value)
        if len(self._objects) >= self._max_objects:
            self._objects.clear()
        self._objects[key] = value, decode, decoded
        return decoded


class NearCache:
    """A client's near cache, over all its connections. ``stats()`` says how well it works."""

    __slots__ = (
        "__weakref__",
        "_detached",
        "decoded",
        "hits",
        "limits",
        "misses",
        "reason",
        "refetches",
        "refreshed",
        "table",
    )

    def __init__(self, limits: NearCacheLimits) -> None:
        self.limits = limits
        self.hits = self.misses = self.refetches = self.refreshed = 0
        self.reason: str | None = None
        self.decoded = DecodedObjects(limits.entries)
        # A table of no slots, which never has an entry, stands in while no connection is attached.
        self._detached = Table(memoryview(bytes(8 * (FIRST_GENERATION + 1))).cast("Q"), 0, limits)
        # The words and entries in use. They belong together, so a reader loads this attribute once.
        self.table = self._detached
        _caches.add(self)

    def stats(self) -> NearCacheStats:
        """Return what it has done, and what it holds."""
        table = self.table
        entries = {**table.older, **table.younger}
        held_bytes = sum(entry_bytes(key, entry) for key, entry in entries.items())
        attached = table is not self._detached
        reason = None if attached else self.reason
        counters = self.hits, self.misses, self.refetches, self.refreshed
        return NearCacheStats(*counters, len(entries), held_bytes, attached, reason)

    def attach(self, protocol: ClientProtocol) -> None:
        """Use the table of this connection from now on, if it has one. It has no entries yet."""
        if protocol.near_table is not None:
            self.table = protocol.near_table
            self.reason = None

    def detach(self, protocol: ClientProtocol) -> None:
        """Release the table of a closed connection, and forget all entries if it is the table in use."""
        table, protocol.near_table = protocol.near_table, None
        if table is self.table:
            self.table = self._detached

    # ------------------------------------------------------------------ reading

    def answer(self, key: str) -> Entry | None:
        """Return the entry of ``key``, if it is current."""
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
        candidates = {key: table.find(key) for key in wanted}
        # As in Table.values_of: all are taken out before any is compared.
        current = {key: entry for key, entry in candidates.items() if entry is not None and table.is_unchanged(entry)}
        if not table.has_lease:
            current = {}
        self._count(candidates, current)
        missing = [key for key in wanted if key not in current]
        fetched: dict[str, bytes | None] = {}
        if missing:
            exchange: Exchange = yield Exchange((fetch_entries(missing),))
            fetched = self._fill_and_read(missing, exchange)
            if current and not self._are_still_current(current.values(), table, exchange):
                exchange = yield Exchange((fetch_entries(wanted),))
                fetched, current = self._fill_and_read(wanted, exchange), {}
        return {key: current[key][0] if key in current else fetched[key] for key in wanted}

    def _are_still_current(self, entries: Iterable[Entry], table: Table, exchange: Exchange) -> bool:
        """Whether ``entries`` are as they were when the server replied; with its reply they are one instant then."""
        is_same = exchange.protocol is not None and exchange.protocol.near_table is table
        return is_same and all(map(table.is_unchanged, entries)) and table.has_lease

    def _fill_and_read(self, keys: list[str], exchange: Exchange) -> dict[str, bytes | None]:
        """Keep the entries that an exchange has fetched; return their values."""
        entries = exchange.result()
        self.fill(keys, entries, exchange)
        return {key: entry[0] for key, entry in zip(keys, entries, strict=True)}

    def fill(self, keys: list[str], fetched: list[list[Any]], exchange: Exchange) -> None:
        """Keep what ``exchange`` has fetched, in the table of the connection that it came on."""
        table = _table_of(exchange.protocol)
        if table is not None:
            for key, each in zip(keys, fetched, strict=True):
                table.fill(key, each)

    def _count(self, candidates: dict[str, Entry | None], current: dict[str, Entry]) -> None:
        misses = sum(entry is None for entry in candidates.values())
        self.hits += len(current)
        self.misses += misses
        self.refetches += len(candidates) - len(current) - misses

    # ------------------------------------------------------------------ piggy-backed refreshes

    def on_read_reply(self, keys: list[str], fetched: list[list[Any]], protocol: ClientProtocol | None) -> bytes | None:
        """Keep what a read has fetched: its own key, and after it the piggy-backed ones. Returns the first value."""
        key, value, slot = keys[0], fetched[0][0], fetched[0][2]
        table = _table_of(protocol)
        if table is not None:
            if slot is not None:
                budget = REFRESH_BUDGET if key in table.younger else FIRST_REFRESH_BUDGET
                table.refresh_queue.add(key, value, FIRST_GENERATION + slot, budget)
            table.fill(key, fetched[0])
            if len(keys) > 1:
                table.refill(keys[1:], fetched[1:])
                self.refreshed += len(keys) - 1
        first_value: bytes | None = value
        return first_value

    def piggyback_keys(self, request: tuple[Any, ...]) -> list[str]:
        """Return the queued keys to fetch after a write: those that it writes, and others that have changed."""
        table = self.table
        if not table.refresh_queue:
            return []
        written = request[1]
        keys = (written,) if type(written) is str else written
        if len(keys) > MAX_KEYS_PER_REQUEST or _value_bytes(written) > MAX_WRITTEN_BYTES:
            return []
        own = []
        for key in keys:
            entry = table.younger.get(key)
            if entry is not None and table.refresh_queue.has(key, entry[1]):
                own.append(key)
        return [*own, *table.take_due(own)]

    def on_piggyback_reply(self, keys: list[str], fetched: object, protocol: ClientProtocol | None) -> None:
        """Keep what was fetched after a write. ``fetched`` is an error if that failed."""
        table = _table_of(protocol)
        if type(fetched) is list and table is not None:
            table.refill(keys, fetched)
            self.refreshed += len(keys)
        else:
            self.stop_refreshing(keys)

    def stop_refreshing(self, keys: Iterable[str]) -> None:
        """Take keys out of the queue: a refresh of them failed, and any of them may be the reason."""
        table = self.table
        for key in keys:
            entry = table.younger.get(key)
            if entry is not None:
                table.refresh_queue.drop(entry[1])


def _table_of(protocol: ClientProtocol | None) -> Table | None:
    return None if protocol is None else protocol.near_table


def _value_bytes(written: object) -> int:
    """Return how many bytes of values a write has."""
    return sum(len(value or b"") for value in written.values()) if isinstance(written, dict) else 0


_caches: WeakSet[NearCache] = WeakSet()


def _detach_all() -> None:
    """Forget all entries in a forked child: its connection will be another, with a table of its own."""
    for cache in list(_caches):
        cache.table = cache._detached


os.register_at_fork(after_in_child=_detach_all)
