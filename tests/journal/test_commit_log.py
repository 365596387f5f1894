"""The commit log: space is reserved before a commit is applied, many groups share a write; segments, and marks."""

import errno

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvd.engine.database import Database
from kvd.engine.journal import DurableJournal
from kvd.engine.replay import Replay
from kvd.journal import names
from kvd.journal.commit_log import COMMITS_BYTES, MARK_BYTES, Batch, CommitLog
from kvd.journal.errors import NoSpace
from kvd.journal.records import HEADER_BYTES, Codec, Commits, Group, Header
from kvd.journal.segments import SegmentReader
from kvd.store.authors import Author
from kvd.store.lifetimes import Expiry
from tests.journal.disks import Failing, MemoryDisk
from tests.journal.running import ME, ByHand, Running, items

SIZE = 1024


def log_on(disk: MemoryDisk, *, size: int = SIZE, version: int = 0) -> CommitLog:
    return CommitLog(disk, Header(0, 1, version, version, b"a store!"), size, lambda: 5)


def group(version: int, value: bytes = b"v") -> Group:
    return Group(version, 0, (None, None, ""), 1, ["key"], [value])


def add(log: CommitLog, version: int, size: int = 200, value: bytes = b"v") -> None:
    log.reserve(size)
    log.add(group(version, value), size)


def write(log: CommitLog, *, sync: bool = True) -> None:
    batch = log.take()
    assert batch is not None
    log.write(batch, sync=sync)
    log.release(batch)


def versions(disk: MemoryDisk) -> dict[int, list[int]]:
    """Return the versions of the groups in each segment."""
    return {
        number: [each.version for each in SegmentReader(disk, number)] for number in names.log_numbers(disk.names())
    }


# ---------------------------------------------------------------------- in and out


def test_added_groups_are_taken_once_and_in_order() -> None:
    disk = MemoryDisk()
    log = log_on(disk)
    assert log.take() is None
    for version in (1, 2, 3):
        add(log, version)
    assert (log.pending, log.group_of(3).version, log.added) == (3, 3, 3)
    write(log)
    assert log.take() is None
    assert (log.pending, log.written, log.synced) == (0, 3, 3)
    assert versions(disk) == {1: [1, 2, 3]}


def test_groups_of_a_batch_share_a_record() -> None:
    disk = MemoryDisk()
    log = log_on(disk)
    before = log.bytes
    for version in (1, 2, 3):
        add(log, version)
    write(log)
    record = Codec(5).encode(Commits(0, [group(version) for version in (1, 2, 3)]))
    assert log.bytes - before == len(record)


def test_a_large_batch_is_several_records_but_groups_with_one_reservation_share_one() -> None:
    disk = MemoryDisk()
    log = log_on(disk, size=4 * COMMITS_BYTES)
    size = COMMITS_BYTES // 2 + 1
    for version in range(1, 5):
        add(log, version, size)
    log.add(group(5), 0)
    log.add(group(6), 0)
    write(log)
    data, at, records = memoryview(disk.read(names.log(1))), HEADER_BYTES, []
    while (payload := Codec(5).payload_at(data, at)) is not None:
        records.append([each.version for each in msgspec.msgpack.decode(payload, type=Commits).groups])
        at += 8 + len(payload)
    assert records == [[1], [2], [3], [4, 5, 6]]


def test_a_write_without_a_sync_is_synced_by_the_next_sync() -> None:
    log = log_on(MemoryDisk())
    add(log, 1)
    write(log, sync=False)
    assert (log.written, log.synced) == (1, 0)
    add(log, 2)
    write(log)
    assert (log.written, log.synced) == (2, 2)


def test_an_empty_batch_syncs() -> None:
    log = log_on(MemoryDisk())
    add(log, 1)
    write(log, sync=False)
    log.write(Batch([], [], 1), sync=True)
    assert log.synced == 1


def test_a_record_vouches_for_the_commits_synced_before_it() -> None:
    disk = MemoryDisk()
    log = log_on(disk)
    watermarks = []
    for version, sync in ((1, True), (2, False), (3, True), (4, True)):
        add(log, version)
        watermarks.append(log.synced)
        write(log, sync=sync)
    data, at, found = memoryview(disk.read(names.log(1))), HEADER_BYTES, []
    while (payload := Codec(5).payload_at(data, at)) is not None:
        found.append(msgspec.msgpack.decode(payload, type=Commits).watermark)
        at += 8 + len(payload)
    assert found == watermarks == [0, 1, 1, 3]


# ---------------------------------------------------------------------- space


def test_a_commit_that_does_not_fit_anywhere_makes_the_spare_larger() -> None:
    disk = MemoryDisk()
    log = log_on(disk)
    log.reserve(10 * SIZE)
    assert disk.size(names.unfinished(names.log(2))) >= 10 * SIZE
    log.add(group(1, b"x" * 9 * SIZE), 10 * SIZE)
    write(log)
    assert versions(disk) == {1: [], 2: [1]}


