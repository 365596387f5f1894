"""The data directory of a daemon: locked, recovered and opened at the start, before the event loop runs.

DataDirectory   lock ─ recover ─ make the tail certain ─ new segment ─▶ Storage
Storage         what the running daemon writes to (``wiring.py``, ``checkpoints.py``)
"""

import errno
import logging
import secrets
import time
from collections.abc import Callable

import msgspec

from kvd.engine.replay import Replay
from kvd.journal.commit_log import CommitLog, Tail
from kvd.journal.disk import Disk
from kvd.journal.errors import Damaged, JournalError
from kvd.journal.records import Header
from kvd.journal.recovery import Recovered, prepare_tail, recover
from kvd.protocol import exits
from kvd.service import systemd
from kvd.service.config.sections import Data
from kvd.service.directory_lock import DirectoryLock
from kvd.service.errors import StartError
from kvd.service.progress import NullProgress, ProgressBar
from kvd.telemetry.metrics import SYNC_BOUNDS, Histogram

logger = logging.getLogger(__name__)

_REPORT_S = 2.0
_EXTEND_US = 30_000_000


def _report(done: int, size: int, *, to_log: bool) -> None:
    text = f"recovering: {done * 100 // max(size, 1)} % of {size >> 20} MiB"
    if to_log:
        logger.info("%s", text)
    systemd.notify(f"STATUS={text}", f"EXTEND_TIMEOUT_USEC={_EXTEND_US}")


class Storage(msgspec.Struct, frozen=True):
    """An open data directory: its disk, the commit log to be written, and what the recovery found.

    ``sync_times``: how long the log's syncs took.
    """

    config: Data
    disk: Disk
    log: CommitLog
    recovered: Recovered
    store_id: bytes
    sync_times: Histogram


class DataDirectory:
    """A data directory that is to be opened. ``contents`` is empty, and filled by the recovery."""

    def __init__(self, config: Data, contents: Replay) -> None:
        self._config = config
        self._contents = contents
        self._directory = config.dir
        self.lock = DirectoryLock(config.dir)

    def open(self, bar: Callable[[], ProgressBar] = NullProgress, check: Callable[[], None] = lambda: None) -> Storage:
        """Recover what is there, and open the commit log. Raises StartError, and what ``check`` raises meanwhile."""
        self.lock.write_pid()
        try:
            disk = Disk(self._directory)
            recovered = self._recover(disk, bar, check)
            check()
            prepare_tail(disk, recovered)
            return self._open_log(disk, recovered)
        except JournalError as error:
            hint = f"; nothing was changed; see: kv check {self._directory}" if isinstance(error, Damaged) else ""
            raise StartError(exits.DAMAGED_DATA, f"{error}{hint}") from None
        except OSError as error:
            full = " (the disk is full)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise StartError(exits.IO_ERROR, f"data directory {self._directory}: {error.strerror}{full}") from None

    def _recover(self, disk: Disk, bar: Callable[[], ProgressBar], check: Callable[[], None]) -> Recovered:
        begin = time.monotonic()
        reported = begin

        with bar() as shown:

            def progress(done: int, size: int) -> None:
                nonlocal reported
                check()
                shown.update(done, size)
                now = time.monotonic()
                if now - reported > _REPORT_S:
                    reported = now
                    _report(done, size, to_log=not shown.is_visible)

            found = recover(disk, self._contents, progress)
        if found.torn is not None:
            text = "%s: torn at byte %d; %d bytes after version %d are left out; no client was told of them"
            logger.warning(text, found.torn.path, found.torn.offset, found.torn.bytes, found.torn.version)
        keys, seconds = self._contents.count_keys(), time.monotonic() - begin
        logger.info("recovered: version %d, %d keys, %d commits, %.1f s", found.version, keys, found.commits, seconds)
        return found

    def _open_log(self, disk: Disk, found: Recovered) -> Storage:
        store_id = found.store_id or secrets.token_bytes(8)
        header = Header(0, found.number + 1, self._contents.store.version, found.version, store_id)
        sync_times = Histogram(SYNC_BOUNDS)
        log = CommitLog(
            disk,
            header,
            self._config.segment_bytes,
            lambda: secrets.randbits(64),
            on_sync=sync_times.observe,
            tail=Tail(found.number, found.salt, found.tail_end) if found.number else None,
            clock=self._contents.commit_clock.record,
        )
        if not log.has_segment:
            logger.error(
                "no space can be allocated in %s: reads are served, writes refused until there is some", disk.directory
            )
        return Storage(self._config, disk, log, found, store_id, sync_times)
