"""The blocking client's mirrors: a thread keeps the values of ``kv/api/mirrors.py`` current."""

from __future__ import annotations

import os
import threading

from kv.api.mirrors import LOG_RETRY_S, MirrorState, deadline_after, remaining_s
from kv.api.watches import NO_SUCH_VERSION
from kv.blocking.watch import Watch
from kv.errors import SnapshotGone
from kvd.protocol import Position, position

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from kv.results import Commit
    from kv.settings import ClientSettings


class Mirror(MirrorState):
    """A mirror for programs that block. A thread keeps it current, until it is closed or its ``with`` block ends.

    ``log`` and ``version``: the client's methods. Raises KvdError if the daemon cannot be
    asked. Later any read raises Unavailable, once there has been no daemon for as long as the client's timeout.
    """

    def __init__(
        self,
        settings: ClientSettings,
        log: Callable[[int | None], Iterable[Commit]],
        version: Callable[[], Position],
        prefix: str = "",
    ) -> None:
        super().__init__(prefix)
        self._log = log
        self._version = version
        self._changed = threading.Condition()
        self._watch = Watch(settings, prefix, NO_SUCH_VERSION, self._apply)
        self._thread = threading.Thread(target=self._follow, name="kv mirror", daemon=True)
        self._thread.start()
        try:
            if not self._wait(lambda: self._is_complete, settings.timeout):
                raise self._too_late(0)
        except BaseException:
            self.close()
            raise

    def _follow(self) -> None:
        try:
            for _ in self._watch:
                self._notify()
        except BaseException as error:
            self._failure = error
            self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, version: int, timeout: float | None = None) -> None:
        """Wait until the mirror has all commits up to ``version`` that concern the prefix.

        A bare number is a version of the store that the daemon has now. Raises TimedOut if the mirror has not all
        within ``timeout`` seconds (None: wait for ever), SnapshotGone for a version of another store, and KvdError.
        """
        deadline, watch = deadline_after(timeout), self._watch
        self._check()
        target = version if isinstance(version, Position) else position(version, self._version().store)
        while not self._has(watch, target):
            since = watch.version
            if not self._shows_store_of(watch, target):
                if self._version().store != target.store:
                    raise self._other_store(target)
                if not self._wait(lambda: self._shows_store_of(watch, target), remaining_s(deadline)):
                    raise self._too_late(version)
                continue
            try:
                last = self._last_concerning(self._log(since), target)
            except SnapshotGone:  # far out of date: more changes must come first, or a resync
                self._wait(lambda since=since: watch.version is not since, remaining_s(deadline, LOG_RETRY_S))  # type: ignore[misc]
                if remaining_s(deadline, 1.0) == 0:
                    raise self._too_late(version) from None
                continue
            has_last = lambda last=last: not self._shows_store_of(watch, target) or watch.version >= last  # noqa: E731
            if not self._wait(has_last, remaining_s(deadline)):
                raise self._too_late(version)
            if self._shows_store_of(watch, target):
                return

    def _wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Whether the condition holds within ``timeout`` seconds. Raises the error that has ended the mirror."""
        with self._changed:
            holds = self._changed.wait_for(lambda: condition() or self._failure is not None, timeout)
        self._check()
        return holds

    def close(self) -> None:
        """End the mirror. Its values can still be read."""
        self._watch.close()
        if os.getpid() == self._process:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
