"""Snapshots, pipelines, locks and transactions for asyncio: the shared scopes, with ``async with`` and ``await``."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kv.api.locks import LockCalls
from kv.api.pipeline import PipelineCalls
from kv.api.scopes import ClientScope
from kv.api.snapshots import SnapshotCalls
from kv.api.transactions import TransactionCalls
from kv.methods import Asynchronous

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from kv.api.procedures import Pages, Procedure

T = TypeVar("T")


class AsyncWithBlock(ClientScope):
    """A scope for ``async with``."""

    async def __aenter__(self) -> Any:  # noqa: ANN401  # each kind has its own
        return await self._run_steps(self._enter())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not self._forked:  # a child's own exception matters more than a ForkedClient
            await self._run_steps(self._leave(kind is not None))

    async def _run_steps(self, steps: Procedure[T]) -> T:
        self._check_process()
        result: T = await self._client._run_steps(steps)
        return result

    def _iterate(self, steps: Pages[T]) -> AsyncIterator[T]:
        self._check_process()
        iterator: AsyncIterator[T] = self._client._iterate(steps)
        return iterator


class AsyncSnapshot(SnapshotCalls, AsyncWithBlock, Asynchronous):
    """As Snapshot, with ``async with`` and ``await``."""

    if TYPE_CHECKING:

        async def __aenter__(self) -> Self: ...


class AsyncPipeline(PipelineCalls, AsyncWithBlock):
    """As Pipeline, with ``async with``; its calls are not awaited."""

    if TYPE_CHECKING:

        async def __aenter__(self) -> Self: ...


class AsyncLock(LockCalls, AsyncWithBlock, Asynchronous):
    """As Lock, with ``async with``."""

    if TYPE_CHECKING:

        async def __aenter__(self) -> int: ...


class AsyncTransaction(TransactionCalls, AsyncWithBlock, Asynchronous):
    """As Transaction: reads are awaited; ``set`` and ``delete`` are not, because nothing is sent before the commit."""

    def __init__(self, client: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(client, **options)
        # Reads run one after the other until the first has begun the snapshot.
        self._first_read_lock = asyncio.Lock()

    async def _run_steps(self, steps: Procedure[T]) -> T:
        async with self._first_read_lock if self.snapshot is None else nullcontext():
            return await super()._run_steps(steps)

    def _iterate(self, steps: Pages[T]) -> AsyncIterator[T]:
        self._check_process()
        iterator: AsyncIterator[T] = self._client._iterate(
            steps, self._first_read_lock if self.snapshot is None else nullcontext()
        )
        return iterator

    if TYPE_CHECKING:

        async def __aenter__(self) -> Self: ...
