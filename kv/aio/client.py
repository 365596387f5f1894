"""The client for asyncio: its scopes, its connections, and how its methods do what they do."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Self, TypeVar

from kv.aio.connection import AsyncConnection, Call, SingleCall
from kv.aio.scopes import AsyncLock, AsyncPipeline, AsyncSnapshot, AsyncTransaction
from kv.api.procedures import CallUser, NextChange, Pause, YieldItems
from kv.api.transactions import run
from kv.loading import load_all
from kv.methods import Api, Asynchronous
from kv.settings import DEFAULT_TIMEOUT_S, ClientSettings
from kv.wire.exchange import Exchange
from kv.wire.operations import text, watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from datetime import timedelta
    from types import TracebackType

    from kv.aio.mirror import AsyncMirror
    from kv.aio.watch import AsyncWatch
    from kv.api.procedures import Pages, Procedure
    from kv.blocking.tls import TlsFiles
    from kv.near_cache.cache import NearCache
    from kv.wire.codecs import Codec
    from kv.wire.operations import Operation
    from kv.wire.protocol import ClientProtocol

T = TypeVar("T")
# What asyncio and this package import inside functions.
_LATER = ("concurrent.futures.thread", "kv.aio.mirror", "kv.aio.watch")


class AsyncClient(Api, Asynchronous):
    """A daemon, over one connection of an event loop. Belongs to the loop in which it is used.

    Any number of tasks may share a client. A call may be cancelled at any time; a cancelled write may still be made.
    Raises what Client raises. ``settings`` are those that the client was made with.
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
        self.settings = ClientSettings(address, timeout=timeout, token_file=token_file, codec=codec, tls=tls)
        self._connection: AsyncConnection | None = None

    # ------------------------------------------------------------------ several requests

    def pipeline(self) -> AsyncPipeline:
        """As Client.pipeline, with ``async with``. Calls made in one turn of the loop share a frame without it."""
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
        result: T = await self._run_steps(run(lambda: AsyncTransaction(self, sync=sync), function, attempts))
        return result

    def watch(self, prefix: str = "", since: int | None = None) -> AsyncWatch:
        """As Client.watch, with ``async for``; it begins with ``async with``, or else with the first step."""
        from kv.aio.watch import AsyncWatch

        watch(prefix, since)  # raises for what cannot be asked
        return AsyncWatch(self.settings, prefix, since)

    def mirror(self, prefix: str = "") -> AsyncMirror:
        """As Client.mirror, with ``async with``."""
        from kv.aio.mirror import AsyncMirror

        return AsyncMirror(self.settings, self.log, self.version, text(prefix, "a prefix"))

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
        value: Any = await self.get(key)
        if value is None:
            from kv.api.cached import make_once

            value = await self._run_steps(make_once(self, key, make, ttl, timeout))
        return value if decode is None else self._decode(key, value, decode)

    def _decode(self, key: str, value: bytes, decode: Callable[[bytes], T]) -> T:
        return decode(value)

    # ------------------------------------------------------------------ the connection

    async def close(self) -> None:
        """Close the connection. The next call opens another."""
        if self._connection is not None:
            await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------------------------ how methods do what they do

    def _call(self, operation: Operation[T]) -> asyncio.Future[T]:
        return self._current_connection().call(SingleCall((operation,)))

    async def _run_steps(self, steps: Procedure[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    result = await self._do(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as end:
            outcome: T = end.value
            return outcome

    async def _iterate(
        self,
        steps: Pages[T],
        page_lock: AbstractAsyncContextManager[object] = nullcontext(),  # noqa: B008  # it has no state
    ) -> AsyncIterator[T]:
        """Go through pages, holding ``page_lock`` during each, and yield their items."""
        result: Any = None
        try:
            while True:
                async with page_lock:
                    step = steps.send(result)
                    while not isinstance(step, YieldItems):
                        step = steps.send(await self._do(step))
                for item in step.items:
                    yield item
                result = None
        except StopIteration:
            return
        finally:
            steps.close()

    async def _do(self, step: object) -> Any:  # noqa: ANN401
        """Do one step of a procedure; return what it results in."""
        if isinstance(step, Exchange):
            call = Call(step.operations, step.store_id)
            future = self._current_connection().call(call)
            try:
                # Shielded: after a cancellation, the steps that clean up must still be sent.
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                future.add_done_callback(self._end_snapshots)
                raise
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, CallUser):
            return await step.function(*step.arguments)
        assert isinstance(step, NextChange)
        return await step.watch.wait(step.seconds)

    def _end_snapshots(self, future: asyncio.Future[Call]) -> None:
        """End the snapshots that a cancelled call has begun, because its caller will not."""
        from kv.wire.operations import end

        if future.cancelled():
            return
        call = future.result()
        for operation, result in zip(call.operations, call.results, strict=True):
            if operation.request == ("begin",) and isinstance(result, int):
                self._call(end(result, call.protocol)).add_done_callback(_ignore_error)

    def _current_protocol(self) -> ClientProtocol | None:
        """The protocol of the connection that is open now."""
        return self._current_connection().protocol

    def _current_connection(self) -> AsyncConnection:
        """Return the running loop's connection, open or not."""
        connection = self._connection
        if connection is None or connection.loop is not asyncio.get_running_loop():
            load_all(self.settings.address, *_LATER)
            connection = self._connection = AsyncConnection(self.settings, self.near_cache)
        return connection


def _ignore_error(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
