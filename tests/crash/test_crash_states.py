"""Power cuts, enumerated: after each step of a busy run, every disk that a crash may leave behind is recovered from.

In each of thousands of states: nothing raises; every acknowledged commit is there; the store is exactly as it was at
some version, so every commit is whole or absent and in order; and what is written then survives as well.
"""

import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from kvd.database import Database
from kvd.journal.checkpoint import CheckpointFile, remove_superseded, slices
from kvd.journal.commit_log import CommitLog
from kvd.journal.records import Header
from kvd.journal.recovery import prepare_tail, recover
from kvd.store.authors import NOBODY
from kvd.store.window import WindowLimits
from tests.crash.memory_disk import MemoryDisk, State, crash_states

SCALE = int(os.environ.get("KVD_TEST_SCALE", "1"))
SEEDS = 3 * SCALE
LEAST_STATES = 2_000
SEGMENT_BYTES = 2_048
STORE_ID = bytes(range(8))
LIMITS = WindowLimits(max_commits=8)


class Run:
    """A database on a disk that remembers everything, and what it was like at each version."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - a test
        self.disk = MemoryDisk()
        self.database = Database(LIMITS, clock=lambda: 1_000, timer=lambda: 1_000)
        self.at: dict[int, dict[str, bytes]] = {0: {}}
        self.ids: dict[bytes, int] = {}
        self._open(Header(0, 1, 0, 0, STORE_ID))
        self._file: CheckpointFile | None = None
        self._slices: Iterator[Any] = iter(())
        self._ends: dict[int, int] = {}

    def _open(self, header: Header) -> None:
        disk: Any = self.disk
        self.log = CommitLog(disk, header, SEGMENT_BYTES, lambda: self.chance.getrandbits(64))
        self.database.log = self.log

    def step(self) -> None:
        """Some commits, written and acknowledged; now and then a piece of a checkpoint."""
        for _ in range(self.chance.randrange(1, 4)):
            self._commit()
        batch = self.log.take()
        if batch is None:  # they deleted what was not there
            return
        self.log.write(batch, sync=self.chance.random() < 0.8)
        self.log.done(batch)
        self.disk.acknowledge(self.log.synced)
        if self.chance.random() < 0.5:
            self._checkpoint_a_little()

    def _commit(self) -> None:
        keys = [f"k{self.chance.randrange(12)}" for _ in range(self.chance.randrange(1, 4))]
        kind = self.chance.random()
        before = dict(self.at[self.database.store.version])
        if kind < 0.5:
            entries = {key: self.chance.randbytes(self.chance.randrange(60)) for key in keys}
            id_ = self.chance.randbytes(16)
            self.ids[id_] = self.database.once(0, id_, None, lambda: self.database.set(entries, NOBODY))
            before |= entries
        elif kind < 0.7:
            batch = [{f"k{number}": self.chance.randbytes(9)} for number in range(self.chance.randrange(1, 5))]
            for version, entries in zip(self.database.set_each(batch, NOBODY), batch, strict=True):
                before = before | entries
                self.at[version] = before
        else:
            writes = {key: None if self.chance.random() < 0.6 else b"w" for key in keys}
            self.database.commit(writes, {}, [], 0, NOBODY)
            before = {key: value for key, value in (before | writes).items() if value is not None}
        self.at[self.database.store.version] = before

    def _checkpoint_a_little(self) -> None:
        if self._file is None:
            version = self.log.added
            number = self.log.rotate()
            disk: Any = self.disk
            self._number = number
            self._file = CheckpointFile(disk, Header(self.chance.getrandbits(64), number, version, version, STORE_ID))
            self._slices = slices(self.database)
            return
        piece = next(self._slices, None)
        if piece is not None:
            self._file.write(piece)
            return
        end = self.database.store.version
        self.log.sync()
        self._file.finish(end, self.database.store.time)
        self._ends[self._number], self._file = end, None
        disk = self.disk
        remove_superseded(disk, self._ends, self.database.store.window.oldest_readable)


def recovered_from(state: State) -> tuple[Database, MemoryDisk, Any]:
    database = Database(LIMITS, clock=lambda: 1_000, timer=lambda: 1_000)
    disk: Any = MemoryDisk(state)
    found = recover(disk, database)
    prepare_tail(disk, found)
    return database, disk, found


def content(database: Database, at: int | None = None) -> dict[str, bytes]:
    page = database.store.scan("", None, 1_000, at=at)
    return {item.key: item.value or b"" for item in page.items}


def examine(run: Run, state: State, acknowledged: int) -> None:
    """Everything that has to hold after a crash that left this behind."""
    database, disk, found = recovered_from(state)
    version = found.version
    assert version >= acknowledged, "an acknowledged commit is lost"
    assert content(database) == run.at[version]
    assert database.store.counters.keys == len(run.at[version])
    oldest = database.store.window.oldest_readable
    for old in {oldest, (oldest + version) // 2, version}:
        assert content(database, old) == run.at[old], f"as of version {old}"
    for id_, made in run.ids.items():
        if oldest < made <= version:
            assert database.outcomes.find(0, id_, None, version) == made
    go_on(run, database, disk, found)


def go_on(run: Run, database: Database, disk: Any, found: Any) -> None:  # noqa: ANN401 - a disk in memory
    """What is written after a recovery survives the next one."""
    number = max(found.number, max(found.checkpoints, default=0))
    header = Header(0, number + 1, database.store.version, found.version, STORE_ID)
    log = CommitLog(disk, header, SEGMENT_BYTES, lambda: run.chance.getrandbits(64))
    database.log = log
    database.set({"new": b"1"}, NOBODY)
    batch = log.take()
    assert batch is not None
    log.write(batch, sync=True)
    again, _, _ = recovered_from(disk.state)
    assert content(again) == content(database)
    assert again.store.version == database.store.version


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_crash_loses_what_was_acknowledged(seed: int) -> None:
    run = Run(seed)
    while len(run.disk.trace) < 220:
        run.step()
    acknowledged = states = 0
    for prefix in range(len(run.disk.trace) + 1):
        if prefix and run.disk.trace[prefix - 1][0] == "acknowledge":
            acknowledged = run.disk.trace[prefix - 1][1]
        for state in crash_states(run.disk.trace, prefix, run.chance):
            examine(run, state, acknowledged)
            states += 1
    print(f"{len(run.disk.trace)} operations, {len(run.at)} versions, {states} states")
    assert states >= LEAST_STATES
    assert {"rename", "remove", "truncate", "sync_directory"} <= {op[0] for op in run.disk.trace}


def acknowledge_before_the_sync(trace: list[Any]) -> list[Any]:
    """The order of an ack and the sync before it, turned round."""
    turned = list(trace)
    for at in range(1, len(turned)):
        if turned[at][0] == "acknowledge" and turned[at - 1][0] == "sync":
            turned[at - 1], turned[at] = turned[at], turned[at - 1]
    return turned


def never_sync(trace: list[Any]) -> list[Any]:
    return [op for op in trace if op[0] != "sync"]


def never_sync_the_directory(trace: list[Any]) -> list[Any]:
    return [op for op in trace if op[0] != "sync_directory"]


@pytest.mark.parametrize("bug", [acknowledge_before_the_sync, never_sync, never_sync_the_directory])
def test_a_disk_that_is_asked_for_less_loses_something(bug: Any) -> None:  # noqa: ANN401 - a function
    """The enumeration finds these bugs: they are planted in what the disk was asked to do."""
    run = Run(1)
    while len(run.disk.trace) < 150:
        run.step()
    trace = bug(run.disk.trace)
    acknowledged = failures = 0
    for prefix in range(len(trace) + 1):
        if prefix and trace[prefix - 1][0] == "acknowledge":
            acknowledged = trace[prefix - 1][1]
        for state in crash_states(trace, prefix, run.chance):
            try:
                examine(run, state, acknowledged)
            except Exception:  # whatever goes wrong
                failures += 1
    print(f"{bug.__name__}: {failures} states show it")
    assert failures > 0
