"""Mirrors: the keys below a prefix as a mapping in this process, kept current by a watch.

        watch   ─ resync (everything) ─ change ─ change ─▶ values, version
        reads   of the values as they are now, which may be a little behind the daemon

Nothing says when a watch has *nothing* to tell. So whoever wants to see a certain version asks the daemon's log which
commit up to it was the last that concerns the prefix, and waits for that one alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping

from kv.blocking.watch import ELSEWHERE, Watch
from kv.errors import ForkedClient, SnapshotGone, TimedOut

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Self

    from kv.blocking.client import Client
    from kv.blocking.watch import WatchState
    from kv.results import Change, Commit

# Before the daemon's log is asked again, where it did not reach back far enough.
AGAIN_S = 0.05


class MirrorState(Mapping[str, bytes]):
    """What both kinds of mirrors have: the values, read only, and ``version``, that of the last commit in them.

    Single reads are of the moment; ``copy()`` is of one version. Whoever reads a mirror that cannot be kept current any
    more gets the error that ended it.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.version = 0
        self._values: dict[str, bytes] = {}
        self._failure: BaseException | None = None
        self._process = os.getpid()
        self._is_whole = False  # everything has been told once
        self._lock = threading.Lock()  # over the values of one commit

    def _apply(self, change: Change) -> None:
        with self._lock:
            if change.resync:
                self._values = {}
            for key, value in change.writes.items():
                if value is None:
                    self._values.pop(key, None)
                else:
                    self._values[key] = value
            self.version = change.version
        self._is_whole = True

    def _check(self) -> None:
        if os.getpid() != self._process:
            raise ForkedClient("a mirror")
        if self._failure is not None:
            raise self._failure

    def _last_concerning(self, commits: Iterable[Commit], version: int) -> int:
        """The last of the commits up to ``version`` that concerns the prefix; 0 if none does."""
        concerning = (commit for commit in commits if any(key.startswith(self.prefix) for key in commit.keys))
        return max((commit.version for commit in concerning if commit.version <= version), default=0)

    def _position(self, watch: WatchState) -> int:
        """All up to there has been told, whether it concerned the prefix or not."""
        return watch.version or 0 if self._is_whole else -1

    def _too_late(self, version: int) -> TimedOut:
        return TimedOut(f"the mirror of {self.prefix!r} has not come to version {version} in time", writing=False)

    def copy(self) -> dict[str, bytes]:
        """All values, as of ``version``."""
        self._check()
        with self._lock:
            return dict(self._values)

    def __getitem__(self, key: str) -> bytes:
        self._check()
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.copy())

    def __len__(self) -> int:
        self._check()
        return len(self._values)

    def __repr__(self) -> str:
        return f"<mirror of {self.prefix!r}: {len(self._values)} keys, version {self.version}>"


class Mirror(MirrorState):
    """For programs that block; kept current by a thread of its own, until it is closed or its ``with`` block ends.

    Raises KvdError if the daemon cannot be asked; Unavailable later, by any read, if there is none for as long as the
    client's timeout.
    """

    def __init__(self, client: Client, prefix: str = "") -> None:
        super().__init__(prefix)
        self._client = client
        self._changed = threading.Condition()
        self._watch = Watch(client, prefix, ELSEWHERE, self._apply)
        self._thread = threading.Thread(target=self._follow, name="kv mirror", daemon=True)
        self._thread.start()
        try:
            if not self._wait(lambda: self._is_whole, client._timeout):
                raise self._too_late(0)
        except BaseException:
            self.close()
            raise

    def _follow(self) -> None:
        try:
            for _ in self._watch:
                self._tell()
        except BaseException as error:
            self._failure = error
            self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, version: int, timeout: float | None = None) -> None:
        """Return when all commits up to ``version`` that concern the prefix are in it.

        Raises TimedOut if they are not within ``timeout`` seconds (None: for ever), and KvdError.
        """
        until = until_then(timeout)
        self._check()
        while (since := self._position(self._watch)) < version:
            try:
                last = self._last_concerning(self._client.log(since), version)
            except SnapshotGone:  # far behind: more has to come first, or everything anew
                self._wait(lambda since=since: self._position(self._watch) > since, left(until, AGAIN_S))  # type: ignore[misc]
                if left(until, 1.0) == 0:
                    raise self._too_late(version) from None
                continue
            if not self._wait(lambda last=last: self._position(self._watch) >= last, left(until)):  # type: ignore[misc]
                raise self._too_late(version)
            return

    def _wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Whether the condition holds within ``timeout`` seconds. Raises what has ended the mirror."""
        with self._changed:
            came = self._changed.wait_for(lambda: condition() or self._failure is not None, timeout)
        self._check()
        return came

    def close(self) -> None:
        """End it. What it had can still be read."""
        self._watch.close()
        if os.getpid() == self._process:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def until_then(timeout: float | None) -> float | None:
    """When so many seconds are over; None: never."""
    return None if timeout is None else time.monotonic() + timeout


def left(until: float | None, most: float | None = None) -> float | None:
    """Seconds until then, and no more than ``most``; None: for ever."""
    if until is None:
        return most
    left = max(0.0, until - time.monotonic())
    return left if most is None else min(left, most)
