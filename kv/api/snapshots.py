"""Snapshots: the store as it was at one version."""

from __future__ import annotations

from kv.api.procedures import scan, send
from kv.api.scopes import ClientScope, WithBlock
from kv.methods import Blocking, pages, procedure
from kv.wire import operations
from kv.wire.exchange import Exchange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, Self, TypeVar

    from kv.api.procedures import Pages, Procedure
    from kv.results import Item, Versioned
    from kv.wire.operations import Operation
    from kv.wire.protocol import ClientProtocol

    T = TypeVar("T")


class SnapshotCalls(ClientScope):
    """Reads at ``version``. Raises SnapshotGone if that has left the history."""

    _what = "a snapshot"

    def __init__(self, client: Any, version: int | None = None) -> None:  # noqa: ANN401
        super().__init__(client)
        self._version = version
        self._protocol: ClientProtocol | None = None  # of the connection that keeps the snapshot
        self._store_id: str | None = None

    @property
    def version(self) -> int:
        """The version that the snapshot shows. Raises RuntimeError before it has begun."""
        if self._version is None:
            raise RuntimeError("the snapshot has not begun: write 'with db.snapshot() as snapshot:'")
        return self._version

    @procedure
    def get(self, key: str) -> Procedure[bytes | None]:
        """The value of ``key``, or None if there was no such key."""
        values = yield from self._read(operations.get_many([key], self.version))
        return values[key]

    @procedure
    def get_many(self, keys: Iterable[str]) -> Procedure[dict[str, bytes | None]]:
        """The values of ``keys``, None for absent ones."""
        values = yield from self._read(operations.get_many(keys, self.version))
        return values

    @procedure
    def fetch(self, keys: Iterable[str]) -> Procedure[dict[str, Versioned]]:
        """As get_many, with the version of each value."""
        values = yield from self._read(operations.fetch(keys, self.version))
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
        """The keys that begin with ``prefix``, or from ``start`` on and before ``end``, in order."""
        at, store_id = self.version, self._store_id
        return scan(prefix, start=start, end=end, limit=limit, at=at, keys_only=keys_only, store_id=store_id)

    def _read(self, operation: Operation[T]) -> Procedure[T]:
        exchange = yield from send(operation, store_id=self._store_id)
        if exchange.protocol is not None:
            self._store_id = exchange.protocol.store_id
        result: T = exchange.result()
        return result

    def _enter(self) -> Procedure[Self]:
        if self._version is None:
            exchange = yield from send(operations.begin())
            self._version = exchange.result()
            self._protocol = exchange.protocol
            self._store_id = exchange.protocol.store_id if exchange.protocol is not None else None
        return self

    def _leave(self, failed: bool) -> Procedure[None]:
        if self._protocol is not None:
            yield from end_snapshot(self.version, self._protocol)
            self._protocol = None


def end_snapshot(version: int, protocol: ClientProtocol) -> Procedure[None]:
    """End a snapshot, if its connection is still open. Does not raise if it is not."""
    yield Exchange((operations.end(version, protocol),))


class Snapshot(SnapshotCalls, WithBlock, Blocking):
    """The store as it was at ``version``: ``with db.snapshot() as snapshot:``, or ``db.at(version)`` alone."""

    if TYPE_CHECKING:

        def __enter__(self) -> Self: ...
