"""The asyncio client's mirrors: a task keeps the values of ``kv/api/mirrors.py`` current."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from kv.aio.watch import AsyncWatch
from kv.api.mirrors import LOG_RETRY_S, MirrorState, deadline_after, remaining_s
from kv.api.watches import NO_SUCH_VERSION
from kv.errors import SnapshotGone
from kvd.protocol import Position, position

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType

    from kv.results import Commit
    from kv.settings import ClientSettings


class AsyncMirror(MirrorState):
    """As Mirror, within ``async with``: kept current by a task. Reads are not awaited."""

    def __init__(
        self,
        settings: ClientSettings,
        log: Callable[[int | None], AsyncIterator[Commit]],
        version: Callable[[], Awaitable[Position]],
        prefix: str = "",
    ) -> None:
        super().__init__(prefix)
        self._log = log
        self._version = version
        self._timeout = settings.timeout
        self._watch = AsyncWatch(settings, prefix, NO_SUCH_VERSION, self._apply)
        self._changed = asyncio.Event()  # set at the next change, and then replaced by a new one
        self._task: asyncio.Task[None] | None = None

    async def _follow(self) -> None:
        try:
            async for _ in self._watch:
                self._notify()
        except Exception as error:
            self._failure = error
            self._notify()

    def _notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_for(self, version: int, timeout: float | None = None) -> None:
        """As Mirror.wait_for."""
        deadline, watch = deadline_after(timeout), self._watch
        self._check()
        target = version if isinstance(version, Position) else position(version, (await self._version()).store)
        while not self._has(watch, target):
            since = watch.version
            if not self._shows_store_of(watch, target):
                if (await self._version()).store != target.store:
                    raise self._other_store(target)
                if not await self._wait(lambda: self._shows_store_of(watch, target), remaining_s(deadline)):
                    raise self._too_late(version)
                continue
            try:
                commits = [commit async for commit in self._log(since)]
            except SnapshotGone:  # far out of date: more changes must come first, or a resync
                remaining = remaining_s(deadline, LOG_RETRY_S)
                await self._wait(lambda since=since: watch.version is not since, remaining)  # type: ignore[misc]
                if remaining_s(deadline, 1.0) == 0:
                    raise self._too_late(version) from None
                continue
            last = self._last_concerning(commits, target)
            has_last = lambda last=last: not self._shows_store_of(watch, target) or watch.version >= last  # noqa: E731
            if not await self._wait(has_last, remaining_s(deadline)):
                raise self._too_late(version)
            if self._shows_store_of(watch, target):
                return

    async def _wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        try:
            async with asyncio.timeout(timeout):
                while not condition() and self._failure is None:
                    await self._changed.wait()
        except TimeoutError:
            pass
        self._check()
        return condition()

    async def close(self) -> None:
        """End the mirror. Its values can still be read."""
        await self._watch.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self._watch.__aenter__()
        self._task = asyncio.create_task(self._follow())
        try:
            if not await self._wait(lambda: self._is_complete, self._timeout):
                raise self._too_late(0)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
