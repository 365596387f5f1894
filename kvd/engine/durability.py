"""When a reply may leave: not before what it shows is as durable as was promised.

        policy      a reply waits until its commits are       a reader waits for
        always      synced                                    the same
        interval    written, if no earlier sync is late       the same
        never       written (the system syncs when it likes)  the same

What a reply shows, and so what it waits for, is decided by ``kvd/requests/needs.py``. Here stands how far the log is,
and which connections wait for it. While everything is durable, none of this costs more than a comparison.

A version that is shown before it is on the disk must not be given again after a power cut. So versions are shown early
only below a *ceiling* that is on the disk, and a start after a crash goes on at the ceiling, which no client has seen.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from kvd.journal.commit_log import CommitLog
from kvd.journal.errors import NoSpace
from kvd.journal.writer import LogWriter
from kvd.store.store import Store
from kvd.telemetry.metrics import SYNC_BOUNDS, Histogram

# The ceiling is raised by this many versions, when half of them are used.
CEILING_STEP = 1 << 20
# On a full disk, raising the ceiling is tried again after this time.
CEILING_RETRY_S = 1.0


class LogPosition(msgspec.Struct, frozen=True, gc=False):
    """How far the log has to be written, and synced, before a reply may leave: two versions."""

    written: int
    synced: int

    def add(self, other: "LogPosition") -> "LogPosition":
        """The position that satisfies both."""
        return LogPosition(max(self.written, other.written), max(self.synced, other.synced))


NO_WAIT = LogPosition(0, 0)


class Waiter(Protocol):
    """A connection that holds a reply."""

    def on_durable(self) -> None:
        """More of the log is durable: send the replies that may leave."""


class Durability(Protocol):
    """How durable commits are. ``sync_times``: how long the syncs took.

    ``may_wait``: whether any reply ever has to wait. ``always``: whether every commit is synced before its reply.
    """

    may_wait: bool
    always: bool
    sync_times: Histogram

    def newest_unsettled(self) -> int:
        """The newest version that a reply may have to wait for; 0 if none has to, whatever its requests ask for."""

    def ceiling_for(self, version: int) -> int:
        """The highest version that may be shown before it is synced. Raised in advance, as ``version`` nears it."""

    def has_reached(self, position: LogPosition) -> bool:
        """Whether a reply that waits for ``position`` may leave."""

    def wait(self, waiter: Waiter, position: LogPosition) -> None:
        """Call ``waiter.on_durable`` once when more is durable, and see to it that ``position`` is reached."""

    @property
    def is_occupied(self) -> bool:
        """Whether a commit that is made now waits for a sync that has not begun."""

    def expect(self, count: int, flush: Callable[[], None]) -> None:
        """Call ``flush``, which makes ``count`` commits, before the next write."""

    def write_at_once(self) -> None:
        """Begin to write what was added, unless a write is under way or clients get time to come back."""


class MemoryDurability:
    """Nothing outlives the process, so every reply may leave at once."""

    may_wait = False
    always = False
    is_occupied = False

    def __init__(self) -> None:
        self.sync_times = Histogram(SYNC_BOUNDS)

    def newest_unsettled(self) -> int:
        """No reply waits for any version."""
        return 0

    def ceiling_for(self, version: int) -> int:
        """Every version may be shown."""
        return version

    def has_reached(self, position: LogPosition) -> bool:
        """Every reply may leave."""
        return True

    def wait(self, waiter: Waiter, position: LogPosition) -> None:
        """Never happens, as ``position`` has been reached."""

    def expect(self, count: int, flush: Callable[[], None]) -> None:
        """Never happens, as no sync is ever under way."""

    def write_at_once(self) -> None:
        """Write nothing."""


class LogDurability:
    """What of ``log`` is durable, and which replies wait for more. ``shown``: the newest version that may be shown.

    ``sync`` is the policy. ``on_failure`` is called when the log fails: then no reply that waits may leave any more.
    """

    may_wait = True

    def __init__(
        self,
        store: Store,
        log: CommitLog,
        sync: str,
        interval_ms: int,
        loop: asyncio.AbstractEventLoop,
        on_failure: Callable[[BaseException], None],
        sync_times: Histogram | None = None,
    ) -> None:
        self._store = store
        self._log = log
        self._loop = loop
        self._on_failure = on_failure
        self.always = sync == "always"
        self.sync_times = sync_times or Histogram(SYNC_BOUNDS)
        # What the run began with is on the disk, also where a crash took the versions between the last commit and it.
        self.shown = self._recovered = store.version
        self._waiting: dict[Waiter, None] = {}  # in the order they came
        self._listeners: list[Callable[[], None]] = []
        self._is_raising = False
        self.writer = writer = LogWriter(
            log,
            loop,
            always=self.always,
            interval_s=interval_ms / 1000 if sync == "interval" else None,
            on_progress=self._on_progress,
            on_failure=self._fail,
        )
        # Bound here, as each commit and each reply would else take one call more.
        self.wake = writer.wake
        self.expect = writer.expect
        self.write_at_once = writer.write_at_once

    # ------------------------------------------------------------------ what replies wait for

    def newest_unsettled(self) -> int:
        """The newest version that a reply may have to wait for; 0 if none has to, whatever its requests ask for."""
        # Versions that are not in the log are expiries without space in it, which happen again after a crash.
        version = min(self._store.version, self._log.added)
        return 0 if self.writer.sync_wanted <= version <= self.shown else version

    def ceiling_for(self, version: int) -> int:
        """The highest version that may be shown before it is synced. Raised in advance, as ``version`` nears it."""
        ceiling = self._log.ceiling
        if version > ceiling - CEILING_STEP // 2 and not self._is_raising:
            self._is_raising = True
            self._loop.create_task(self._raise_ceiling(version + CEILING_STEP))
        return ceiling - 1

    async def begin_early(self) -> None:
        """Raise the first ceiling, for a daemon that shows versions early."""
        await self._raise_ceiling(self._store.version + CEILING_STEP)

    async def _raise_ceiling(self, version: int) -> None:
        try:
            await self.writer.run_alone(lambda: self._log.raise_ceiling(version))
            self._is_raising = False
        except NoSpace:  # replies wait for syncs meanwhile
            self._loop.call_later(CEILING_RETRY_S, self._allow_raising)

    def _allow_raising(self) -> None:
        self._is_raising = False

    def has_reached(self, position: LogPosition) -> bool:
        """Whether a reply that waits for ``position`` may leave."""
        writer = self.writer
        return position.written <= writer.written and position.synced <= writer.synced

    def wait(self, waiter: Waiter, position: LogPosition) -> None:
        """Call ``waiter.on_durable`` once when more is durable, and see to it that ``position`` is reached."""
        self._waiting[waiter] = None
        self.writer.want(position.written, position.synced)

    @property
    def is_occupied(self) -> bool:
        """Whether a commit that is made now waits for a sync that has not begun."""
        return self.always and (self.writer.is_busy or self.writer.is_gathering)

    # ------------------------------------------------------------------ progress

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` each time more of the log is durable, after the replies that wait for it."""
        self._listeners.append(listener)

    def _on_progress(self) -> None:
        self.shown = max(self._recovered, self.writer.synced if self.always else self.writer.written)
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting:
            waiter.on_durable()
        for listener in self._listeners:
            listener()

    def _fail(self, error: BaseException) -> None:
        self._waiting.clear()
        self._on_failure(error)

    async def flush(self) -> None:
        """Return when everything added so far is written and synced. Raises OSError."""
        await self.writer.flush()

    async def rotate(self) -> tuple[int, int]:
        """Go on in a new segment; return its number, and the version before it. Raises OSError, NoSpace."""
        return await self.writer.rotate()

    async def close(self) -> None:
        """Write and sync everything, with a mark that nothing follows; end the thread. Raises OSError."""
        await self.writer.close()
