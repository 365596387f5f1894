"""A database with its commit log on some disk, driven by hand: it writes, syncs and answers only on demand."""

import asyncio
import random
from collections.abc import Callable

from kvd.engine.database import Database
from kvd.engine.durability import LogDurability
from kvd.engine.journal import DurableJournal, LogProgress
from kvd.engine.replay import Replay
from kvd.journal.checkpoint import CheckpointFile, remove_superseded, slices
from kvd.journal.commit_log import CommitLog, Tail
from kvd.journal.disk import Disk
from kvd.journal.records import Header
from kvd.journal.recovery import Recovered, prepare_tail, recover
from kvd.store.authors import Author
from kvd.store.lifetimes import NO_EXPIRY, Expiry
from kvd.store.store import Store
from kvd.store.window import WindowLimits

ME = Author(1000, 7, "test")
SEGMENT_BYTES = 4096
# Clocks stand still by default; the one of deadlines starts anywhere.
WALL_US, BOOT_US = 1_700_000_000_000_000, 5_000_000


class ByHand:
    """Stands in for the durability: the test sets which version may be shown."""

    def __init__(self) -> None:
        self.shown = 0

    def wake(self) -> None:
        """Do nothing: the test decides when to write."""

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Do nothing: no client waits for ``shown``."""


class Running:
    """What ``kvd.service.storage`` does, without the event loop. ``progress`` has the log written."""

    def __init__(
        self,
        disk: Disk,
        *,
        limits: WindowLimits | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        seed: int = 1,
        now: Callable[[], int] = lambda: 0,
        wall: Callable[[], int] | None = None,
        log_type: type[CommitLog] = CommitLog,
        prepare: Callable[[Disk, Recovered], None] = prepare_tail,
        progress: Callable[[Store, CommitLog], LogProgress] = lambda store, log: ByHand(),
        boot: bytes = b"one boot",
    ) -> None:
        self.disk = disk
        self.random = random.Random(seed)  # noqa: S311 - a test that can be repeated
        contents = Replay(limits, wall or (lambda: WALL_US + now()), lambda: BOOT_US + now(), boot)
        self.found = recover(disk, contents)
        prepare(disk, self.found)
        self.store_id = self.found.store_id or b"a store!"
        version = contents.store.version
        header = Header(0, self.found.number + 1, version, self.found.version, self.store_id)
        tail = Tail(self.found.number, self.found.salt, self.found.tail_end) if self.found.number else None
        clock = contents.commit_clock.record
        self.log = log_type(disk, header, segment_bytes, lambda: self.random.getrandbits(64), tail=tail, clock=clock)
        self.progress = progress(contents.store, self.log)
        journal = DurableJournal(self.log, contents, self.progress)
        self.database = Database(contents=contents, journal=journal, store_id=self.store_id.hex())
        self.ends = dict(self.found.checkpoints)
        self.database.delete_orphaned_ephemerals()

    def set(self, entries: dict[str, bytes], expiry: Expiry = NO_EXPIRY, *, id_: bytes | None = None) -> int:
        """Apply a commit and add it to the log."""
        if id_ is None:
            return self.database.set(entries, ME, expiry)
        return self.database.run_once(1000, id_, None, lambda: self.database.set(entries, ME, expiry))

    def write(self, *, sync: bool = True) -> None:
        """Write the added groups."""
        batch = self.log.take()
        if batch is not None:
            self.log.write(batch, sync=sync)
            self.log.release(batch)
        elif sync:
            self.log.sync()

    def rotate(self) -> int:
        """Begin a new segment."""
        self.write(sync=False)
        return self.log.rotate()

    def checkpoint(self, between: Callable[[], None] = lambda: None) -> int:
        """Write a checkpoint, calling ``between`` before each step; return its number."""
        number = self.rotate()
        header = Header(self.random.getrandbits(64), number, self.log.written, self.log.written, self.store_id)
        file = CheckpointFile(self.disk, header)
        try:
            between()
            for record in slices(self.database):
                file.write(record)
                between()
            end, time = self.log.added, self.database.store.time
            self.write()
            between()
            file.finish(end, time)
        except BaseException:
            file.abandon()
            raise
        self.ends[number] = end
        return number

    def remove_superseded(self) -> list[str]:
        """Remove the files that nothing needs."""
        return remove_superseded(self.disk, self.ends, self.database.store.window.oldest_readable)


def items(database: Database) -> dict[str, tuple[bytes | None, int]]:
    """Return the current values with their versions."""
    return {
        item.key: (item.value, item.version) for item in database.store.scan("", None, 10**6, max_bytes=1 << 40).items
    }


def recovered(
    disk: Disk,
    limits: WindowLimits | None = None,
    clock: Callable[[], int] = lambda: WALL_US,
    timer: Callable[[], int] = lambda: BOOT_US,
) -> tuple[Database, Recovered]:
    """A database in memory with what a directory holds, and what was found there."""
    contents = Replay(limits, clock, timer)
    found = recover(disk, contents)
    return Database(contents=contents), found


def durably_running(
    disk: Disk,
    sync: str,
    on_failure: Callable[[BaseException], None] = lambda error: None,
    *,
    segment_bytes: int = SEGMENT_BYTES,
    interval_ms: int = 60_000,
) -> tuple[Running, LogDurability]:
    """A database whose log is written by the event loop that runs, and what has it written."""
    loop = asyncio.get_running_loop()

    def progress(store: Store, log: CommitLog) -> LogDurability:
        return LogDurability(store, log, sync, interval_ms, loop, on_failure)

    running = Running(disk, segment_bytes=segment_bytes, progress=progress)
    assert isinstance(running.progress, LogDurability)
    return running, running.progress
