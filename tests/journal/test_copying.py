"""A directory that is copied up to some point, or written from a database, has that state, or is refused."""

import random
from collections.abc import Iterator

import pytest

from kvd.engine.copying import Point, copy, write_new
from kvd.engine.database import Database
from kvd.engine.examination import Extent, best_extent, usable_extents
from kvd.engine.replay import Replay
from kvd.journal import names
from kvd.journal.errors import Damaged, Unfinished
from kvd.journal.recovery import recover
from tests.journal import running
from tests.journal.busy import Busy, differences
from tests.journal.crashes import Contents, RecordingDisk, crashes
from tests.journal.disks import MemoryDisk
from tests.journal.running import BOOT_US, WALL_US, Running

SEEDS = range(8)
NEW_ID = b"new id!!"


def run_of(seed: int, steps: int = 60) -> Busy:
    """Return a run that was stopped cleanly."""
    busy = Busy(RecordingDisk(), seed)
    while sum(busy.did.values()) < steps:
        busy.step()
    busy.write()
    return busy


def files(busy: Busy) -> Contents:
    return {name: data for name, data in busy.disk.contents().items() if not names.is_unfinished(name)}


def salts(seed: int = 1) -> Iterator[int]:
    chance = random.Random(seed)  # noqa: S311 - a test that can be repeated
    while True:
        yield chance.getrandbits(64)


def copied(source: Contents, extent: Extent, point: Point, target: MemoryDisk | None = None) -> tuple[MemoryDisk, int]:
    """Make a copy; return it with the version that it claims to have."""
    target = target or MemoryDisk()
    salt = salts()
    version, _ = copy(
        MemoryDisk(source), target, extent.base, point, NEW_ID, lambda: next(salt), lambda done, size: None
    )
    return target, version


def recovered(disk: MemoryDisk, busy: Busy) -> tuple[Database, int]:
    database, found = running.recovered(disk, busy.limits, lambda: WALL_US + busy.now, lambda: BOOT_US + busy.now)
    assert found.store_id in (b"", NEW_ID)
    assert found.clean or not found.number
    return database, found.version


@pytest.mark.parametrize("seed", SEEDS)
def test_a_copy_up_to_any_version_has_the_state_of_that_version(seed: int) -> None:
    busy = run_of(seed)
    source = files(busy)
    for extent in usable_extents(MemoryDisk(source)):
        for version in busy.model.at:
            if extent.first <= version:
                disk, said = copied(source, extent, Point(version=version))
                database, found = recovered(disk, busy)
                assert found == said == version
                assert differences(database, version, busy.model, busy.now) is None
                Running(disk, limits=busy.limits)  # and can be written to


@pytest.mark.parametrize("seed", SEEDS)
def test_a_copy_up_to_any_time_has_the_state_of_that_time(seed: int) -> None:
    busy = run_of(seed)
    source = files(busy)
    extent = best_extent(usable_extents(MemoryDisk(source)))
    assert extent is not None
    times = sorted({commit.time for commit in busy.model.commits})
    for moment in (WALL_US, *times, *(time + 1 for time in times), *(time - 1 for time in times)):
        if extent.base == 1 or moment >= extent.first_time:
            disk, _ = copied(source, extent, Point(time=moment))
            database, found = recovered(disk, busy)
            expected = max((commit.version for commit in busy.model.commits if commit.time <= moment), default=0)
            assert found == max(expected, extent.first)
            assert differences(database, found, busy.model, busy.now) is None


def test_history_and_ids_are_copied_too() -> None:
    """They are copied as far as the log goes back."""
    busy = run_of(4)
    source = files(busy)
    original, _ = running.recovered(MemoryDisk(source), busy.limits, lambda: WALL_US + busy.now)
    extent = usable_extents(MemoryDisk(source))[0]
    database, _ = recovered(copied(source, extent, Point())[0], busy)
    assert database.store.window.oldest_readable == original.store.window.oldest_readable
    assert len(database.outcomes) == len(original.outcomes) > 0


def problems(target: RecordingDisk, busy: Busy, version: int) -> list[str]:
    """Return what a directory whose copy a power cut interrupted may be: nothing, a refusal, or all of it."""
    chance = random.Random(0)  # noqa: S311 - a test that can be repeated
    found = []
    states = 0
    for crash in crashes(target):
        for kind, state in crash.states(chance):
            states += 1
            if set(state) <= {names.UNFINISHED_COPY} and names.UNFINISHED_COPY not in state:
                continue  # not yet begun
            try:
                database, reached = recovered(MemoryDisk(state), busy)
            except Unfinished:
                continue
            if reached != version or differences(database, version, busy.model, busy.now) is not None:
                found.append(f"{kind}: version {reached} of {version}")
    assert states > 100
    return found


@pytest.mark.parametrize("seed", [0, 3])
def test_a_power_cut_leaves_no_half_copy(seed: int) -> None:
    busy = run_of(seed)
    source = files(busy)
    for extent in usable_extents(MemoryDisk(source)):
        target = RecordingDisk()
        _, version = copied(source, extent, Point(), target)
        assert problems(target, busy, version) == []


def test_a_power_cut_leaves_no_half_restore() -> None:
    busy = run_of(5)
    target, salt = RecordingDisk(), salts()
    write_new(target, busy.running.database, NEW_ID, lambda: next(salt), lambda done, size: None)
    version = busy.running.database.store.version
    assert problems(target, busy, version) == []


def test_the_values_of_a_database_are_written_without_its_history() -> None:
    busy = run_of(2)
    disk, salt = MemoryDisk(), salts()
    reports: list[tuple[int, int]] = []
    write_new(disk, busy.running.database, NEW_ID, lambda: next(salt), lambda *done: reports.append(done))
    database, version = recovered(disk, busy)
    assert differences(database, version, busy.model, busy.now) is None
    assert database.store.window.oldest_readable == version == busy.running.database.store.version
    keys = busy.running.database.store.counters.keys
    assert reports[-1] == (keys, keys)


def test_an_interrupted_copy_is_done_again_over_its_leftovers() -> None:
    busy = run_of(1)
    source = files(busy)
    extent = best_extent(usable_extents(MemoryDisk(source)))
    assert extent is not None
    whole = copied(source, extent, Point())[0]
    target = MemoryDisk({**whole.contents(), names.log(77): b"left over", names.UNFINISHED_COPY: b""})
    disk, version = copied(source, extent, Point(), target)
    assert disk.contents().keys() == whole.contents().keys()
    database, _ = recovered(disk, busy)
    assert differences(database, version, busy.model, busy.now) is None


def test_a_copy_of_a_damaged_directory_raises_and_stays_unfinished() -> None:
    busy = run_of(1)
    source = files(busy)
    name = names.log(max(names.log_numbers(list(source))))
    target = MemoryDisk()
    with pytest.raises(Damaged):
        copied({**source, name: source[name][:20]}, usable_extents(MemoryDisk(source))[0], Point(), target)
    with pytest.raises(Unfinished):
        recover(target, Replay())
