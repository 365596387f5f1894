"""The blocking client's mirrors: a thread keeps the values of ``kv/api/mirrors.py`` current."""

from __future__ import annotations

import os
import threading

from kv.api.mirrors import LOG_RETRY_S, MirrorState, deadline_after, remaining_s
from kv.api.watches import NO_SUCH_VERSION
from kv.blocking.watch import Watch
from kv.errors import SnapshotGone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from kv.results import Commit
    from kv.settings import ClientSettings


class Mirror(MirrorState):
    """A mirror for programs that block. A thread keeps it current, until it is closed or its ``with`` block ends.

    ``log``: the client's method, which returns the commits after a version. Raises KvdError if the daemon cannot be
    asked. Later any read raises Unavailable, once there has been no daemon for as long as the client's timeout.
    """

    def __init__(self, settings: ClientSettings, log: Callable[[int], Iterable[Commit]], prefix: str = "") -> None:
        super().__init__(prefix)
        self._log = log
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

        Raises TimedOut if it has not within ``timeout`` seconds (None: wait for ever), and KvdError.
        """
        deadline = deadline_after(timeout)
        self._check()
        while (since := self._position(self._watch)) < version:
            try:
                last = self._last_concerning(self._log(since), version)
            except SnapshotGone:  # far out of date: more changes must come first, or a resync
                self._wait(lambda since=since: self._position(self._watch) > since, remaining_s(deadline, LOG_RETRY_S))  # type: ignore[misc]
                if remaining_s(deadline, 1.0) == 0:
                    raise self._too_late(version) from None
                continue
            if not self._wait(lambda last=last: self._position(self._watch) >= last, remaining_s(deadline)):  # type: ignore[misc]
                raise self._too_late(version)
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