def test_space_is_reserved_for_all_waiting_groups_together() -> None:
    """Each group would fit alone; and a taken batch keeps its reservation until it is released."""
    disk = Failing()
    log = log_on(disk)
    disk.fails = lambda call: errno.ENOSPC if call == "allocate" else None
    add(log, 1, 400)
    add(log, 2, 400)
    with pytest.raises(NoSpace):
        log.reserve(400)
    batch = log.take()
    assert batch is not None
    with pytest.raises(NoSpace):
        log.reserve(400)
    log.write(batch, sync=True)
    log.release(batch)
    log.reserve(400)


def test_fits_now_says_whether_all_groups_fit_into_the_segment() -> None:
    log = log_on(MemoryDisk())
    add(log, 1, SIZE - HEADER_BYTES - MARK_BYTES)
    assert log.fits_now()
    log.add(group(2), 1)
    assert not log.fits_now()


def test_groups_without_a_reservation_are_written_too() -> None:
    """They go beyond the segment's end if there is no other segment: refusing them now would lose them."""
    disk = Failing()
    log = log_on(disk)
    disk.fails = lambda call: errno.ENOSPC if call in ("create", "allocate") else None
    log.rotate()
    log.add(group(1, b"x" * 2 * SIZE), 0)
    write(log)
    assert versions(disk) == {1: [], 2: [1]}


def test_a_spare_that_becomes_the_segment_while_it_grows_is_not_overwritten() -> None:
    """The loop reserves space while the worker is turning the spare into the segment."""
    disk = MemoryDisk()
    log = log_on(disk)
    add(log, 1)
    write(log)
    sync = disk.sync
    begun: list[str] = []

    def syncing(descriptor: int) -> None:
        sync(descriptor)
        if disk.open[descriptor] is disk.files.get(names.unfinished(names.log(2))) and not begun:
            begun.extend(disk.names())
            log.reserve(5 * SIZE)

    disk.sync = syncing  # type: ignore[method-assign]
    log.rotate()
    assert begun
    log.add(group(2, b"x" * 4 * SIZE), 5 * SIZE)
    write(log)
    assert versions(disk) == {1: [1], 2: [], 3: [2]}
    assert len(disk.open) == 2  # the segment and its spare


# ---------------------------------------------------------------------- segments


def test_a_full_segment_is_cut_to_its_size_and_the_next_one_follows() -> None:
    disk = MemoryDisk()
    log = log_on(disk)
    for version in range(1, 30):
        add(log, version, value=b"x" * 100)
        write(log)
    found = versions(disk)
    assert [version for each in found.values() for version in each] == list(range(1, 30))
    assert len(found) > 2
    for number in list(found)[:-1]:
        reader = SegmentReader(disk, number)
        list(reader)
        assert disk.size(names.log(number)) == reader.end
    assert disk.size(names.log(log.number)) == SIZE


def test_a_new_segment_says_which_versions_are_before_it() -> None:
    disk = MemoryDisk()
    log = log_on(disk, version=10)
    add(log, 11)
    write(log, sync=False)
    assert log.rotate() == log.number == 2
    assert (log.synced, log.written) == (11, 11)
    header = SegmentReader(disk, 2).header
    assert (header.number, header.version, header.watermark, header.store_id) == (2, 11, 11, b"a store!")


def test_each_segment_has_a_salt_of_its_own() -> None:
    disk = MemoryDisk()
    salts = iter((3, 4, 5))
    log = CommitLog(disk, Header(0, 1, 0, 0, b"a store!"), SIZE, lambda: next(salts))
    log.rotate()
    assert [SegmentReader(disk, number).header.salt for number in (1, 2)] == [3, 4]


def test_a_segment_has_its_name_only_when_its_header_is_on_the_disk() -> None:
    disk = MemoryDisk()
    calls: list[str] = []
    for name in ("write", "sync", "rename", "sync_directory"):
        real = getattr(disk, name)

        def noting(*args: object, name: str = name, real: object = real) -> None:
            calls.append(name)
            real(*args)  # type: ignore[operator]

        setattr(disk, name, noting)
    log_on(disk)
    assert calls == ["write", "sync", "rename", "sync_directory"]


# ---------------------------------------------------------------------- marks, and the end


def test_a_ceiling_counts_once_it_is_on_the_disk_and_in_each_segment_from_then_on() -> None:
    disk = MemoryDisk()
    log = log_on(disk)
    assert log.ceiling == 0
    log.raise_ceiling(500)
    assert log.ceiling == 500
    log.rotate()
    log.rotate()
    readers = [SegmentReader(disk, number) for number in (1, 2, 3)]
    for reader in readers:
        list(reader)
    assert [reader.ceiling for reader in readers] == [500] * 3


def test_a_ceiling_is_not_raised_without_space() -> None:
    disk = Failing()
    log = log_on(disk, size=HEADER_BYTES + MARK_BYTES)
    disk.fails = lambda call: errno.ENOSPC if call in ("create", "allocate") else None
    log.rotate()
    with pytest.raises(NoSpace):
        log.raise_ceiling(500)
    assert (log.ceiling, log.error) == (0, None)


