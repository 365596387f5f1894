"""The asyncio client: ``db = kv.aio.connect()``, and then as the blocking one, with ``await`` and ``async for``.

All that is asked for in one turn of the event loop goes to the daemon in one frame, by itself.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from kv.aio.connection import AsyncLink, Call, SingleCall
from kv.api.locks import MAKING, LockCalls, name_for
from kv.api.methods import Api, Asynchronous
from kv.api.pipeline import PipelineCalls
from kv.api.procedures import CallUser, Next, Pause, YieldItem
from kv.api.scopes import ClientScope
from kv.api.snapshots import SnapshotCalls
from kv.api.transactions import TransactionCalls, run
from kv.blocking.client import DEFAULT_TIMEOUT_S, check_address, read_token
from kv.errors import LockLost
from kv.wire.codecs import full
from kv.wire.exchange import Exchange
from kv.wire.operations import binary
from kvd.protocol.address import is_network

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from datetime import timedelta
    from types import TracebackType

    from kv.aio.mirror import AsyncMirror
    from kv.aio.watch import AsyncWatch
    from kv.api.procedures import Pages, Procedure
    from kv.blocking.tls import TlsFiles
    from kv.near_cache.aio import AsyncNearClient
    from kv.near_cache.cache import NearCache, NearCacheLimits
    from kv.wire.codecs import Codec
    from kv.wire.operations import Operation
    from kv.wire.protocol import ClientProtocol

T = TypeVar("T")


@overload
def connect(
    address: str | None = None,
    *,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    token_file: str | None = None,
    codec: Codec | None = None,
    near_cache: Literal[True] | NearCacheLimits,
    tls: TlsFiles | None = None,
) -> AsyncNearClient: ...


@overload
def connect(
    address: str | None = None,
    *,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    token_file: str | None = None,
    codec: Codec | None = None,
    near_cache: bool | NearCacheLimits = False,
    tls: TlsFiles | None = None,
) -> AsyncClient: ...


def connect(
    address: str | None = None,
    *,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    token_file: str | None = None,
    codec: Codec | None = None,
    near_cache: bool | NearCacheLimits = False,
    tls: TlsFiles | None = None,
) -> AsyncClient:
    """A client of the daemon at ``address``; as kv.connect. Nothing is opened before the first call."""
    if near_cache:
        from kv.near_cache.aio import AsyncNearClient

        limits = None if near_cache is True else near_cache
        return AsyncNearClient(address, timeout=timeout, token_file=token_file, codec=codec, limits=limits)
    return AsyncClient(address, timeout=timeout, token_file=token_file, codec=codec, tls=tls)


class AsyncClient(Api, Asynchronous):
    """A daemon, seen from an asyncio program, by one connection. Belongs to the event loop in which it is used.

    Any number of tasks may share it. A call may be cancelled at any time; a write that was cancelled may be made all
    the same. Raises what Client raises.
    """

    near_cache: NearCache | None = None

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        token_file: str | None = None,
        codec: Codec | None = None,
        tls: TlsFiles | None = None,
    ) -> None:
        check_address(address, timeout)
        self._tls = tls
        self._address = address
        self._timeout = timeout
        self._token_file = token_file
        self._codec = codec or full()
        self._links: dict[tuple[int, asyncio.AbstractEventLoop], AsyncLink] = {}
        self._link: AsyncLink | None = None

    # ------------------------------------------------------------------ several requests

    def pipeline(self) -> AsyncPipeline:
        """As Client.pipeline, with ``async with``. Calls of one turn share a frame without it."""
        return AsyncPipeline(self)

    def snapshot(self) -> AsyncSnapshot:
        """As Client.snapshot, with ``async with``."""
        return AsyncSnapshot(self)

    def at(self, version: int) -> AsyncSnapshot:
        """As Client.at."""
        return AsyncSnapshot(self, version)

    def transaction(
        self,
        *,
        ttl: float | timedelta | None = None,
        keep_ttl: bool = False,
        ephemeral: bool = False,
        sync: bool | None = None,
    ) -> AsyncTransaction:
        """As Client.transaction, with ``async with``."""
        return AsyncTransaction(self, ttl=ttl, keep_ttl=keep_ttl, ephemeral=ephemeral, sync=sync)

    async def run(
        self, function: Callable[[AsyncTransaction], Awaitable[T]], *, attempts: int = 20, sync: bool | None = None
    ) -> T:
        """As Client.run; ``function`` is awaited."""
        result: T = await self._drive(run(lambda: AsyncTransaction(self, sync=sync), function, attempts))
        return result

    def watch(self, prefix: str = "", since: int | None = None) -> AsyncWatch:
        """As Client.watch, with ``async for``; it begins with ``async with``, or else with the first step."""
        from kv.aio.watch import AsyncWatch

        return AsyncWatch(self, prefix, since)

    def mirror(self, prefix: str = "") -> AsyncMirror:
        """As Client.mirror, with ``async with``."""
        from kv.aio.mirror import AsyncMirror

        return AsyncMirror(self, prefix)

    def lock(
        self,
        name: str,
        *,
        ttl: float | timedelta | None = None,
        timeout: float | None = None,
        prefix: str = "lock/",
    ) -> AsyncLock:
        """As Client.lock, with ``async with``."""
        return AsyncLock(self, name, ttl=ttl, timeout=timeout, prefix=prefix)

    async def cached(
        self,
        key: str,
        make: Callable[[], Awaitable[bytes]],
        *,
        ttl: float | timedelta | None = None,
        timeout: float | None = None,
        decode: Callable[[bytes], Any] | None = None,
    ) -> Any:  # noqa: ANN401  # bytes, or what decode returns
        """As Client.cached; ``make`` is awaited."""
        value = await self.get(key)
        try:
            if value is None:
                async with self.lock(name_for(key), timeout=timeout, prefix=MAKING):
                    value = await self.get(key)
                    if value is None:
                        value = binary(await make())
                        await self.set(key, value, ttl=ttl)
        except LockLost:
            if value is None:
                raise  # lost before anything was made
        return value if decode is None else self._decoded(key, value, decode)

    def _decoded(self, key: str, value: bytes, decode: Callable[[bytes], T]) -> T:
        return decode(value)

    # ------------------------------------------------------------------ the connection

    async def close(self) -> None:
        """Close the connection. The next call opens another."""
        if self._link is not None:
            await self._link.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------------------------ how methods do what they do

    def _call(self, operation: Operation[T]) -> asyncio.Future[T]:
        return self._link_now().call(SingleCall((operation,)))

    async def _drive(self, steps: Procedure[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    came = await self._do(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(came)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _iterate(
        self,
        steps: Pages[T],
        turn: AbstractAsyncContextManager[object] = nullcontext(),  # noqa: B008  # it has no state
    ) -> AsyncIterator[T]:
        """Go through pages; ``turn`` is entered for each of them."""
        came: Any = None
        try:
            while True:
                async with turn:
                    step = steps.send(came)
                    while not isinstance(step, YieldItem):
                        step = steps.send(await self._do(step))
                for thing in step.things:
                    yield thing
                came = None
        except StopIteration:
            return
        finally:
            steps.close()

    async def _do(self, step: object) -> Any:  # noqa: ANN401
        """One step of a procedure."""
        if isinstance(step, Exchange):
            call = Call(step.operations, step.store_id)
            future = self._link_now().call(call)
            try:
                # Shielded: the steps that tidy up after a cancellation are not to be cancelled before they are sent.
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                future.add_done_callback(self._give_back)
                raise
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, CallUser):
            return await step.function(*step.arguments)
        assert isinstance(step, Next)
        return await step.watch.wait(step.seconds)

    def _give_back(self, future: asyncio.Future[Call]) -> None:
        """End the snapshots that a call began when there was nobody any more to take them."""
        from kv.wire.operations import end

        if future.cancelled():
            return
        call = future.result()
        for operation, result in zip(call.operations, call.results, strict=True):
            if operation.request == ("begin",) and isinstance(result, int):
                self._call(end(result, call.channel)).add_done_callback(_forget)

    def _channel_now(self) -> ClientProtocol | None:
        """The channel of the connection that is open now."""
        return self._link_now().channel

    def _token_for(self, address: str) -> str | None:
        return read_token(self._token_file) if is_network(address) else None

    def _link_now(self) -> AsyncLink:
        """This process's and this loop's."""
        link = self._link
        if link is None or link.loop is not asyncio.get_running_loop():
            link = self._link = AsyncLink(
                self._address, self._token_for, self._codec, self._timeout, self.near_cache, self._tls
            )
        return link


def _forget(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


class AsyncWithBlock(ClientScope):
    """For ``async with``."""

    async def __aenter__(self) -> Any:  # noqa: ANN401  # each kind says what
        return await self._drive(self._enter())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not self._forked:  # an exception in a child is not to be hidden behind another
            await self._drive(self._leave(kind is not None))

    async def _drive(self, steps: Procedure[T]) -> T:
        self._check_process()
        result: T = await self._client._drive(steps)
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
    """As Transaction: reads are awaited, ``set`` and ``delete`` are not, as they only note what is to be written."""

    def __init__(self, client: AsyncClient, **how: Any) -> None:  # noqa: ANN401
        super().__init__(client, **how)
        # Until the first read has begun the snapshot, reads are made one after the other.
        self._turn = asyncio.Lock()

    async def _drive(self, steps: Procedure[T]) -> T:
        async with self._turn if self.snapshot is None else nullcontext():
            return await super()._drive(steps)

    def _iterate(self, steps: Pages[T]) -> AsyncIterator[T]:
        self._check_process()
        iterator: AsyncIterator[T] = self._client._iterate(
            steps, self._turn if self.snapshot is None else nullcontext()
        )
        return iterator

    if TYPE_CHECKING:

        async def __aenter__(self) -> Self: ...
