"""No version is given twice, even if its commit was lost; and a write with an id is not made twice."""

import asyncio

import pytest

from kvd.engine.durability import CEILING_STEP, LogDurability
from kvd.engine.feeds import Feed
from kvd.journal import commit_log
from kvd.journal.records import HEADER_BYTES
from kvd.store.errors import OutcomeUnknown, SnapshotGone, VersionLost
from kvd.store.history import commits_from
from kvd.store.isolation import validate
from kvd.store.lifetimes import Expiry
from kvd.store.window import WindowLimits
from tests.journal.disks import MemoryDisk
from tests.journal.running import ME, Running, items

ID = b"i" * 16


def after_a_crash(*, ceiling: int = 1000) -> tuple[MemoryDisk, Running]:
    """Start after the crash of a daemon whose clients may have seen versions up to 1000."""
    disk = MemoryDisk()
    first = Running(disk)
    first.log.raise_ceiling(ceiling)
    first.set({"a": b"1"})
    first.write()
    return disk, Running(disk)


def restarted(disk: MemoryDisk) -> Running:
    return Running(MemoryDisk(disk.contents()))


def test_after_a_crash_versions_go_on_above_the_ceiling() -> None:
    disk, second = after_a_crash()
    assert second.set({"b": b"2"}) == 1001
    second.write()
    third = restarted(disk)
    assert items(third.database) == {"a": (b"1", 1), "b": (b"2", 1001)}
    assert third.set({"c": b""}) == 1002


def test_a_ceiling_outlives_a_start_that_wrote_nothing() -> None:
    disk, _ = after_a_crash()
    assert restarted(disk).set({"b": b"2"}) == 1001


def test_a_ceiling_outlives_a_clean_stop_before_the_first_commit() -> None:
    disk, second = after_a_crash()
    second.log.close()
    third = restarted(disk)
    assert third.set({"b": b"2"}) == 1001
    third.write()
    assert items(restarted(third.disk).database)["b"] == (b"2", 1001)


def test_a_new_segment_before_the_first_commit_goes_on_above_the_ceiling() -> None:
    disk, second = after_a_crash()
    second.rotate()
    assert second.set({"b": b"2"}) == 1001
    second.write()
    assert items(restarted(disk).database)["b"] == (b"2", 1001)


def test_a_first_commit_too_large_for_the_segment_goes_on_above_the_ceiling() -> None:
    disk, second = after_a_crash()
    assert second.set({"b": b"x" * 5000}) == 1001
    second.write()
    assert items(restarted(disk).database)["b"] == (b"x" * 5000, 1001)


def test_a_checkpoint_before_the_first_commit_goes_on_above_the_ceiling() -> None:
    disk, second = after_a_crash()
    second.checkpoint()
    second.set({"b": b"2"})
    second.write()
    assert items(restarted(disk).database) == {"a": (b"1", 1), "b": (b"2", 1001)}


def test_the_ceiling_of_this_run_is_on_the_disk_with_the_name_of_a_new_segment() -> None:
    disk = MemoryDisk()
    running = Running(disk)
    running.log.raise_ceiling(1000)
    at_name: list[dict[str, bytes]] = []
    rename = disk.rename

    def watching(old: str, new: str) -> None:
        rename(old, new)
        at_name.append(disk.contents())

    disk.rename = watching  # type: ignore[method-assign]
    running.rotate()
    assert Running(MemoryDisk(at_name[0])).set({"a": b""}) == 1001


def test_a_clean_stop_releases_the_ceiling() -> None:
    disk = MemoryDisk()
    first = Running(disk)
    first.log.raise_ceiling(1000)
    first.set({"a": b"1"})
    first.write()
    first.log.close()
    assert restarted(disk).set({"b": b""}) == 2


# ---------------------------------------------------------------------- ids


def test_an_id_that_was_forgotten_with_its_segment_is_not_taken_for_a_new_one() -> None:
    disk = MemoryDisk()
    first = Running(disk, limits=WindowLimits(max_commits=0))
    first.set({"n": b"1"}, id_=ID)
    first.write()
    first.set({"n": b"2"})
    first.set({"n": b"3"})
    first.checkpoint()
    first.set({"n": b"4"})
    first.write()
    assert first.remove_superseded()
    second = restarted(disk)
    with pytest.raises(OutcomeUnknown):
        second.database.run_once(1000, ID, 0, lambda: second.database.set({"n": b"1"}, ME))
    assert items(second.database)["n"] == (b"4", 4)