def test_a_clean_stop_leaves_a_clean_segment_cut_to_its_size_and_no_spare() -> None:
    disk = MemoryDisk()
    log = log_on(disk)
    add(log, 1)
    write(log, sync=False)
    log.close()
    reader = SegmentReader(disk, 1)
    list(reader)
    assert (reader.clean, reader.ceiling, reader.torn) == (True, 1, None)
    assert disk.names() == [names.log(1)]
    assert disk.size(names.log(1)) == reader.end
    assert disk.open == {}


def test_a_mark_makes_the_loss_of_the_last_commit_noticeable() -> None:
    disk = MemoryDisk()
    log = log_on(disk)
    add(log, 1)
    write(log)
    log.mark()
    data = bytearray(disk.read(names.log(1)))
    data[HEADER_BYTES + 10] ^= 1
    with pytest.raises(Exception, match="version 1 was on disk"):
        versions(MemoryDisk({names.log(1): bytes(data)}))


# ---------------------------------------------------------------------- what a commit takes


KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.text("\N{BANANA}", min_size=1)
VALUES = st.binary(max_size=300)


@settings(deadline=None)
@given(
    st.dictionaries(KEYS, VALUES, min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["set", "each", "touch", "delete", "increment", "commit"]),
    st.text(max_size=15),
)
def test_no_commit_takes_more_than_was_reserved_for_it(
    entries: dict[str, bytes], has_ttl: bool, is_ephemeral: bool, kind: str, name: str
) -> None:
    log = log_on(MemoryDisk(), size=1 << 16)
    contents = Replay(clock=lambda: 2**52, timer=lambda: 2**50)
    database = Database(contents=contents, journal=DurableJournal(log, contents, ByHand()))
    author = Author(2**32 - 1, 2**31, name)
    expiry = Expiry(deadline=2**51 if has_ttl else None, owner="me" if is_ephemeral else None)
    database.set(entries, author, expiry)
    keys = list(entries)
    ids: list[tuple[bytes, int | None]] = [(bytes([number]) * 16, None) for number in range(len(keys))]
    match kind:
        case "each":
            database.set_each_once(2**32 - 1, ids, [{key: value} for key, value in entries.items()], author)
        case "touch":
            database.run_once(1, b"i" * 16, None, lambda: database.touch(keys, 10**9, author))
        case "delete":
            database.run_once(1, b"i" * 16, None, lambda: database.delete(keys, author, missing_ok=True))
        case "increment":
            database.run_once(1, b"i" * 16, None, lambda: database.increment("number", -(2**63), author, expiry))
        case "commit":
            writes: dict[str, bytes | None] = {**entries, keys[0]: None}
            database.run_once(1, b"i" * 16, None, lambda: database.commit(writes, {}, [], 0, author, expiry))
    batch = log.take()
    assert batch is not None
    assert len(Codec(1).encode(Commits(2**63, batch.groups))) <= sum(batch.sizes)


# ---------------------------------------------------------------------- what must happen without space


def full(running: Running, disk: Failing) -> None:
    """Make the disk full: from now on there is no space, not even for a deletion."""
    disk.fails = lambda call: errno.ENOSPC if call in ("create", "allocate") else None
    while True:
        try:
            running.set({"f": b""})
        except NoSpace:
            return
        running.write()


def test_keys_that_expire_on_a_full_disk_are_deleted_and_logged_once_there_is_space() -> None:
    disk = Failing()
    now = 0
    running = Running(disk, now=lambda: now)
    running.set({"due": b"x"}, Expiry(deadline=running.database.timer() + 1000))
    running.set({"mine": b"x"}, Expiry(owner="me"))
    running.write()
    full(running, disk)
    now = 2000
    before = running.log.added
    running.database.expire_all_due()
    running.database.delete_owned("me", ME)
    assert not {"due", "mine"} & items(running.database).keys()
    assert running.log.added == before
    disk.fails = lambda call: None
    version = running.set({"later": b""})
    running.write()
    found = Running(MemoryDisk(disk.contents()), now=lambda: now).database
    assert items(found) == items(running.database)
    assert found.store.version == version


def test_groups_that_wait_for_space_do_not_depend_on_the_history() -> None:
    """The history may drop the group meanwhile; the log still gets it."""
    disk = Failing()
    now = 0
    running = Running(disk, now=lambda: now)
    for number in range(5):
        running.set({f"due{number}": b"x"}, Expiry(deadline=running.database.timer() + 1000 * (number + 1)))
    running.write()
    full(running, disk)
    for _ in range(5):
        now += 1000
        running.database.expire_all_due()
    now += 10**12
    while running.database.upkeep.drop_old(10**6):
        pass
    assert running.database.store.window.commits == 0
    disk.fails = lambda call: None
    running.set({"later": b""})
    running.write()
    assert items(Running(MemoryDisk(disk.contents()), now=lambda: now).database) == items(running.database)
