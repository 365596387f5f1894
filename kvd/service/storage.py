"""The data directory of a running daemon: opened and recovered at the start, checkpointed now and then, closed.

start     lock ─ recover ─ make the tail certain ─ new segment ─▶ serve
running   commit log (``kvd/engine/durability.py``); a checkpoint when the log has grown by as much as the last
          one was large, and by checkpoint_bytes at least
stop      write, sync, mark that nothing follows
"""

import asyncio
import errno
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from kvd.engine.database import Database
from kvd.engine.durability import Durability
from kvd.journal import names
from kvd.journal.checkpoint import CheckpointFile, remove_superseded, slices
from kvd.journal.commit_log import CommitLog
from kvd.journal.disk import Disk, check_owner
from kvd.journal.errors import Damaged, JournalError, NoSpace
from kvd.journal.records import Header
from kvd.journal.recovery import Recovered, prepare_tail, recover
from kvd.service import systemd
from kvd.service.config.sections import Data
from kvd.service.errors import EXIT_CONFIGURATION, EXIT_DAMAGED, EXIT_IO_ERROR, StartError
from kvd.service.locks import LockFile
from kvd.service.progress import NullProgress, ProgressBar

logger = logging.getLogger(__name__)

_REPORT_S = 2.0
SWITCH_INTERVAL_S = 0.000_2
_EXTEND_US = 30_000_000


class _Stopping(Exception):
    """A checkpoint is given up because the daemon stops."""


def _report(done: int, size: int, *, to_log: bool) -> None:
    text = f"recovering: {done * 100 // max(size, 1)} % of {size >> 20} MiB"
    if to_log:
        logger.info("%s", text)
    systemd.notify(f"STATUS={text}", f"EXTEND_TIMEOUT_USEC={_EXTEND_US}")


