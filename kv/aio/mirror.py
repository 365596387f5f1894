"""The asyncio client's mirrors; what they hold is ``mirrors.py``'s business."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from kv.aio.watch import AsyncWatch
from kv.blocking.mirror import AGAIN_S, MirrorState, left, until_then
from kv.blocking.watch import ELSEWHERE
from kv.errors import SnapshotGone

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from kv.aio import AsyncClient


class AsyncMirror(MirrorState):
    """As Mirror, within ``async with``: kept current by a task. Reads are not awaited."""

    def __init__(self, client: AsyncClient, prefix: str = "") -> None:
        super().__init__(prefix)
        self._client = client
        self._watch = AsyncWatch(client, prefix, ELSEWHERE, self._apply)
        self._next = asyncio.Event()  # set, and another put in its place, when something has come
        self._task: asyncio.Task[None] | None = None

    async def _follow(self) -> None:
        try:
            async for _ in self._watch:
                self._tell()
        except Exception as error:
            self._failure = error
            self._tell()

    def _tell(self) -> None:
        came, self._next = self._next, asyncio.Event()
        came.set()

    async def wait_for(self, version: int, timeout: float | None = None) -> None:
        """As Mirror.wait_for."""
        until = until_then(timeout)
        self._check()
        while (since := self._position(self._watch)) < version:
            try:
                commits = [commit async for commit in self._client.log(since)]
            except SnapshotGone:  # far behind: more has to come first, or everything anew
                await self._wait(lambda since=since: self._position(self._watch) > since, left(until, AGAIN_S))  # type: ignore[misc]
                if left(until, 1.0) == 0:
                    raise self._too_late(version) from None
                continue
            last = self._last_concerning(commits, version)
            if not await self._wait(lambda last=last: self._position(self._watch) >= last, left(until)):  # type: ignore[misc]
                raise self._too_late(version)
            return

    async def _wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        try:
            async with asyncio.timeout(timeout):
                while not condition() and self._failure is None:
                    await self._next.wait()
        except TimeoutError:
            pass
        self._check()
        return condition()

    async def close(self) -> None:
        """End it. What it had can still be read."""
        await self._watch.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self._watch.__aenter__()
        self._task = asyncio.create_task(self._follow())
        try:
            if not await self._wait(lambda: self._is_whole, self._client._timeout):
                raise self._too_late(0)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
