"""The commit log's writer: one thread that syncs, and group commit. It knows the log and the event loop, no database.

A *cycle* writes what was added and syncs it. While the thread syncs, the loop goes on and more is added, which the next
cycle takes together. So one sync serves all commits that came during the sync before:

        loop      add ─ write ─┐         add  add  add ─ write ─┐
        thread                 └─ sync ───────────────┐         └─ sync ────── …
                                                      └▶ on_progress: replies may leave

A little is written in the loop itself: the way to the thread and back costs more than a write into allocated space.
Anything else that is done with the log (a new segment, a mark) runs in the thread between two cycles.

If the log fails, nothing is written any more and the daemon ends: after a failed sync it is not known what is on the
disk (A. Rebello et al., *Can Applications Recover from fsync Failures?*, USENIX ATC 2020).
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from kvd.journal.commit_log import Batch, CommitLog

# A mark vouches for the last commit after this time without another one.
MARK_S = 1.0
# With an interval, no acknowledgement is given while an earlier one has waited for its sync for longer than this number
# of intervals. So a power cut takes no more than the acknowledgements of that time.
MAX_INTERVALS = 2
# How long a cycle waits for clients that were just answered: half of what the sync took, within these bounds.
MIN_GATHER_S = 0.000_1
MAX_GATHER_S = 0.002
# No more than this is written in the loop itself, in 5 µs and more.
INLINE_BYTES = 1024 * 1024

Result = TypeVar("Result")


def _flush_nothing() -> None:
    """No commits are expected."""


class LogWriter:
    """Writes and syncs ``log``. ``written``, ``synced``: up to which version, as of the last ``on_progress``.
    ``sync_wanted``: the newest version whose sync a client has waited for. ``is_busy``: the thread uses the log;
    ``is_gathering``: a cycle waits for clients that were just answered.

    ``always``: each cycle syncs. ``interval_s``: what was only written is synced after this time; None: when the
    system likes. ``on_progress`` is called when more is written or synced, ``on_failure`` when the log fails.
    """

    def __init__(
        self,
        log: CommitLog,
        loop: asyncio.AbstractEventLoop,
        *,
        always: bool,
        interval_s: float | None,
        on_progress: Callable[[], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._log = log
        self._loop = loop
        self._always = always
        self._interval_s = interval_s
        self._on_progress = on_progress
        self._on_failure = on_failure
        self.written = self.synced = self._marked = log.synced
        self._thread = ThreadPoolExecutor(1, "commit-log")
        self._due: asyncio.Handle | None = None  # a cycle at the end of this turn of the loop
        self.is_busy = False
        self._is_syncing = False  # the thread syncs, and does nothing else
        self._free = asyncio.Event()
        self._is_failed = False
        # While a cycle waits for clients: its timer, and the number of commits if all of them send one.
        self.is_gathering = False
        self._gathering: asyncio.TimerHandle | None = None
        self._gathered = 0
        # Commits that are not in the log yet, and what makes them.
        self._expected = 0
        self._flush: Callable[[], None] = _flush_nothing
        self.sync_wanted = 0
        self._is_write_wanted = False  # a client waits, and need not wait for the sync
        self._sync_timer: asyncio.TimerHandle | None = None
        self._mark_timer: asyncio.TimerHandle | None = None
        self._mark: asyncio.Task[None] | None = None
        # With an interval: when the oldest write that is not synced was made, and when the sync under way began.
        self._unsynced_since: float | None = None
        self._sync_began = 0.0

    # ------------------------------------------------------------------ what starts a cycle

    def wake(self) -> None:
        """Begin a cycle at the end of this turn of the loop, so that it takes all that the turn adds."""
        if self._due is not None or self.is_busy or self._is_failed:
            return
        if not self.is_gathering or self._log.pending + self._expected >= self._gathered:
            self._due = self._loop.call_soon(self._begin_cycle)

    def want(self, written: int, synced: int) -> None:
        """A client waits until the log is written, and synced, up to these versions."""
        if written > synced:
            self._is_write_wanted = True
            if self._is_syncing:
                self._loop.call_soon(self._write_during_sync)
        if synced > self.synced and synced > self.sync_wanted:
            self.sync_wanted = synced
        if not self.is_busy:
            self.wake()

    def expect(self, count: int, flush: Callable[[], None]) -> None:
        """Call ``flush``, which makes ``count`` commits, before the next cycle."""
        self._expected, self._flush = count, flush
        self.wake()

    def write_at_once(self) -> None:
        """Begin the cycle that is due, unless clients get time to come back."""
        if self._due is not None and not self.is_gathering:
            self._begin_cycle()

    # ------------------------------------------------------------------ a cycle

    def _begin_cycle(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering, self.is_gathering = None, False
        if self._expected and not self.is_busy:
            self._expected = 0
            self._flush()
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self.is_busy or self._is_failed:
            return
        is_wanted = self.sync_wanted > self.synced
        sync = self._always or is_wanted
        batch = self._log.take()
        if batch is None:
            if not is_wanted:
                return
            batch = Batch([], [], self.written)
        if sum(batch.sizes) > INLINE_BYTES:
            self._begin_work(batch, partial(self._log.write, batch, sync=sync))
        elif not self._write_here(batch):
            return
        elif sync:
            self._begin_work(batch, self._log.sync, is_sync=True)
        else:
            self._log.release(batch)
            self._note_progress()

    def _write_here(self, batch: Batch) -> bool:
        try:
            self._log.write(batch, sync=False)
        except OSError as error:
            self._fail(error)
        return not self._is_failed

    def _write_during_sync(self) -> None:
        """Write what was added during a sync, for clients that need it only written: a sync does not mind."""
        if not self._is_syncing or not self._log.fits_now() or (batch := self._log.take()) is None:
            return
        if self._write_here(batch):
            self._log.release(batch)
            if self._is_write_wanted:
                self._note_written()

    def _note_written(self) -> None:
        """Release replies that need only a write, before the sync has ended."""
        self._is_write_wanted = False
        self._note_progress()

    def _begin_work(self, batch: Batch, work: Callable[[], None], *, is_sync: bool = False) -> None:
        """Give the thread its part of a cycle, at once: nothing may come between that has taken later commits."""
        self.is_busy = True
        self._is_syncing = is_sync
        self._sync_began = self._loop.time()
        self._free.clear()
        future = self._loop.run_in_executor(self._thread, work)
        future.add_done_callback(partial(self._end_cycle, batch, self._loop.time()))
        if is_sync and self._is_write_wanted:
            self._note_written()

    def _end_cycle(self, batch: Batch, began: float, future: "asyncio.Future[None]") -> None:
        self.is_busy = self._is_syncing = False
        self._free.set()
        try:
            future.result()
        except OSError as error:
            self._fail(error)
            return
        self._note_progress()
        self._log.release(batch)
        released = len(batch.groups)
        if released > 1 or self._log.pending or self._expected:
            self._gather(released, self._loop.time() - began)
        elif self.sync_wanted > self.synced:
            self.wake()

    def _gather(self, released: int, sync_s: float) -> None:
        """Wait a little for the clients that were just answered, so that the next sync serves them too.

        Otherwise they and the clients that came meanwhile take turns, and each sync serves only half of them (measured
        with 32 connections: 18,000 commits a second, and 34,000 with it). A client that is alone never waits.
        """
        pending = self._log.pending + self._expected
        self._gathered = released + pending
        wait_s = min(max(sync_s / 2, MIN_GATHER_S), MAX_GATHER_S)
        self._gathering, self.is_gathering = self._loop.call_later(wait_s, self._begin_cycle), True
        self.wake()

    def _note_progress(self) -> None:
        written, synced = self._log.written, self._log.synced
        if self._interval_s is not None and self._is_sync_late(written, synced):
            self.sync_wanted = max(self.sync_wanted, written)
            self.wake()
            written = max(self.written, synced)
        self.written, self.synced = written, synced
        self._on_progress()
        if self._mark_timer is None or self._interval_s is not None:
            self._arm_timers()

    def _is_sync_late(self, written: int, synced: int) -> bool:
        """Whether acknowledgements have to wait, because earlier ones have waited too long for their sync."""
        now = self._loop.time()
        if written == synced:
            self._unsynced_since = None
            return False
        if synced > self.synced:  # the rest was written after this sync began
            self._unsynced_since = self._sync_began
        elif self._unsynced_since is None:
            self._unsynced_since = now
        assert self._interval_s is not None
        return self._unsynced_since is not None and now - self._unsynced_since > MAX_INTERVALS * self._interval_s

    def _fail(self, error: BaseException) -> None:
        self._is_failed = True
        self._on_failure(error)

    # ------------------------------------------------------------------ timers

    def _arm_timers(self) -> None:
        if self._interval_s is not None and self._log.written > self.synced and self._sync_timer is None:
            self._sync_timer = self._loop.call_later(self._interval_s, self._sync_now)
        if self.synced > self._marked and self._mark_timer is None:
            self._mark_timer = self._loop.call_later(MARK_S, self._maybe_mark, self.written)

    def _sync_now(self) -> None:
        self._sync_timer = None
        self.sync_wanted = max(self.sync_wanted, self._log.written)
        self.wake()

    def _maybe_mark(self, written: int) -> None:
        """Vouch for the last commits once none has come for a while; then no timer runs any more."""
        self._mark_timer = None
        if written != self._log.added:
            self._arm_timers()
        elif not self._is_failed:
            self._marked = written
            self._mark = self._loop.create_task(self._write_mark())

    async def _write_mark(self) -> None:
        try:
            await self.run_alone(self._log.mark)
        except OSError:
            pass  # on_failure has been called with it

    # ------------------------------------------------------------------ between two cycles

    async def run_alone(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` in the thread while nothing else uses the log. An OSError of it ends the daemon, too."""
        while self.is_busy:
            await self._free.wait()
        return await self._run(work)

    async def run_after_all(self, work: Callable[[], Result]) -> Result:
        """Like ``run_alone``, but first write all commits that were added when its turn comes."""
        while self.is_busy:
            await self._free.wait()
        batch = self._log.take()
        if batch is None:
            return await self._run(work)

        def write_first() -> Result:
            self._log.write(batch, sync=False)
            return work()

        try:
            return await self._run(write_first)
        finally:
            self._log.release(batch)

    async def _run(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` in the thread. The caller must not be cancelled, because the thread would go on."""
        self.is_busy = True
        self._sync_began = self._loop.time()
        self._free.clear()
        try:
            return await self._loop.run_in_executor(self._thread, work)
        except OSError as error:
            self._fail(error)
            raise
        finally:
            self.is_busy = False
            self._free.set()
            if not self._is_failed:
                self._note_progress()
            self.wake()

    async def flush(self) -> None:
        """Return when everything added so far is written and synced. Raises OSError."""
        await self.run_after_all(self._log.sync)

    async def rotate(self) -> tuple[int, int]:
        """Go on in a new segment; return its number, and the version before it.

        Raises OSError, and NoSpace with nothing changed.
        """
        return await self.run_after_all(lambda: (self._log.rotate(), self._log.written))

    async def close(self) -> None:
        """Write and sync everything, with a mark that nothing follows; end the thread. Raises OSError."""
        for timer in (self._sync_timer, self._mark_timer):
            if timer is not None:
                timer.cancel()
        if self._mark is not None:
            await self._mark
        if not self._is_failed:
            await self.flush()
            await self.run_alone(self._log.close)
        self._thread.shutdown(wait=True)
