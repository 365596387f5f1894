"""Mirrors: the keys with a prefix as a mapping in this process, kept current by a watch. The half without I/O.

        watch   ─ resync (everything) ─ change ─ change ─▶ values, version
        reads   of the values as they are now, which may be a little older than the daemon's

A watch cannot say that it has *nothing* more to send. So to wait for a certain version, a mirror asks the daemon's log
for the last commit up to it that concerns the prefix, and waits for that one alone.

A version counts in its own store. A mirror that still shows an earlier store waits for the resynchronisation first.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping

from kv.errors import ForkedClient, SnapshotGone, TimedOut
from kvd.protocol import Position, store_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kv.api.watches import WatchState
    from kv.results import Change, Commit

# How long to wait before asking the daemon's log again, if it did not reach back far enough.
LOG_RETRY_S = 0.05


class MirrorState(Mapping[str, bytes]):
    """What both kinds of mirrors have: the values, read only, and ``version``, that of the last commit in them.

    Single reads are of the moment; ``copy()`` is of one version. If the mirror cannot be kept current any more, each
    read raises the error that ended it.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.version = 0
        self._values: dict[str, bytes] = {}
        self._failure: BaseException | None = None
        self._process = os.getpid()
        self._is_complete = False  # whether the first resync has come
        self._lock = threading.Lock()  # held while the values of one commit are applied

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
        self._is_complete = True

    def _check(self) -> None:
        if os.getpid() != self._process:
            raise ForkedClient("a mirror")
        if self._failure is not None:
            raise self._failure

    def _last_concerning(self, commits: Iterable[Commit], version: int) -> int:
        """Return the last of the commits up to ``version`` that concerns the prefix; 0 if none does."""
        concerning = (commit for commit in commits if any(key.startswith(self.prefix) for key in commit.keys))
        return max((commit.version for commit in concerning if commit.version <= version), default=0)

    def _has(self, watch: WatchState, target: Position) -> bool:
        """Whether the watch has sent everything up to ``target``."""
        return self._shows_store_of(watch, target) and (watch.version or 0) >= target

    def _shows_store_of(self, watch: WatchState, target: Position) -> bool:
        """Whether the mirror shows the store that ``target`` belongs to, at whatever version."""
        return self._is_complete and store_of(watch.version) == target.store

    @staticmethod
    def _other_store(target: Position) -> SnapshotGone:
        return SnapshotGone(f"version {target} belongs to a store that the daemon has no more", "snapshot_gone")

    def _too_late(self, version: int) -> TimedOut:
        return TimedOut(f"the mirror of {self.prefix!r} has not come to version {version} in time", writing=False)

    def copy(self) -> dict[str, bytes]:
        """Return all values, as of ``version``."""
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


def deadline_after(timeout: float | None) -> float | None:
    """Return the time at which ``timeout`` seconds are over; None: never."""
    return None if timeout is None else time.monotonic() + timeout


def remaining_s(deadline: float | None, max_s: float | None = None) -> float | None:
    """Return the seconds until ``deadline``, at most ``max_s``; None: no limit."""
    if deadline is None:
        return max_s
    remaining = max(0.0, deadline - time.monotonic())
    return remaining if max_s is None else min(remaining, max_s)
