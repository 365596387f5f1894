"""Transactions: reads of one instant, and writes that are all made if nothing that was read has changed.

Optimistic: nothing is locked, and the daemon validates at the end (the rule is in ``kvd/store/isolation.py``). On the
wire:

    first read      [begin, fetch(keys, at=-1)]      one frame: a snapshot, and a read at it
    later reads     [fetch(keys, at=snapshot)]       only of keys that were neither read nor written before
    commit          [commit(writes, reads, ranges, snapshot), end(snapshot)]

So an uncontended read-modify-write is two round trips. Writes alone need no snapshot, and never conflict. Reads alone
need no commit, because they are of one instant already.
"""

from __future__ import annotations

from kv.api.procedures import CallUser, YieldItems, bounds, send
from kv.api.retry import retry
from kv.api.scopes import ClientScope, WithBlock
from kv.api.snapshots import end_snapshot
from kv.methods import Blocking, pages, procedure
from kv.wire import operations
from kv.wire.exchange import Exchange
from kv.wire.operations import BEGUN, binary, milliseconds, number_or_none, text, texts, write_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import timedelta
    from typing import Any, Self, TypeVar

    from kv.api.procedures import Pages, Procedure
    from kv.results import Item, Versioned
    from kv.wire.operations import Operation, Range
    from kv.wire.protocol import ClientProtocol

    T = TypeVar("T")

_PAGE_KEYS = 1_000


