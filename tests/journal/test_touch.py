"""A touch writes no value: neither into the log, nor into the history, where a value counts once."""

import pytest

from kvd.journal.records import FORMAT
from kvd.store.history import versions
from kvd.store.window import WindowLimits
from tests.journal.disks import MemoryDisk
from tests.journal.running import ME, Running, items, recovered

LARGE = b"x" * 8_000_000
MINUTE = 60_000_000


def touched_thirty_times(**options: int) -> tuple[MemoryDisk, Running]:
    disk = MemoryDisk()
    running = Running(disk, segment_bytes=1 << 24, limits=WindowLimits(max_bytes=20_000_000), **options)
    for number in range(100):
        running.set({"small": b"%d" % number})
    running.set({"large": LARGE})
    running.write()
    return disk, running


def touch(running: Running, count: int = 30) -> None:
    for number in range(count):
        assert running.database.touch(["large"], MINUTE + number, ME) == [True]
        running.write()


def test_thirty_touches_of_a_large_value_write_little_and_keep_the_history() -> None:
    _, running = touched_thirty_times()
    bytes_before, commits = running.log.bytes, running.database.store.window.commits
    touch(running)
    assert running.log.bytes - bytes_before < 30 * 200
    assert running.database.store.window.commits == commits + 30
    assert running.database.store.window.bytes < 1_000_000, "no value was superseded but by itself"


def test_the_value_counts_once_when_it_is_superseded() -> None:
    _, running = touched_thirty_times()
    touch(running)
    before = running.database.store.window.bytes
    running.set({"large": b""})
    assert len(LARGE) < running.database.store.window.bytes - before < len(LARGE) + 1_000


def test_the_history_gives_back_what_it_counted() -> None:
    """Whatever the order in which values are forgotten and commits are dropped."""
    _, running = touched_thirty_times()
    touch(running, 3)
    running.database.delete(["large"], ME, missing_ok=False)
    store = running.database.store
    store.window.limits = WindowLimits(max_commits=0)
    store.drop_history(1_000)
    assert (store.window.bytes, store.window.commits) == (0, 0)


@pytest.mark.parametrize("checkpoint", [False, True], ids=["out of the log", "beside a checkpoint"])
def test_touched_keys_are_recovered_with_value_version_deadline_and_history(*, checkpoint: bool) -> None:
    disk = MemoryDisk()
    running = Running(disk)
    running.set({"a": b"1", "b": b"2", "c": b"3"})
    steps = iter(range(100))

    def between() -> None:
        if (number := next(steps)) == 0:
            running.database.touch(["b", "a"], MINUTE, ME)
        elif number == 1:
            running.database.touch(["a"], None, ME)
            running.database.delete(["c"], ME, missing_ok=False)

    if checkpoint:
        running.checkpoint(between)
    else:
        between()
        between()
    running.write()
    database, _ = recovered(MemoryDisk(disk.contents()))
    assert items(database) == {"a": (b"1", 3), "b": (b"2", 2)}
    assert (database.time_to_live_us("a"), database.time_to_live_us("b")) == (None, MINUTE)
    found = [(each.version, each.value) for each in versions(database.store, "a", 9, None, 10**6)]
    assert found == [(3, b"1"), (2, b"1"), (1, b"1")]


def test_a_touch_makes_the_log_one_of_a_later_format() -> None:
    """A daemon that does not know such a record must not read it."""
    disk, running = touched_thirty_times()
    touch(running, 1)
    assert disk.contents()["0000000001.log"][8] == FORMAT == 2
