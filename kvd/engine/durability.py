"""When an answer may leave: not before what it shows is as durable as was promised.

        policy      an answer waits until its commits are     a reader waits for
        always      synced                                    the same
        interval    written (a sync follows in time)          the same
        never       written (the system syncs when it likes)  the same

A single write may ask for more or less (``sync`` in ``how``). Whatever an answer shows is a version: the current one,
unless all that was asked for were plain reads of keys that are there, which show only those keys' versions. While
everything is durable, which is always so when nobody writes, none of this costs more than a comparison.

A version that is shown before it is on the disk must not be given again after a power cut. So versions are shown early
only below a *ceiling* that is on the disk, and a start after a crash goes on above it.

One worker thread writes and syncs; what is added meanwhile goes with its next turn. If it fails, nothing that waits is
answered any more, and the daemon ends: after a failed sync nobody knows what is on the disk (A. Rebello et al., *Can
Applications Recover from fsync Failures?*, USENIX ATC 2020).
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from kvd.engine.database import Database
from kvd.journal.commit_log import Batch, CommitLog
from kvd.journal.errors import NoSpace
from kvd.telemetry.metrics import SYNC_BOUNDS, Histogram

logger = logging.getLogger(__name__)

# The ceiling is raised by so many versions, when half of them are used.
CEILING_STEP = 1 << 20
# On a full disk it is tried again after so long.
CEILING_RETRY_S = 1.0
# So long after the last commit a mark vouches for it.
MARK_S = 1.0
# How long to wait for those who were just answered: half of what the sync took, within these bounds.
MIN_GATHER_S = 0.000_1
MAX_GATHER_S = 0.002
# So much is written in the loop itself if nobody waits for a sync: into room that is allocated, 5 us and up.
INLINE_BYTES = 1024 * 1024


Result = TypeVar("Result")


class LogPosition:
    """What has to be on its way to the disk, and what on it, before an answer may leave: two versions."""

    __slots__ = ("synced", "written")

    def __init__(self, written: int, synced: int) -> None:
        self.written = written
        self.synced = synced

    def add(self, other: "LogPosition") -> "LogPosition":
        """What both need."""
        return LogPosition(max(self.written, other.written), max(self.synced, other.synced))


NO_WAIT = LogPosition(0, 0)


class MemoryDurability:
    may_wait = False
    always = False
    is_occupied = False

    def __init__(self, database: Database) -> None:
        self._database = database
        self.sync_times = Histogram(SYNC_BOUNDS)

    def newest(self) -> int:
        return self._database.store.version

    def is_settled(self, version: int) -> bool:
        return True

    def ceiling_for(self, version: int) -> int:
        return version

    def has_reached(self, position: "LogPosition") -> bool:
        return True

    def wait(self, waiter: object, position: "LogPosition") -> None: ...
    def expect(self, count: int, flush: object) -> None: ...
    def write_at_once(self) -> None: ...


class Durability:
    may_wait = True
    """Has the commit log written, and holds the answers that wait for it."""

    def __init__(
        self,
        database: Database,
        log: CommitLog,
        sync: str,
        interval_ms: int,
        loop: asyncio.AbstractEventLoop,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._database = database
        self._log = log
        self._always = sync == "always"
        self._interval_s = interval_ms / 1000 if sync == "interval" else None
        self._sync_timer: asyncio.TimerHandle | None = None
        self._mark_timer: asyncio.TimerHandle | None = None
        self._marked = log.synced
        self._loop = loop
        self._on_failure = on_failure
        self._worker = ThreadPoolExecutor(1, "commit-log")
        self._waiting: dict[Any, None] = {}  # in the order they came
        self._is_due = False
        self._busy = False  # the worker has something to do with the log
        self._syncing = False  # and it is no more than a sync
        self._free = asyncio.Event()
        # While those who were just answered are given time to come back: until when, and how many there would be.
        self._gathering: asyncio.TimerHandle | None = None
        self._gathered = 0
        self._expected = 0  # commits that were put aside, and are not in the log yet
        self._sync_wanted = 0
        self._is_written_enough = False  # for somebody who waits, and need not wait for the sync
        self._failed = False
        self._raising = False
        # Called before something is written: whoever has put commits aside makes them.
        self.before_write: Callable[[], None] | None = None
        # Called when more has reached the disk.
        self.on_progress: Callable[[], None] | None = None
        self.sync_times = Histogram(SYNC_BOUNDS)
        log.on_sync = self.sync_times.observe
        database.on_logged = self._wake
        database.shown = log.synced
        self._written = self._synced = log.synced

    def newest(self) -> int:
        return min(self._database.store.version, self._log.added)

    def is_settled(self, version: int) -> bool:
        return version <= (self._synced if self._always else self._written) and version >= self._sync_wanted

    @property
    def always(self) -> bool:
        return self._always

    def ceiling_for(self, version: int) -> int:
        """Up to which version one may be shown early; it is raised ahead of time."""
        ceiling = self._log.ceiling
        if version > ceiling - CEILING_STEP // 2 and not self._raising:
            self._raising = True
            self._loop.create_task(self._raise_ceiling(version + CEILING_STEP))
        return ceiling

    async def begin_early(self) -> None:
        """Raise the first ceiling, for a daemon that shows versions early."""
        await self._raise_ceiling(self._database.store.version + CEILING_STEP)

    async def _raise_ceiling(self, version: int) -> None:
        try:
            await self.in_worker(lambda: self._log.raise_ceiling(version))
            self._raising = False
        except NoSpace:  # answers wait for syncs meanwhile
            self._loop.call_later(CEILING_RETRY_S, self._allow_raising)

    def _allow_raising(self) -> None:
        self._raising = False

    def has_reached(self, needs: LogPosition) -> bool:
        """Whether an answer with these needs may leave."""
        return needs.written <= self._written and needs.synced <= self._synced

    def wait(self, session: Any, needs: LogPosition) -> None:  # noqa: ANN401
        """``session`` holds an answer; it is told when more has reached the disk."""
        self._waiting[session] = None
        if needs.written > needs.synced:
            self._is_written_enough = True
            if self._syncing:
                self._loop.call_soon(self._write_during_sync)
        if needs.synced > self._synced:
            self._sync_wanted = max(self._sync_wanted, needs.synced)
        self._wake()

    # ------------------------------------------------------------------ the worker

    def _wake(self) -> None:
        """Write what there is, once this turn of the loop is over, so that it brings all of it together."""
        if self._is_due or self._busy or self._failed:
            return
        if self._gathering is not None and self._log.pending + self._expected < self._gathered:
            return
        self._is_due = True
        self._loop.call_soon(self._start)

    @property
    def is_occupied(self) -> bool:
        """Whether a commit made now waits for the next sync, as all do, and that has not begun."""
        return self._always and (self._busy or self._gathering is not None)

    def expect(self, count: int, flush: Callable[[], None]) -> None:
        """So many commits have been put aside, which will be made ``before_write``."""
        self._expected = count
        self.before_write = flush
        self._wake()

    def write_at_once(self) -> None:
        """Begin to write what was added, if nothing is under way and nobody is given time to come back."""
        if self._is_due and self._gathering is None:
            self._start()

    def _start(self) -> None:
        self._stop_gathering()
        if self.before_write is not None and self._expected and not self._busy:
            self._expected = 0
            self.before_write()
        self._is_due = False
        if self._busy or self._failed:
            return
        batch = self._log.take()
        sync = self._always or self._sync_wanted > self._synced
        if batch is None:
            if not self._sync_wanted > self._synced:
                return
            batch = Batch([], [], self._written)
        if sum(batch.sizes) > INLINE_BYTES:
            self._begin(batch, lambda: self._log.write(batch, sync=sync))
        elif self._write_here(batch):
            if sync:
                self._release_early()
                self._begin(batch, self._log.sync)
            else:
                self._log.done(batch)
                self._note_progress()

    def _release_early(self) -> None:
        """Answer those for whom it is enough that it is written."""
        if self._is_written_enough:
            self._is_written_enough = False
            self._note_progress()

    def _write_during_sync(self) -> None:
        """Somebody need not wait for a sync, and one is under way: it does no harm to write behind its back."""
        if not self._syncing or not self._log.fits_now() or (batch := self._log.take()) is None:
            return
        if self._write_here(batch):
            self._log.done(batch)
            self._release_early()

    def _write_here(self, batch: Batch) -> bool:
        """Little is written without the worker: the way there and back costs more than a write into allocated room."""
        try:
            self._log.write(batch, sync=False)
        except OSError as error:
            self._fail(error)
        return not self._failed

    def _begin(self, batch: Batch, work: Callable[[], None]) -> None:
        self._claim(work)  # at once: nobody may come between that has taken later commits
        self._loop.create_task(self._do(batch, work))

    async def _do(self, batch: Batch, work: Callable[[], None]) -> None:
        begin = self._loop.time()
        try:
            await self._run(work)
        except OSError:
            return
        self._log.done(batch)
        self._gather(len(batch.groups), self._loop.time() - begin)

    def _gather(self, released: int, sync_s: float) -> None:
        """Wait a little for those who were just answered to come back, so that the next sync serves them too.

        Without it they and those who came meanwhile take turns, and each sync serves only half of them (measured with
        32 connections: 18,000 commits a second, and 34,000 with it). Who is alone never waits.
        """
        pending = self._log.pending + self._expected
        self._gathered = released + pending
        if released > 1 or pending:
            wait_s = min(max(sync_s / 2, MIN_GATHER_S), MAX_GATHER_S)
            self._gathering = self._loop.call_later(wait_s, self._start)
        self._wake()

    def _stop_gathering(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None

    def _fail(self, error: BaseException) -> None:
        self._failed = True
        self._waiting.clear()
        self._on_failure(error)

    def _note_progress(self) -> None:
        self._written, self._synced = self._log.written, self._log.synced
        self._database.shown = self._synced if self._always else self._written
        self._database.room.on_visible()
        waiting, self._waiting = self._waiting, {}
        for session in waiting:
            session.on_durable()
        if self._database.on_commit is not None:
            self._database.on_commit()
        self._arm_timers()
        if self.on_progress is not None:
            self.on_progress()

    def _arm_timers(self) -> None:
        if self._interval_s is not None and self._written > self._synced and self._sync_timer is None:
            self._sync_timer = self._loop.call_later(self._interval_s, self._sync_now)
        if self._synced > self._marked and self._mark_timer is None:
            self._mark_timer = self._loop.call_later(MARK_S, self._maybe_mark, self._written)

    def _sync_now(self) -> None:
        self._sync_timer = None
        self._sync_wanted = max(self._sync_wanted, self._written)
        self._wake()

    def _maybe_mark(self, written: int) -> None:
        """Vouch for the last commits once none has come for a while; then nothing wakes up any more."""
        self._mark_timer = None
        if written != self._log.added:
            self._arm_timers()
        elif not self._failed:
            self._marked = written
            self._loop.create_task(self.in_worker(self._log.mark))

    async def in_worker(self, work: Callable[[], Result]) -> Result:
        """Do something with the log in the worker, alone. Its OSError ends the daemon too."""
        await self._turn()
        self._claim(work)
        try:
            return await self._run(work)
        finally:
            self._wake()

    async def _behind_all(self, work: Callable[[], Result]) -> Result:
        """The same behind all commits that have been added when its turn comes, and that it writes."""
        await self._turn()
        batch = self._log.take()

        def write_first() -> Result:
            if batch is not None:
                self._log.write(batch, sync=False)
            return work()

        self._claim(write_first)
        try:
            return await self._run(write_first)
        finally:
            if batch is not None:
                self._log.done(batch)
            self._wake()

    async def _turn(self) -> None:
        while self._busy:
            await self._free.wait()

    def _claim(self, work: Callable[[], object]) -> None:
        """Nobody else uses the log until ``work`` is done."""
        self._busy = True
        self._syncing = work == self._log.sync
        self._free.clear()

    async def _run(self, work: Callable[[], Result]) -> Result:
        """Do what the log has been claimed for. It must not be cancelled: the worker would go on."""
        try:
            return await self._loop.run_in_executor(self._worker, work)
        except OSError as error:
            self._fail(error)
            raise
        finally:
            self._busy = self._syncing = False
            self._free.set()
            if not self._failed:
                self._note_progress()

    async def flush(self) -> None:
        """Return when everything added so far is written and synced."""
        await self._behind_all(self._log.sync)

    async def rotate(self) -> tuple[int, int]:
        """Go on in a new segment; its number, and the version before it. Raises NoSpace, with nothing changed."""

        def work() -> tuple[int, int]:
            return self._log.rotate(), self._log.written

        return await self._behind_all(work)

    async def close(self) -> None:
        """Write and sync everything, with a mark that nothing follows; end the worker. Raises OSError."""
        for timer in (self._sync_timer, self._mark_timer):
            if timer is not None:
                timer.cancel()
        if not self._failed:
            await self.flush()
            await self.in_worker(self._log.close)
        self._worker.shutdown(wait=True)
