"""Checkpoints of a running daemon: written now and then, so that a start need not read the whole commit log.

A checkpoint begins when the log has grown by as much as the last checkpoint was large, and by checkpoint_bytes at
least; or when an administrator asks for one. One is written at a time, in slices, by a thread of its own.
"""

import asyncio
import errno
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from kvd.engine.database import Database
from kvd.engine.durability import LogDurability
from kvd.journal import names
from kvd.journal.checkpoint import CheckpointFile, remove_superseded, slices
from kvd.journal.errors import NoSpace
from kvd.journal.records import Header
from kvd.requests.errors import RequestError
from kvd.service.storage import Storage

logger = logging.getLogger(__name__)

# How often a busy log looks whether its file is still in the directory.
_LOOK_S = 1.0


class Checkpoints(Protocol):
    """The data directory of the running daemon, as the process sees it. ``policy``: how durable commits are."""

    policy: str

    async def start(self) -> None:
        """Prepare the database for its first client. Raises OSError."""

    def begin(self) -> None:
        """Begin a checkpoint of all that is there now. Raises RequestError if there is no data directory."""

    def counters(self) -> list[tuple[str, int]]:
        """Name and value of what the metrics show."""

    async def stop(self) -> None:
        """Write down everything, and that nothing follows. Raises OSError."""


class NoCheckpoints:
    """Everything is in memory only."""

    policy = "memory"

    async def start(self) -> None:
        """Prepare nothing."""

    def begin(self) -> None:
        """Refuse. Raises RequestError."""
        raise RequestError("bad_request", "everything is in memory only; start the daemon with --data-dir")

    def counters(self) -> list[tuple[str, int]]:
        """Count nothing."""
        return []

    async def stop(self) -> None:
        """Write nothing."""


class _Stopping(Exception):
    """A checkpoint is given up because the daemon stops."""


class DiskCheckpoints:
    """Writes checkpoints of ``database`` beside the log of ``storage``."""

    def __init__(
        self,
        storage: Storage,
        database: Database,
        durability: LogDurability,
        loop: asyncio.AbstractEventLoop,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.policy = storage.config.sync
        self._config = storage.config
        self._disk = storage.disk
        self._log = storage.log
        self._database = database
        self._durability = durability
        self._loop = loop
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._ends = dict(storage.recovered.checkpoints)
        self._logged_at = 0  # bytes of the log when the last checkpoint began
        self._checkpoint_bytes = 0  # size of the last checkpoint
        self._task: asyncio.Task[None] | None = None
        self._one_more = False
        self._is_stopping = False
        self._failures = 0
        self._on_failure = on_failure
        self._look_at = loop.time()
        durability.subscribe(self._begin_if_due)
        durability.subscribe(self._look_after_file)

    async def start(self) -> None:
        """Raise the first ceiling if versions are shown early, and delete the keys of connections that have ended."""
        if not self._durability.always:
            await self._durability.begin_early()
        self._database.delete_orphaned_ephemerals()

    def _begin_if_due(self) -> None:
        """Begin a checkpoint if the log has grown enough since the last one."""
        grown = self._log.bytes - self._logged_at
        is_due = grown >= max(self._config.checkpoint_bytes, self._checkpoint_bytes)
        if is_due and self._task is None and not self._is_stopping:
            self.begin()

    def _look_after_file(self) -> None:
        """Fail if the file that is written is not in the directory any more: the next start would not find it."""
        now = self._loop.time()
        if now < self._look_at or self._durability.writer.is_busy:
            return
        self._look_at = now + _LOOK_S
        if not self._log.is_in_place():
            text = "its file was removed or replaced in the data directory"
            self._on_failure(OSError(errno.ESTALE, text))

    def begin(self) -> None:
        """Write a checkpoint of all that is there now, after the one that is being written, if there is one."""
        if self._is_stopping:
            raise RequestError("shutting_down", "the server is stopping; the stop writes down everything itself")
        if self._task is None:
            self._task = self._loop.create_task(self._write())
        else:
            self._one_more = True

    async def _write(self) -> None:
        try:
            await self._write_slices()
        except _Stopping:
            return
        except (OSError, NoSpace) as error:
            self._failures += 1
            self._logged_at = self._log.bytes  # the next one begins after the log has grown as much again
            why = error.strerror if isinstance(error, OSError) else error
            logger.error("no checkpoint could be written: %s; the log goes on", why)
        finally:
            self._task = None
        if self._one_more:
            self._one_more = False
            self.begin()

    async def _write_slices(self) -> None:
        database = self._database
        begin = time.monotonic()
        number, version = await self._durability.rotate()
        self._logged_at = self._log.bytes
        header = Header(secrets.randbits(64), number, version, version, bytes.fromhex(database.store_id))
        file = await self._loop.run_in_executor(self._thread, CheckpointFile, self._disk, header)
        try:
            for record in slices(database):
                if self._is_stopping:
                    raise _Stopping
                await self._loop.run_in_executor(self._thread, file.write, record)
            # Not the store's version: deletions for which the log had no space are ahead of it.
            end, end_time = self._log.added, database.store.time
            await self._durability.flush()
            size = await self._loop.run_in_executor(self._thread, file.finish, end, end_time)
        except BaseException:
            await self._loop.run_in_executor(self._thread, file.abandon)
            raise
        self._ends[number] = end
        self._checkpoint_bytes = size
        text = "checkpoint at version %d: %d keys, %d bytes, %.1f s"
        logger.info(text, end, file.keys, size, time.monotonic() - begin)
        await self._remove_superseded()

    async def _remove_superseded(self) -> None:
        oldest = self._database.store.window.oldest_readable
        removed = await self._loop.run_in_executor(self._thread, remove_superseded, self._disk, self._ends, oldest)
        for number in names.checkpoint_numbers(removed):
            self._ends.pop(number, None)
        if removed:
            logger.debug("removed %s", ", ".join(removed))

    def counters(self) -> list[tuple[str, int]]:
        """Name and value of what the metrics show."""
        return [
            ("log_bytes_written", self._log.bytes),
            ("log_synced_version", self._log.synced),
            ("log_ceiling_version", self._log.ceiling),
            ("checkpoint_version", max(self._ends.values(), default=0)),
            ("checkpoint_failures", self._failures),
        ]

    async def stop(self) -> None:
        """Write down everything, and that nothing follows. Raises OSError."""
        self._is_stopping, self._one_more = True, False
        if self._task is not None:  # not cancelled: the commit log may be just about to begin a segment for it
            await asyncio.gather(self._task, return_exceptions=True)
        await self._durability.close()
        self._thread.shutdown(wait=True)
