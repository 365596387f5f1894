"""The wall clock is set: commit times follow it, and a question by a time before that is an error, never a guess."""

import logging

import pytest

from kvd.engine.copying import Point, copy
from kvd.engine.examination import best_extent, usable_extents
from kvd.journal.disk import Disk
from kvd.store.errors import ClockWasSet, SnapshotGone
from kvd.store.history import newest_commits
from kvd.store.window import MAX_STEPS, WindowLimits
from tests.journal.disks import MemoryDisk
from tests.journal.running import WALL_US, Running, items, recovered

SECOND, HOUR, YEAR = 10**6, 3600 * 10**6, 365 * 24 * 3600 * 10**6


class Machine:
    """A daemon on a machine whose wall clock anybody sets."""

    def __init__(self, **limits: int) -> None:
        self.limits = WindowLimits(**limits)
        self.even, self.wall = 0, WALL_US
        self.boot = b"this boot"
        self.disk = MemoryDisk({})
        self.running = self.started()

    def started(self) -> Running:
        return Running(self.disk, limits=self.limits, now=lambda: self.even, wall=lambda: self.wall, boot=self.boot)

    def pass_(self, us: int) -> None:
        self.even += us
        self.wall += us

    def set(self, value: bytes) -> int:
        version = self.running.set({"a": value})
        self.running.write()
        return version

    def at(self, us_ago: int) -> int:
        return self.running.database.version_at(self.wall - us_ago)

    def start_again(self, *, reboot: bool = False) -> None:
        self.running.write()
        self.disk = MemoryDisk(self.disk.contents())
        if reboot:
            self.boot, self.even = self.boot + b"'", 0
        self.running = self.started()

    def times(self) -> list[int]:
        return [commit.time for commit in newest_commits(self.running.database.store, 99, 10**6)]


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_after_a_future_that_was_none_questions_by_time_are_errors_or_right(machine: Machine) -> None:
    machine.set(b"1")
    machine.wall += 10 * YEAR
    machine.set(b"2")
    machine.wall -= 10 * YEAR
    machine.set(b"3")
    machine.pass_(2 * SECOND)
    machine.set(b"4")
    machine.pass_(3 * SECOND)
    assert machine.at(0) == machine.at(3 * SECOND) == 4
    assert machine.at(3 * SECOND + 1) == machine.at(5 * SECOND) == 3
    for ago in (5 * SECOND + 1, HOUR, YEAR, 20 * YEAR):
        with pytest.raises(ClockWasSet):
            machine.at(ago)
    assert machine.times() == [WALL_US, WALL_US + 10 * YEAR, WALL_US, WALL_US + 2 * SECOND]