def test_commits_made_together_and_their_ids_share_one_record() -> None:
    """Some keys are new, so each commit is a group; together they are larger than a record of other groups may be."""
    disk = MemoryDisk()
    running = Running(disk, segment_bytes=4 << 20)
    value = b"x" * (commit_log.COMMITS_BYTES // 2)
    batch = [{f"key{number}": value} for number in range(4)]
    ids = [(bytes([number]) * 16, 0) for number in range(4)]
    running.database.set_each_once(1000, ids, batch, ME)
    running.write()
    name = "0000000001.log"
    whole = disk.contents()[name]
    for cut in range(HEADER_BYTES, len(whole), len(value) // 2):
        second = Running(MemoryDisk({name: whole[:cut].ljust(len(whole), b"\0")}), segment_bytes=4 << 20)
        remembered = [second.database.outcomes.lookup(1000, id_, None, 0) for id_, _ in ids]
        stored = [second.database.store.exists(f"key{number}") for number in range(4)]
        assert [answer is not None for answer in remembered] == stored


# ---------------------------------------------------------------------- the keys of the dead


def test_keys_of_a_connection_that_a_crash_ended_are_deleted_once() -> None:
    disk = MemoryDisk()
    first = Running(disk)
    first.set({"mine": b"1"}, Expiry(owner="me"))
    first.write()
    second = restarted(disk)
    assert not second.database.store.exists("mine")
    assert second.database.store.version == 2
    second.write()
    assert restarted(second.disk).database.store.version == 2


# ---------------------------------------------------------------------- versions that a crash took


def test_only_versions_below_the_ceiling_are_shown_before_they_are_on_the_disk() -> None:
    """The ceiling itself is where a start after a crash goes on, so no client may have seen it."""
    running = Running(MemoryDisk())
    running.log.raise_ceiling(2 * CEILING_STEP)
    loop = asyncio.new_event_loop()
    durability = LogDurability(running.database.store, running.log, "never", 100, loop, pytest.fail)
    assert durability.ceiling_for(1) == 2 * CEILING_STEP - 1
    loop.run_until_complete(durability.close())
    loop.close()


def after_lost_commits() -> tuple[MemoryDisk, Running]:
    """Start after a power cut: clients saw versions 2 to 4, which were not on the disk. The ceiling was 10."""
    disk = MemoryDisk()
    first = Running(disk)
    first.log.raise_ceiling(10)
    first.set({"a": b"1"})
    first.write()
    for number in range(3):
        first.set({"a": b"lost %d" % number})
    return disk, Running(disk)


def later_runs() -> list[Running]:
    """The run after the power cut, before and after its first commit, and the runs after that one."""
    disk, second = after_lost_commits()
    other_disk, written = after_lost_commits()
    written.set({"b": b"2"})
    written.write()
    crashed = restarted(other_disk)
    written.log.close()
    return [second, restarted(disk), written, crashed, restarted(other_disk)]


@pytest.mark.parametrize("run", range(5))
def test_a_version_that_a_crash_took_cannot_be_read(run: int) -> None:
    store = later_runs()[run].database.store
    for lost in range(2, 10):
        for read in (
            lambda lost=lost: store.get_many(["a"], lost),
            lambda lost=lost: store.fetch(["a"], lost),
            lambda lost=lost: store.scan("", None, 9, at=lost),
            lambda lost=lost: commits_from(store, lost + 1, 9, 1000),
            lambda lost=lost: validate(store, {}, [("", None)], lost),
            lambda lost=lost: next(iter(store.window.since(lost)), None),
        ):
            with pytest.raises(VersionLost) as error:
                read()
            assert (error.value.version, error.value.next_version) == (lost, 10)


@pytest.mark.parametrize("run", range(5))
def test_the_versions_around_those_that_a_crash_took_can_be_read(run: int) -> None:
    store = later_runs()[run].database.store
    assert store.get_many(["a"], 1) == store.get_many(["a"], 10) == [b"1"]
    assert store.get_many(["a"], 0) == [None]
    assert [commit.version for commit in commits_from(store, 1, 9, 1000)] in ([1], [1, 11])
    assert store.get_many(["a", "b"], store.version) in ([b"1", None], [b"1", b"2"])


@pytest.mark.parametrize("run", range(5))
def test_a_watch_from_a_version_that_a_crash_took_is_resynchronised(run: int) -> None:
    store = later_runs()[run].database.store
    assert Feed(store, "", 5).next_events()[:2] == [("reset", store.version), ("item", "a", b"1", 1)]
    assert Feed(store, "a", 1).next_events() == [("live", store.version)]
    assert Feed(store, "a", 10).next_events() == [("live", store.version)]


def test_a_checkpoint_begins_a_history_without_versions_that_a_crash_took() -> None:
    disk, second = after_lost_commits()
    second.set({"b": b"2"})
    second.checkpoint()
    second.write()
    store = restarted(disk).database.store
    assert store.get_many(["a", "b"], 11) == [b"1", b"2"]
    with pytest.raises(SnapshotGone):
        store.get_many(["a"], 5)
