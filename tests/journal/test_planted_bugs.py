"""The enumeration of power cuts can fail: each of these bugs, planted around the journal, is found by it."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from kvd.engine.replay import Replay
from kvd.journal import names
from kvd.journal.checkpoint import CheckpointFile
from kvd.journal.commit_log import CommitLog
from kvd.journal.disk import Disk
from kvd.journal.errors import Damaged
from kvd.journal.records import RECORD_BYTES, Codec, Commits, End, Mark
from kvd.journal.recovery import Recovered, recover
from kvd.journal.segments import SegmentReader
from tests.journal.busy import Busy
from tests.journal.crashes import RecordingDisk, crashes
from tests.journal.disks import File, MemoryDisk
from tests.journal.running import Running
from tests.journal.test_power_cuts import Judge, run_of

# Runs are tried until one shows the bug.
MAX_RUNS = 24
STEPS = 50


def shows(make: Callable[[int], Busy]) -> str | None:
    """Return the first fault in any crash of any run; None if there is none."""
    for seed in range(MAX_RUNS):
        chance = random.Random(seed)  # noqa: S311 - a test that can be repeated
        try:
            busy = make(seed)
            while sum(busy.did.values()) < STEPS:
                busy.step()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        judge = Judge(busy, every=10**9)
        for crash in crashes(busy.disk):
            for kind, state in crash.states(chance, brief=True):
                problem = judge.problem(state, crash.facts, kind)
                if problem is not None:
                    return f"{kind}: {problem}"
    return None


# ---------------------------------------------------------------------- disks that do not do what they are asked for


class NoSync(RecordingDisk):
    """Only names are synced."""

    def sync(self, descriptor: int) -> None:
        if self.during_sync is not None:
            call, self.during_sync = self.during_sync, None
            call()


class NoNames(RecordingDisk):
    """The directory is never synced."""

    def sync_directory(self) -> None:
        pass


class NoNamesOf(RecordingDisk):
    """The directory is not synced after certain renames."""

    suffix = ".log"

    def __init__(self) -> None:
        super().__init__()
        self._skips = False

    def rename(self, old: str, new: str) -> None:
        super().rename(old, new)
        self._skips = new.endswith(self.suffix)

    def sync_directory(self) -> None:
        if not self._skips:
            super().sync_directory()
        self._skips = False


class NoNamesOfCheckpoints(NoNamesOf):
    suffix = ".checkpoint"


class NoSyncBeforeTheName(RecordingDisk):
    """A new segment gets its name without having been synced."""

    def _name_of(self, file: File) -> str:
        return next((name for name, each in self.files.items() if each is file), "")

    def sync(self, descriptor: int) -> None:
        if not self._name_of(self.open[descriptor]).endswith(".log.tmp"):
            super().sync(descriptor)


@pytest.mark.parametrize("disk", [NoSync, NoNames, NoNamesOf, NoNamesOfCheckpoints, NoSyncBeforeTheName])
def test_a_sync_that_is_left_out_is_noticed(disk: type[RecordingDisk]) -> None:
    assert shows(lambda seed: Busy(disk(), seed))


# ---------------------------------------------------------------------- acknowledgements


class Hasty(Busy):
    """Acknowledges what has been written and not synced."""

    def say(self) -> None:
        super().say()
        self.disk.say("synced", self.running.log.written)


class ShowsAnything(Busy):
    """Shows versions above the ceiling early."""

    def say(self) -> None:
        super().say()
        self.disk.say("shown", self.running.log.written)


@pytest.mark.parametrize("kind", [Hasty, ShowsAnything])
def test_an_answer_that_leaves_too_early_is_noticed(kind: type[Busy]) -> None:
    assert shows(lambda seed: kind(RecordingDisk(), seed))


# ---------------------------------------------------------------------- the commit log


class NoSyncOfTheOldSegment(CommitLog):
    def rotate(self) -> int:
        disk, self._disk = self._disk, _WithoutSync(self._disk, self._segment.descriptor)
        try:
            return super().rotate()
        finally:
            self._disk = disk


class _WithoutSync:
    """A disk that passes over the syncs of one file."""

    def __init__(self, disk: Disk, descriptor: int) -> None:
        self._disk = disk
        self._descriptor = descriptor

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - any method
        return getattr(self._disk, name)

    def sync(self, descriptor: int) -> None:
        if descriptor != self._descriptor:
            self._disk.sync(descriptor)


class SyncedTooMuch(CommitLog):
    """Takes what was written during a sync for synced."""

    def sync(self) -> None:
        super().sync()
        self.synced = self.written


class NoCeilings(CommitLog):
    """A ceiling counts before it is on the disk."""

    def raise_ceiling(self, version: int) -> None:
        self._put(Mark(self.synced, version, False))
        self.ceiling = version


class ForgetsCeilings(CommitLog):
    """A new segment does not repeat the ceiling."""

    def rotate(self) -> int:
        ceiling, self.ceiling = self.ceiling, 0
        number = super().rotate()
        self.ceiling = ceiling
        return number


class VouchesTooMuch(CommitLog):
    """Each record vouches for what was only written."""

    def _write_record(self, groups: list[Any]) -> None:
        if groups:
            self._put(Commits(self.written, groups))
            self.written = groups[-1].version + groups[-1].commits - 1


class CleanTooEarly(CommitLog):
    """The last mark is written before all that it vouches for is on the disk."""

    def close(self) -> None:
        disk, self._disk = self._disk, _WithoutSync(self._disk, self._segment.descriptor)
        try:
            super().close()
        finally:
            self._disk = disk


LOGS = [NoSyncOfTheOldSegment, SyncedTooMuch, NoCeilings, ForgetsCeilings, VouchesTooMuch, CleanTooEarly]


@pytest.mark.parametrize("log", LOGS)
def test_a_bug_in_the_commit_log_is_noticed(log: type[CommitLog]) -> None:
    running = partial(Running, log_type=log)
    assert shows(lambda seed: Busy(RecordingDisk(), seed, running=running, shows_early=True))


def keep_the_old_tail(disk: Disk, recovered: Recovered) -> None:
    """Nothing is cut off, nothing is copied."""


def test_a_tail_that_is_not_copied_is_noticed() -> None:
    """In runs that go on where a write was torn."""

    def make(seed: int) -> Busy:
        chance, busy = random.Random(seed), run_of(seed, 20)  # noqa: S311 - a test that can be repeated
        states = [(crash.facts, state) for crash in crashes(busy.disk) for _, state in crash.states(chance, brief=True)]
        chance.shuffle(states)
        facts, state = next(each for each in states if recover(MemoryDisk(each[1]), Replay()).torn is not None)
        running = partial(Running, prepare=keep_the_old_tail)
        return Busy(RecordingDisk(state, facts), seed + 1000, model=busy.model, now=busy.now, running=running)

    assert shows(make)


# ---------------------------------------------------------------------- checkpoints


class NamedTooEarly(CheckpointFile):
    def finish(self, version: int, time: int) -> int:
        self._put(self._codec.encode(End(self.keys, version, time)))
        self._disk.rename(names.unfinished(self._name), self._name)
        self._disk.sync_directory()
        self._disk.sync(self._descriptor)
        self._close()
        return self._at


class WithoutItsLog(Busy):
    """A checkpoint is finished though the log is not on the disk through its end."""

    def _finish(self, number: int, file: CheckpointFile) -> None:
        end, time = self.running.log.added, self.running.database.store.time
        file.finish(end, time)
        self._checkpoint = None
        self.running.ends[number] = end


class RemovesTooEarly(Busy):
    """What a checkpoint supersedes goes before that is on the disk."""

    def _finish(self, number: int, file: CheckpointFile) -> None:
        self.running.ends[number] = self.running.database.store.window.oldest_readable
        self.remove()
        super()._finish(number, file)


def remove_all_before(disk: Disk, ends: dict[int, int], oldest_readable: int) -> list[str]:
    """Only the newest checkpoint is kept, whatever the history needs."""
    return _remove(disk, max(ends, default=0), syncs=True)


def remove_in_any_order(disk: Disk, ends: dict[int, int], oldest_readable: int) -> list[str]:
    """All go at once."""
    enough = [number for number, version in ends.items() if version <= oldest_readable]
    return _remove(disk, max(enough, default=0), syncs=False)


def _remove(disk: Disk, base: int, *, syncs: bool) -> list[str]:
    found = disk.names()
    doomed = [names.checkpoint(number) for number in names.checkpoint_numbers(found) if number < base]
    doomed += [names.log(number) for number in names.log_numbers(found) if number < base]
    for name in doomed:
        disk.remove(name)
        if syncs:
            disk.sync_directory()
    return doomed


CHECKPOINTS: dict[str, Callable[[int], Busy]] = {
    "named too early": lambda seed: Busy(RecordingDisk(), seed, file=NamedTooEarly),
    "without its log": lambda seed: WithoutItsLog(RecordingDisk(), seed),
    "removes too early": lambda seed: RemovesTooEarly(RecordingDisk(), seed),
    "removes what the history needs": lambda seed: Busy(RecordingDisk(), seed, remove=remove_all_before),
    "removes in any order": lambda seed: Busy(RecordingDisk(), seed, remove=remove_in_any_order),
}


@pytest.mark.parametrize("bug", CHECKPOINTS)
def test_a_bug_in_checkpoints_is_noticed(bug: str) -> None:
    assert shows(CHECKPOINTS[bug])


# ---------------------------------------------------------------------- reading


def test_unchecked_checksums_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def payload_at(codec: Codec, data: memoryview, at: int) -> memoryview | None:
        end = at + RECORD_BYTES + int.from_bytes(data[at : at + 4], "little")
        return data[at + RECORD_BYTES : end] if at + RECORD_BYTES < end <= len(data) else None

    monkeypatch.setattr(Codec, "payload_at", payload_at)
    assert shows(lambda seed: Busy(RecordingDisk(), seed))


def test_zeros_that_pass_for_a_record_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Codec.payload_at

    def payload_at(codec: Codec, data: memoryview, at: int) -> memoryview | None:
        return data[at:at] if data[at : at + RECORD_BYTES] == bytes(RECORD_BYTES) else sound(codec, data, at)

    monkeypatch.setattr(Codec, "payload_at", payload_at)
    assert shows(lambda seed: Busy(RecordingDisk(), seed))


def test_a_hole_that_is_always_taken_for_damage_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound record after a bad one proves nothing: two writes may reach the disk in either order."""

    def judge(reader: Any) -> None:  # noqa: ANN401 - its inside
        rest = bytes(reader._data[reader.end :])
        if any(reader._codec.payload_at(reader._data, reader.end + at) for at in range(1, len(rest.rstrip(b"\0")))):
            raise Damaged(reader.path, reader.end, "a sound record follows")

    monkeypatch.setattr(SegmentReader, "_classify_tail", judge)
    assert shows(lambda seed: Busy(RecordingDisk(), seed))