class TransactionCalls(ClientScope):
    """What a transaction has read, and what it is going to write.

    ``snapshot`` is the version that it reads at, None before the first read. ``version`` is that of its commit, None
    before the commit, and for a transaction without writes.
    """

    _what = "a transaction"

    def __init__(
        self,
        client: Any,  # noqa: ANN401
        *,
        ttl: float | timedelta | None = None,
        keep_ttl: bool = False,
        ephemeral: bool = False,
        sync: bool | None = None,
    ) -> None:
        super().__init__(client)
        self.snapshot: int | None = None
        self.version: int | None = None
        self._options = write_options(ttl, keep_ttl, ephemeral, sync)
        self._reads: dict[str, Versioned] = {}
        self._ranges: list[Range] = []
        self._writes: dict[str, bytes | None] = {}
        self._ttls: dict[str, int] = {}
        self._protocol: ClientProtocol | None = None  # of the connection that keeps the snapshot
        self._store_id: str | None = None
        self._over = False

    # ------------------------------------------------------------------ reading

    @procedure
    def get(self, key: str, default: bytes | None = None) -> Procedure[bytes | None]:
        """The value of ``key`` as this transaction sees it, ``default`` if it has none."""
        values = yield from self._values([text(key)])
        value = values[key]
        return default if value is None else value

    @procedure
    def get_many(self, keys: Iterable[str]) -> Procedure[dict[str, bytes | None]]:
        """The values of ``keys`` as this transaction sees them, None for absent ones."""
        values = yield from self._values(texts(keys))
        return values

    @pages
    def scan(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        keys_only: bool = False,
    ) -> Pages[Item]:
        """The keys that begin with ``prefix``, or from ``start`` on and before ``end``, in order; its own writes too.

        The whole scanned range counts as read, also where it has no key. Writes during the iteration may be missed.
        """
        limit = number_or_none(limit, "a limit")
        following: str | None
        following, stop = bounds(prefix, start, end)
        while following is not None and (limit is None or limit > 0):
            size = _PAGE_KEYS if limit is None else min(limit, _PAGE_KEYS)
            first = following
            items, following = yield from self._read(
                lambda at, first=first, size=size: operations.scan(first, stop, size, at, keys_only)  # type: ignore[misc]
            )
            page_end = stop if following is None else following
            self._add_range(first, page_end)
            visible = self._with_own_writes(items, first, page_end, keys_only)[:limit]
            yield YieldItems(visible)
            if limit is not None:
                limit -= len(visible)

    def _values(self, keys: list[str]) -> Procedure[dict[str, bytes | None]]:
        self._check_open()
        unread = [key for key in dict.fromkeys(keys) if key not in self._writes and key not in self._reads]
        if unread:
            fetched = yield from self._read(lambda at: operations.fetch(unread, at))
            self._reads.update(fetched)
        return {key: self._writes[key] if key in self._writes else self._reads[key].value for key in keys}

    def _read(self, operation_at: Callable[[int], Operation[T]]) -> Procedure[T]:
        """Read at the snapshot; the first read begins it."""
        self._check_open()
        result: T
        if self.snapshot is None:
            exchange = yield from send(operations.begin(), operation_at(BEGUN))
            self.snapshot = exchange.result(0)
            self._protocol = exchange.protocol
            self._store_id = exchange.protocol.store_id if exchange.protocol is not None else None
            result = exchange.result(1)
        else:
            exchange = yield from send(operation_at(self.snapshot), store_id=self._store_id)
            result = exchange.result()
        return result

    def _add_range(self, start: str, end: str | None) -> None:
        if self._ranges and self._ranges[-1][1] == start:
            start = self._ranges.pop()[0]
        self._ranges.append((start, end))

    def _with_own_writes(self, items: list[Item], start: str, end: str | None, keys_only: bool) -> list[Item]:
        """Return a page with this transaction's writes between ``start`` and ``end`` in it."""
        from kv.results import Item

        own = {key: value for key, value in self._writes.items() if key >= start and (end is None or key < end)}
        if not own:
            return items
        visible = [item for item in items if item.key not in own]
        visible += [Item(key, None if keys_only else value, 0) for key, value in own.items() if value is not None]
        return sorted(visible, key=lambda item: item.key)

    # ------------------------------------------------------------------ writing

    def set(self, key: str, value: bytes, *, ttl: float | timedelta | None = None) -> None:
        """Store ``value`` under ``key`` when the transaction commits; ``ttl`` is for this key alone."""
        self._check_open()
        key = text(key)
        self._writes[key] = binary(value)
        self._ttls.pop(key, None)
        if ttl is not None:
            self._ttls[key] = milliseconds(ttl)

    def delete(self, *keys: str) -> None:
        """Delete those of ``keys`` that exist when the transaction commits."""
        self._check_open()
        self._writes.update(dict.fromkeys(texts(keys)))
        for key in keys:
            self._ttls.pop(key, None)

    def _check_open(self) -> None:
        self._check_process()
        if self._over:
            raise RuntimeError("the transaction is over; begin another")

    # ------------------------------------------------------------------ entering and leaving

    def _enter(self) -> Procedure[Self]:
        self._check_open()
        return self
        yield  # makes this a procedure, of no steps: the first read begins the snapshot

    def _leave(self, failed: bool) -> Procedure[None]:
        if self._over:
            return
        if failed or not self._writes:
            yield from self._give_up()
        else:
            yield from self._commit()

    def _commit(self) -> Procedure[None]:
        self._over = True
        if self._ttls:
            self._options["ttls"] = self._ttls
        if self.snapshot is None:
            commits = [operations.commit(self._writes, None, (), None, self._options)]
        else:
            reads = {key: versioned.version for key, versioned in self._reads.items()}
            commits = [operations.commit(self._writes, reads, self._ranges, self.snapshot, self._options)]
        ends = [] if self.snapshot is None else [operations.end(self.snapshot, self._protocol)]
        exchange: Exchange = yield Exchange((*commits, *ends), self._store_id)
        self.version = exchange.result(0)

    def _give_up(self) -> Procedure[None]:
        self._over = True
        if self.snapshot is not None and self._protocol is not None:
            yield from end_snapshot(self.snapshot, self._protocol)


class Transaction(TransactionCalls, WithBlock, Blocking):
    """Reads of one instant, and writes made all together: ``with db.transaction() as txn:``, then like a dict.

    Belongs to one thread.
    """

    def __getitem__(self, key: str) -> bytes:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str, value: bytes) -> None:
        self.set(key, value)

    def __delitem__(self, key: str) -> None:
        self[key]
        self.delete(key)

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    if TYPE_CHECKING:

        def __enter__(self) -> Self: ...


def run(begin: Callable[[], TransactionCalls], function: Callable[..., Any], attempts: int) -> Procedure[Any]:
    """Call ``function`` with a transaction and commit it, again after each conflict; return the function's result."""

    def attempt() -> Procedure[Any]:
        txn = begin()
        try:
            result = yield CallUser(function, txn)
            yield from txn._leave(failed=False)
        except BaseException:
            yield from txn._leave(failed=True)
            raise
        return result

    return retry(attempt, attempts)