class Storage:
    """One data directory, for as long as the daemon runs."""

    def __init__(self, config: Data, database: Database) -> None:
        self.config = config
        self._database = database
        self._directory = config.dir
        self.directory_lock = LockFile(os.path.join(config.dir, names.LOCK))
        self._ends: dict[int, int] = {}
        self._logged_at = 0  # bytes of the log when the last checkpoint began
        self._checkpoint_bytes = 0  # size of the last checkpoint
        self._checkpoint: asyncio.Task[None] | None = None
        self._one_more = False
        self._is_stopping = False
        self._failures = 0
        self.recovered = Recovered()

    # ------------------------------------------------------------------ start

    def lock(self) -> None:
        """Take the directory, which is made if it is missing. Raises StartError."""
        try:
            os.makedirs(self._directory, 0o700, exist_ok=True)
            problem = check_owner(self._directory)
        except OSError as error:
            raise StartError(EXIT_IO_ERROR, f"data directory {self._directory}: {error.strerror}") from None
        if problem:
            raise StartError(EXIT_CONFIGURATION, f"data directory {self._directory}: {problem}")
        self.directory_lock.acquire()

    def open(self, bar: Callable[[], ProgressBar] = NullProgress) -> None:
        """Recover what is there, and open the commit log. Raises StartError."""
        self.directory_lock.write_pid()
        try:
            self._disk = Disk(self._directory)
            self._recover(bar)
            prepare_tail(self._disk, self.recovered)
            self.log = self._open_log()
        except JournalError as error:
            hint = f"; nothing was changed; see: kv check {self._directory}" if isinstance(error, Damaged) else ""
            raise StartError(EXIT_DAMAGED, f"{error}{hint}") from None
        except OSError as error:
            full = " (the disk is full)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise StartError(EXIT_IO_ERROR, f"data directory {self._directory}: {error.strerror}{full}") from None

    def _recover(self, bar: Callable[[], ProgressBar]) -> None:
        begin = time.monotonic()
        reported = begin

        with bar() as shown:

            def progress(done: int, size: int) -> None:
                nonlocal reported
                shown.update(done, size)
                now = time.monotonic()
                if now - reported > _REPORT_S:
                    reported = now
                    _report(done, size, to_log=not shown.is_visible)

            self.recovered = found = recover(self._disk, self._database, progress)
        self._ends = dict(found.checkpoints)
        if found.torn is not None:
            text = "%s: torn at byte %d, %d bytes behind version %d are left out; nobody was told of them"
            logger.warning(text, found.torn.path, found.torn.offset, found.torn.bytes, found.torn.version)
        keys, seconds = self._database.store.counters.keys, time.monotonic() - begin
        logger.info("recovered: version %d, %d keys, %d commits, %.1f s", found.version, keys, found.commits, seconds)

    def _open_log(self) -> CommitLog:
        found = self.recovered
        store_id = found.store_id or secrets.token_bytes(8)
        self._database.store_id = store_id.hex()
        version = self._database.store.version
        header = Header(0, found.number + 1, version, found.version, store_id)
        return CommitLog(self._disk, header, self.config.segment_bytes, lambda: secrets.randbits(64))

    # ------------------------------------------------------------------ running

    async def start(self, on_failure: Callable[[BaseException], None]) -> Durability:
        """Connect the database with its log; from then on commits are durable."""
        loop = asyncio.get_running_loop()
        config = self.config
        # The worker needs the interpreter for an instant between two system calls, and must not wait 5 ms for it.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self.durability = Durability(self._database, self.log, config.sync, config.interval_ms, loop, on_failure)
        self.durability.on_progress = self._maybe_checkpoint
        self._database.log = self.log
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        if config.sync != "always":
            await self.durability.begin_early()
        self._database.delete_orphaned_ephemerals()
        return self.durability

    def _maybe_checkpoint(self) -> None:
        """Begin a checkpoint if the log has grown enough since the last."""
        grown = self.log.bytes - self._logged_at
        if grown >= max(self.config.checkpoint_bytes, self._checkpoint_bytes) and self._checkpoint is None:
            self.begin_checkpoint()

    def begin_checkpoint(self) -> None:
        """Write a checkpoint of all that is there now; behind the one that is being written, if there is one."""
        if self._checkpoint is None:
            self._checkpoint = asyncio.get_running_loop().create_task(self._write_checkpoint())
        else:
            self._one_more = True

    async def _write_checkpoint(self) -> None:
        try:
            await self._write_slices()
        except _Stopping:
            return
        except (OSError, NoSpace) as error:
            self._failures += 1
            self._logged_at = self.log.bytes  # not again before the log has grown as much once more
            why = error.strerror if isinstance(error, OSError) else error
            logger.error("no checkpoint could be written: %s; the log goes on", why)
        finally:
            self._checkpoint = None
        if self._one_more:
            self._one_more = False
            self.begin_checkpoint()

    def figures(self) -> list[tuple[str, int]]:
        """What the metrics show."""
        return [
            ("log_bytes_written", self.log.bytes),
            ("log_synced_version", self.log.synced),
            ("log_ceiling_version", self.log.ceiling),
            ("checkpoint_version", max(self._ends.values(), default=0)),
            ("checkpoint_failures", self._failures),
        ]

    async def _write_slices(self) -> None:
        loop, database = asyncio.get_running_loop(), self._database
        begin = time.monotonic()
        number, version = await self.durability.rotate()
        self._logged_at = self.log.bytes
        header = Header(secrets.randbits(64), number, version, version, bytes.fromhex(database.store_id))
        file = await loop.run_in_executor(self._writer, CheckpointFile, self._disk, header)
        try:
            for record in slices(database):
                if self._is_stopping:
                    raise _Stopping
                await loop.run_in_executor(self._writer, file.write, record)
            # Not the store's version: what found no room in the log is ahead of it.
            end, end_time = self.log.added, database.store.time
            await self.durability.flush()
            size = await loop.run_in_executor(self._writer, file.finish, end, end_time)
        except BaseException:
            await loop.run_in_executor(self._writer, file.abandon)
            raise
        self._ends[number] = end
        self._checkpoint_bytes = size
        text = "checkpoint at version %d: %d keys, %d bytes, %.1f s"
        logger.info(text, end, file.keys, size, time.monotonic() - begin)
        await self._remove_superseded()

    async def _remove_superseded(self) -> None:
        oldest = self._database.store.window.oldest_readable
        loop = asyncio.get_running_loop()
        removed = await loop.run_in_executor(self._writer, remove_superseded, self._disk, self._ends, oldest)
        for number in names.checkpoint_numbers(removed):
            self._ends.pop(number, None)
        if removed:
            logger.debug("removed %s", ", ".join(removed))

    # ------------------------------------------------------------------ stop

    async def stop(self) -> None:
        """Write down everything, and that nothing follows. Raises OSError."""
        self._is_stopping, self._one_more = True, False
        if self._checkpoint is not None:  # not cancelled: the commit log may be just about to begin a segment for it
            await asyncio.gather(self._checkpoint, return_exceptions=True)
        await self.durability.close()
        self._writer.shutdown(wait=True)
