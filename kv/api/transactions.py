"""Transactions: reads of one instant, and writes that are made all together if nothing that was read has changed.

Optimistic: nothing is locked, the daemon validates at the end (the rule is in ``kvd/store/isolation.py``). On the wire:

    first read      [begin, fetch(keys, at=-1)]      one frame: a snapshot, and what was read at it
    later reads     [fetch(keys, at=snapshot)]       what was read or written already is not asked for again
    commit          [commit(writes, reads, ranges, snapshot), end(snapshot)]

So an uncontended read-modify-write is two round trips. Writes alone need no snapshot, and never conflict; reads alone
need no commit, as they are of one instant already.
"""

from __future__ import annotations

from kv.api.methods import Blocking, pages, procedure
from kv.api.procedures import CallUser, Pause, YieldItem, bounds, send
from kv.api.scopes import ClientScope, WithBlock
from kv.api.snapshots import give_back
from kv.errors import Conflict, KvdError, SnapshotGone
from kv.wire import operations
from kv.wire.exchange import Exchange
from kv.wire.operations import BEGUN, binary, milliseconds, write_options

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
_FIRST_PAUSE_S = 0.002
_MAX_PAUSE_S = 0.5


class TransactionCalls(ClientScope):
    """What a transaction has read, and what it is going to write.

    ``snapshot`` is the version that it reads at, None before the first read; ``version`` that of its commit, None
    before that, and if it had nothing to write.
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
        self._how = write_options(ttl, keep_ttl, ephemeral, sync)
        self._reads: dict[str, Versioned] = {}
        self._ranges: list[Range] = []
        self._writes: dict[str, bytes | None] = {}
        self._ttls: dict[str, int] = {}
        self._channel: ClientProtocol | None = None
        self._store_id: str | None = None
        self._over = False

    # ------------------------------------------------------------------ reading

    @procedure
    def get(self, key: str, default: bytes | None = None) -> Procedure[bytes | None]:
        """The value of ``key`` as this transaction sees it, ``default`` if there is none."""
        values = yield from self._values([key])
        value = values[key]
        return default if value is None else value

    @procedure
    def get_many(self, keys: Iterable[str]) -> Procedure[dict[str, bytes | None]]:
        """The values of ``keys`` as this transaction sees them, None for absent ones."""
        values = yield from self._values(list(keys))
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

        What was scanned counts as read, also where there was no key. What is written while one iterates may be missed.
        """
        following: str | None
        following, stop = bounds(prefix, start, end)
        while following is not None and (limit is None or limit > 0):
            size = _PAGE_KEYS if limit is None else min(limit, _PAGE_KEYS)
            first = following
            items, following = yield from self._read(
                lambda at, first=first, size=size: operations.scan(first, stop, size, at, keys_only)  # type: ignore[misc]
            )
            behind = stop if following is None else following
            self._note_range(first, behind)
            seen = self._with_own(items, first, behind, keys_only)[:limit]
            yield YieldItem(seen)
            if limit is not None:
                limit -= len(seen)

    def _values(self, keys: list[str]) -> Procedure[dict[str, bytes | None]]:
        self._check_open()
        unread = [key for key in dict.fromkeys(keys) if key not in self._writes and key not in self._reads]
        if unread:
            found = yield from self._read(lambda at: operations.fetch(unread, at))
            self._reads.update(found)
        return {key: self._writes[key] if key in self._writes else self._reads[key].value for key in keys}

    def _read(self, make: Callable[[int], Operation[T]]) -> Procedure[T]:
        """Read at the snapshot, which the first read begins."""
        self._check_open()
        result: T
        if self.snapshot is None:
            delivery = yield from send(operations.begin(), make(BEGUN))
            self.snapshot = delivery.result(0)
            self._channel = delivery.channel
            self._store_id = delivery.channel.store_id if delivery.channel is not None else None
            result = delivery.result(1)
        else:
            delivery = yield from send(make(self.snapshot), store_id=self._store_id)
            result = delivery.result()
        return result

    def _note_range(self, start: str, end: str | None) -> None:
        if self._ranges and self._ranges[-1][1] == start:
            start = self._ranges.pop()[0]
        self._ranges.append((start, end))

    def _with_own(self, items: list[Item], start: str, end: str | None, keys_only: bool) -> list[Item]:
        """What a page shows with this transaction's writes between ``start`` and ``end`` in it."""
        from kv.results import Item

        own = {key: value for key, value in self._writes.items() if key >= start and (end is None or key < end)}
        if not own:
            return items
        seen = [item for item in items if item.key not in own]
        seen += [Item(key, None if keys_only else value, 0) for key, value in own.items() if value is not None]
        return sorted(seen, key=lambda item: item.key)

    # ------------------------------------------------------------------ writing

    def set(self, key: str, value: bytes, *, ttl: float | timedelta | None = None) -> None:
        """Store ``value`` under ``key`` when the transaction commits; ``ttl``: for this key instead of the others'."""
        self._check_open()
        self._writes[key] = binary(value)
        self._ttls.pop(key, None)
        if ttl is not None:
            self._ttls[key] = milliseconds(ttl)

    def delete(self, *keys: str) -> None:
        """Delete ``keys``, as far as there are any, when the transaction commits."""
        self._check_open()
        self._writes.update(dict.fromkeys(keys))
        for key in keys:
            self._ttls.pop(key, None)

    def _check_open(self) -> None:
        self._check_process()
        if self._over:
            raise RuntimeError("the transaction is over; begin another")

    # ------------------------------------------------------------------ beginning and end

    def _enter(self) -> Procedure[Self]:
        self._check_open()
        return self
        yield  # a procedure of no steps: the first read begins the snapshot

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
            self._how["ttls"] = self._ttls
        if self.snapshot is None:
            sent = [operations.commit(self._writes, None, (), None, self._how)]
        else:
            reads = {key: found.version for key, found in self._reads.items()}
            sent = [operations.commit(self._writes, reads, self._ranges, self.snapshot, self._how)]
        ended = [] if self.snapshot is None else [operations.end(self.snapshot, self._channel)]
        delivery: Exchange = yield Exchange((*sent, *ended), self._store_id)
        self.version = delivery.result(0)

    def _give_up(self) -> Procedure[None]:
        self._over = True
        if self.snapshot is not None and self._channel is not None:
            yield from give_back(self.snapshot, self._channel)


class Transaction(TransactionCalls, WithBlock, Blocking):
    """Reads of one instant and writes made all together: ``with db.transaction() as txn:``, then like a dict.

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
    """Call ``function`` with a transaction and commit it, again and again until there is no conflict."""
    if attempts < 1:
        raise ValueError(f"attempts is a number above 0, not {attempts}")
    for attempt in range(1, attempts + 1):
        txn = begin()
        try:
            result = yield CallUser(function, txn)
            yield from txn._leave(failed=False)
        except (Conflict, SnapshotGone):
            yield from txn._leave(failed=True)
            if attempt == attempts:
                raise
        except BaseException:
            yield from txn._leave(failed=True)
            raise
        else:
            return result
        yield Pause(_pause_s(attempt))
    raise KvdError("not reached")


def _pause_s(attempt: int) -> float:
    """Longer and longer, and random: those who met in a conflict are not to meet again."""
    from random import random

    longest: float = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2**attempt)
    return random() * longest  # noqa: S311  # no secret