@pytest.mark.parametrize("by", [-10 * YEAR, -HOUR, -SECOND - 1, SECOND + 1, HOUR, 10 * YEAR])
def test_a_step_is_noticed_by_a_question_before_any_commit(
    machine: Machine, by: int, caplog: pytest.LogCaptureFixture
) -> None:
    machine.set(b"1")
    machine.pass_(HOUR)
    assert machine.at(HOUR // 2) == 1
    machine.wall += by
    with caplog.at_level(logging.WARNING):
        with pytest.raises(ClockWasSet) as error:
            machine.at(1)
        assert machine.at(0) == 1
    assert (error.value.step_version, error.value.by) == (1, by)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the clock was set" in caplog.text


@pytest.mark.parametrize("by", [-SECOND, -SECOND // 2, SECOND // 2, SECOND])
def test_a_second_is_no_step_and_times_do_not_go_back_for_it(machine: Machine, by: int) -> None:
    machine.set(b"1")
    machine.wall += by
    machine.set(b"2")
    assert machine.times() == [WALL_US, WALL_US + max(0, by)]
    assert machine.at(HOUR) == 0


def test_small_steps_add_up(machine: Machine) -> None:
    machine.set(b"1")
    for _ in range(3):
        machine.wall -= SECOND * 4 // 10
        machine.set(b"x")
    with pytest.raises(ClockWasSet):
        machine.at(SECOND)


def test_a_long_pause_is_no_step(machine: Machine) -> None:
    machine.set(b"1")
    machine.pass_(YEAR)
    machine.set(b"2")
    assert machine.at(1) == 1


@pytest.mark.parametrize("by", [-YEAR, -HOUR, HOUR, YEAR])
@pytest.mark.parametrize("checkpoint", [False, True], ids=["one segment", "several segments"])
def test_steps_are_remembered_over_starts(machine: Machine, by: int, *, checkpoint: bool) -> None:
    machine.set(b"1")
    machine.wall += by
    machine.set(b"2")
    if checkpoint:
        machine.running.checkpoint()
    machine.pass_(HOUR)
    for _ in range(3):
        machine.start_again()
        assert machine.at(1) == machine.at(HOUR) == 2
        with pytest.raises(ClockWasSet):
            machine.at(HOUR + 1)


@pytest.mark.parametrize("by", [-YEAR, -HOUR, HOUR, YEAR])
def test_a_step_while_no_daemon_ran_is_noticed_on_the_same_boot(machine: Machine, by: int) -> None:
    machine.set(b"1")
    machine.pass_(HOUR)
    machine.wall += by
    for _ in range(3):  # also by a second start, that finds nothing new
        machine.start_again()
        with pytest.raises(ClockWasSet):
            machine.at(1)
        assert machine.at(0) == 1


def test_a_clock_behind_the_last_commit_after_a_reboot_was_set(machine: Machine) -> None:
    machine.set(b"1")
    machine.wall -= HOUR
    machine.start_again(reboot=True)
    with pytest.raises(ClockWasSet):
        machine.at(1)
    machine.set(b"2")
    assert machine.times() == [WALL_US, WALL_US - HOUR]


def test_a_reboot_is_no_step(machine: Machine) -> None:
    machine.set(b"1")
    machine.pass_(HOUR)
    machine.start_again(reboot=True)
    machine.set(b"2")
    assert machine.at(1) == 1


@pytest.mark.parametrize("by", [-10 * YEAR, -HOUR, HOUR, 10 * YEAR])
def test_history_goes_by_its_true_age(by: int) -> None:
    """A jump ahead drops nothing, and after one back it is dropped as before."""
    machine = Machine(max_age_us=HOUR)
    for _ in range(3):
        machine.set(b"before")
    machine.pass_(HOUR // 2)
    machine.wall += by
    machine.set(b"after")
    store = machine.running.database.store
    assert store.window.commits == 4
    assert machine.running.database.history_age_us() == HOUR // 2
    machine.start_again()
    store = machine.running.database.store
    assert store.window.commits == 4
    machine.pass_(HOUR // 2 + 1)
    assert machine.running.database.upkeep.due_us() == 0
    machine.running.database.upkeep.drop_old(100)
    assert store.window.commits == 1
    with pytest.raises(SnapshotGone):
        machine.at(HOUR // 2 + 2)
    assert machine.at(HOUR // 2 + 1) == 4


def test_steps_that_no_readable_version_is_older_than_are_forgotten(machine: Machine) -> None:
    machine.set(b"1")
    machine.wall -= HOUR
    machine.set(b"2")
    store = machine.running.database.store
    store.window.limits = WindowLimits(max_commits=1)
    machine.set(b"3")
    store.drop_history(10)
    assert store.window.steps == []
    assert machine.at(0) == 3


def test_the_number_of_steps_is_bounded(machine: Machine) -> None:
    for number in range(100):
        machine.set(b"x")
        machine.wall += HOUR if number % 2 else -HOUR
    store = machine.running.database.store
    assert len(store.window.steps) <= MAX_STEPS
    machine.set(b"x")
    assert machine.running.database.history_age_us() == 0
    machine.start_again()
    assert machine.running.database.history_age_us() == 0


# ---------------------------------------------------------------------- copies


def copied(disk: Disk, time: int) -> tuple[MemoryDisk, tuple[int, int]]:
    extent = best_extent(usable_extents(disk))
    assert extent is not None
    target = MemoryDisk({})
    point = Point(time=time, clock_set=extent.clock_set[0])
    return target, copy(disk, target, extent.base, point, b"the copy", lambda: 5, lambda done, size: None)


def test_a_copy_by_time_goes_by_the_clock_as_it_is(machine: Machine) -> None:
    machine.set(b"1")
    machine.wall += 10 * YEAR
    machine.set(b"2")
    machine.wall -= 10 * YEAR
    machine.set(b"3")
    machine.pass_(2 * SECOND)
    machine.set(b"4")
    machine.running.log.rotate()
    extent = best_extent(usable_extents(machine.disk))
    assert extent is not None
    assert (extent.clock_set, extent.time, extent.began) == ((2, WALL_US), WALL_US + 2 * SECOND, (1, WALL_US))
    target, reached = copied(machine.disk, WALL_US + SECOND)
    assert reached == (3, WALL_US)
    database, _ = recovered(target)
    assert items(database) == {"a": (b"3", 3)}
