"""The report on a damaged directory is true: it names the damage, and the newest version that can be saved."""

import pytest

from kvd.engine.copying import Point
from kvd.engine.examination import CheckReport, examine
from kvd.journal import names
from kvd.journal.errors import Damaged, NewerFormat
from kvd.journal.records import HEADER_BYTES
from tests.journal.busy import Busy, differences
from tests.journal.crashes import Contents, RecordingDisk
from tests.journal.disks import MemoryDisk
from tests.journal.running import Running, items
from tests.journal.test_copying import copied, files, recovered, run_of
from tests.journal.test_damage import flipped, places


@pytest.fixture(scope="module")
def busy() -> Busy:
    """Return a run with two checkpoints and several segments, stopped cleanly."""
    for seed in range(100):
        made = run_of(seed, 90)
        there = list(files(made))
        if (
            len(names.checkpoint_numbers(there)) >= 2
            and len(names.log_numbers(there)) >= 4
            and 1 not in names.log_numbers(there)
        ):
            made.running.write()
            made.running.log.close()
            return made
    raise AssertionError("no such run")


def examined(contents: Contents) -> CheckReport:
    disk = MemoryDisk(contents)
    found = examine(disk)
    assert disk.contents() == contents
    return found


def salvaged(contents: Contents, busy: Busy) -> int:
    """Return the version that a salvage saves, after comparing it with the model; 0 if it saves nothing."""
    found = examined(contents)
    if found.saved is None:
        return 0
    disk, version = copied(contents, found.saved, Point(found.saved.version))
    database, reached = recovered(disk, busy)
    assert reached == version == found.saved.version
    assert differences(database, version, busy.model, busy.now) is None
    return version


def test_a_sound_directory(busy: Busy) -> None:
    found = examined(files(busy))
    store = busy.running.database.store
    assert (found.damages, found.saved) == ([], None)
    assert found.recovered is not None
    assert found.recovered.clean
    assert (found.recovered.version, found.newest_known) == (busy.running.log.written,) * 2
    # Without the keys that hang on a connection: a start deletes them.
    lasting = [key for key in items(busy.running.database) if not store.lifetimes.is_owned(key)]
    assert (found.keys, found.time) == (len(lasting), store.time)


def test_a_flipped_byte_anywhere(busy: Busy) -> None:
    """In a checkpoint, or in a segment before a later checkpoint, it costs no value; otherwise it costs what follows.

    The file is named, and the offset is at or before the byte.
    """
    source = files(busy)
    last = busy.running.log.written
    newest_checkpoint = names.checkpoint_numbers(list(source))[-1]
    judged = 0
    for name, data in source.items():
        for at in range(0, len(data), 3):
            bad = {**source, name: flipped(data, at, 0x04)}
            try:
                found = examined(bad)
            except NewerFormat:
                assert at < HEADER_BYTES
                continue
            if (
                not found.damages
            ):  # a torn tail, for which no record vouches; the mark of a clean stop vouches for nothing
                continue
            judged += 1
            assert any(damage.path.endswith(name) and damage.offset <= at for damage in found.damages)
            saved = salvaged(bad, busy)
            assert found.newest_known <= last
            assert saved >= expected(source, name, at, newest_checkpoint, last)
    assert judged > 1000


def expected(source: Contents, name: str, at: int, newest_checkpoint: int, last: int) -> int:
    """Return the version up to which the directory can be saved at least."""
    number = int(name.split(".")[0])
    if name == names.checkpoint(newest_checkpoint) or number < newest_checkpoint:
        return last
    if at < HEADER_BYTES:
        return 0
    return max((place.after for place in places(MemoryDisk(source), number) if place.end <= at), default=0)


def test_a_missing_file(busy: Busy) -> None:
    source = files(busy)
    newest_checkpoint = names.checkpoint_numbers(list(source))[-1]
    for name in source:
        bad = {each: data for each, data in source.items() if each != name}
        found = examined(bad)
        is_needed = name != names.checkpoint(newest_checkpoint)
        if not found.damages:
            assert not is_needed or int(name.split(".")[0]) < newest_checkpoint or name == list(source)[-1]
            continue
        if int(name.split(".")[0]) < newest_checkpoint:
            assert salvaged(bad, busy) == busy.running.log.written


def test_nothing_can_be_saved_without_any_base(busy: Busy) -> None:
    source = files(busy)
    bad = {name: data[:10] if name.endswith(".checkpoint") else data for name, data in source.items()}
    found = examined(bad)
    assert found.saved is None
    assert {damage.path for damage in found.damages} >= {
        f"/data/{name}" for name in bad if name.endswith(".checkpoint")
    }
    assert found.newest_known == busy.running.log.written


def test_every_damaged_file_is_named(busy: Busy) -> None:
    source = files(busy)
    bad = {name: flipped(data, 5, 0x01) for name, data in source.items()}
    assert {damage.path for damage in examined(bad).damages} == {f"/data/{name}" for name in source}


def test_a_torn_tail_is_no_damage() -> None:
    busy = Busy(RecordingDisk(), 5)
    while sum(busy.did.values()) < 40:
        busy.step()
    busy.write()
    busy.set()
    busy.write_only()
    source = files(busy)
    name = names.log(names.log_numbers(list(source))[-1])
    found = places(MemoryDisk(source), names.log_numbers([name])[0])
    torn = examined({**source, name: source[name][: found[-1].end - 1]})
    assert torn.damages == []
    assert torn.recovered is not None
    assert torn.recovered.torn is not None
    assert torn.recovered.version == found[-1].before


def test_segments_that_do_not_fit_together(busy: Busy) -> None:
    """One segment is a copy of another, under its own name."""
    source = files(busy)
    numbers = names.log_numbers(list(source))
    bad = {**source, names.log(numbers[-1]): source[names.log(numbers[-2])]}
    found = examined(bad)
    assert [type(damage) for damage in found.damages] == [Damaged]
    salvaged(bad, busy)


def test_a_checkpoint_is_no_base_without_the_log_through_its_end() -> None:
    """It has some of the commits that were made while it was written, and not the others."""
    running = Running(MemoryDisk())
    running.set({"a": b"1", "b": b"1"})
    turns = iter(range(100))

    def between() -> None:
        running.set({f"new{next(turns)}": b"x" * 50, "a": b"2"})
        running.write()

    number = running.checkpoint(between)
    running.write()
    source = {name: data for name, data in running.disk.contents().items() if name != names.log(1)}  # type: ignore[attr-defined]
    found = places(MemoryDisk(source), number)
    assert running.ends[number] > found[2].before
    bad = {**source, names.log(number): flipped(source[names.log(number)], found[2].begin + 9, 1)}
    assert examined(bad).saved is None


def test_versions_known_after_the_damage_count_as_lost() -> None:
    running = Running(MemoryDisk())
    for number in range(9):
        running.set({"a": b"%d" % number})
        running.write(sync=False)  # so that no record vouches for the one before it
    running.log.sync()
    running.set({"a": b"last"})
    running.write()
    source = running.disk.contents()  # type: ignore[attr-defined]
    found = places(MemoryDisk(source), 1)
    bad = examined({**source, names.log(1): flipped(source[names.log(1)], found[5].begin + 9, 1)})
    assert bad.saved is not None
    assert (bad.saved.version, bad.newest_known) == (4, 10)
