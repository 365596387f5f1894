"""Files that are damaged in any way: refused, with the place, or cut off if no record vouches for more.

Never a state that was not, never another exception. Of each byte of a small data directory we flip some bits, we zero,
double and exchange blocks, cut files off at every length, and remove them. KVD_TEST_SCALE multiplies the flips.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from kvd.journal import names
from kvd.journal.errors import Damaged
from kvd.journal.records import HEADER_BYTES, RECORD_BYTES, Clock, Codec, Commits, Mark, Successor, decode
from kvd.journal.recovery import Recovered
from kvd.journal.segments import SegmentReader
from tests.harness.scale import SCALE
from tests.journal.busy import Busy, differences
from tests.journal.crashes import Contents, RecordingDisk
from tests.journal.disks import MemoryDisk
from tests.journal.running import BOOT_US, WALL_US, recovered

FLIPS = [0x01, 0xFF, 0x80, 0x10, 0x02, 0x40][: max(1, round(SCALE))]
BLOCKS = (16, 64, 512)
SEEDS = {"killed": 5, "stopped": 7}


class Place(NamedTuple):
    """A record: its offsets, the versions before and after it, and the version that it vouches for."""

    begin: int
    end: int
    before: int
    after: int
    watermark: int


def places(disk: MemoryDisk, number: int) -> list[Place]:
    """Return the records of a segment."""
    reader = SegmentReader(disk, number)
    data, codec = memoryview(disk.read(names.log(number))), Codec(reader.header.salt)
    found, at, version = [], HEADER_BYTES, reader.header.watermark
    while (payload := codec.payload_at(data, at)) is not None:
        record = decode(payload)
        assert isinstance(record, Commits | Mark | Successor | Clock)
        groups = record.groups if isinstance(record, Commits) else []
        after = groups[-1].version + groups[-1].commits - 1 if groups else version
        watermark = 0 if isinstance(record, Clock) else record.watermark
        found.append(Place(at, at + RECORD_BYTES + len(payload), version, after, watermark))
        at, version = found[-1].end, after
    return found


class Subject:
    """The data directory of a daemon that has ended, and what it should hold.

    ``places`` are the records of the newest segment, ``ended`` is what the checkpoints vouch for.
    """

    places: list[Place]
    ended: int

    def __init__(self, kind: str) -> None:
        self.is_stopped = kind == "stopped"
        self.busy = Busy(RecordingDisk(), SEEDS[kind])
        while self.busy.did.get("finished", 0) < 1 or sum(self.busy.did.values()) < 35:
            self.busy.step()
        for _ in range(3):
            self.busy.set()
            self.busy.write()
        self.busy.write_only()
        if self.is_stopped:
            self.busy.running.log.close()
        self.files = {name: data for name, data in self.busy.disk.contents().items() if not names.is_unfinished(name)}
        self.version = self.busy.running.log.written
        self.last = names.log(max(names.log_numbers(list(self.files))))
        self.first = min(names.checkpoint_numbers(list(self.files)))

    def recovered(self, files: Contents) -> Recovered | Damaged:
        """Recover ``files``: they are refused with a place in one of them, or have a state that existed."""
        now = self.busy.now
        try:
            database, found = recovered(
                MemoryDisk(files), self.busy.limits, lambda: WALL_US + now, lambda: BOOT_US + now
            )
        except Damaged as damaged:
            if not 0 <= damaged.offset <= len(self.files[damaged.path.removeprefix("/data/")]):
                raise AssertionError("that is nowhere") from damaged
            return damaged
        assert differences(database, found.version, self.busy.model, now) is None
        return found

    def changed(self, name: str, data: bytes) -> Recovered | Damaged:
        """Recover the directory with other contents of one file."""
        return self.recovered({**self.files, name: data})


@pytest.fixture(params=SEEDS, scope="module")
def subject(request: pytest.FixtureRequest) -> Subject:
    made = Subject(request.param)
    found = made.recovered(made.files)
    assert isinstance(found, Recovered)
    assert found.version == made.version
    assert found.clean == (request.param == "stopped")
    assert len(names.log_numbers(list(made.files))) >= 2
    made.places = places(MemoryDisk(made.files), names.log_numbers([made.last])[0])
    made.ended = max(found.checkpoints.values())
    return made


def flipped(data: bytes, at: int, bits: int) -> bytes:
    return data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :]


def expected(subject: Subject, at: int) -> int | None:
    """Return the last version that should be left if this byte of the newest segment is bad; None: it is refused."""
    found = subject.places
    hit = [place for place in found if place.begin <= at < place.end]
    if at < HEADER_BYTES:
        return None
    if not hit:
        return subject.version
    vouched = max((place.watermark for place in found if place.begin > hit[0].begin), default=0)
    return None if vouched > hit[0].before or hit[0].before < subject.ended else hit[0].before


def test_each_flipped_byte_of_the_newest_segment_is_damage_or_a_torn_tail_by_the_rule(subject: Subject) -> None:
    data = subject.files[subject.last]
    refused = cut = 0
    for at in range(len(data)):
        wanted = expected(subject, at)
        for bits in FLIPS:
            found = subject.changed(subject.last, flipped(data, at, bits))
            if isinstance(found, Damaged):
                assert wanted is None, f"byte {at} is refused: {found}"
                refused += 1
            else:
                assert found.version == wanted
                assert found.torn is not None
                cut += 1
    print(f"{refused} flips are refused, {cut} cut off")
    assert refused > HEADER_BYTES
    assert cut > RECORD_BYTES or subject.is_stopped


def begin_of_note(subject: Subject, name: str) -> int:
    """Return where the marks and the note of the next segment begin, after the last commit; a checkpoint has none."""
    numbers = names.log_numbers([name])
    if not numbers:
        return len(subject.files[name])
    found = places(MemoryDisk(subject.files), numbers[0])
    return max((place.end for place in found if place.after > place.before), default=HEADER_BYTES)


def test_each_flipped_byte_of_any_other_file_is_refused(subject: Subject) -> None:
    """But of the marks at the end and the note of the next segment, which are not needed while that one is there."""
    flips = 0
    for name, data in needed(subject):
        note = begin_of_note(subject, name)
        for at in range(len(data)):
            for bits in FLIPS:
                found = subject.changed(name, flipped(data, at, bits))
                if at >= note:
                    assert isinstance(found, Damaged) or found.version == subject.version
                    continue
                assert isinstance(found, Damaged)
                assert found.path == f"/data/{name}"
                flips += 1
    print(f"{flips} flips are refused")
    assert flips > 1000


def needed(subject: Subject) -> Iterator[tuple[str, bytes]]:
    """Yield the files that recovery reads, except the newest segment."""
    base = 1 if names.log(1) in subject.files else subject.first
    for name, data in subject.files.items():
        is_old = name.endswith(".log") and int(name.split(".")[0]) < base
        if name != subject.last and not is_old:
            yield name, data


def test_blocks_that_are_zeroed_doubled_or_exchanged_never_make_another_state(subject: Subject) -> None:
    refused = accepted = 0
    for name, data in [*needed(subject), (subject.last, subject.files[subject.last])]:
        for size in BLOCKS:
            for changed, at in with_blocks_changed(data, size):
                found = subject.changed(name, changed)
                if isinstance(found, Damaged):
                    refused += 1
                    continue
                accepted += 1
                assert found.version >= vouched_after(subject, name, at)
    print(f"{refused} are refused, {accepted} accepted")
    assert refused > 100


def with_blocks_changed(data: bytes, size: int) -> Iterator[tuple[bytes, int]]:
    """Yield ``data`` with a block zeroed, doubled, or moved to another's place; and where the change ends."""
    for at in range(0, len(data), size):
        block, other = data[at : at + size], data[at + size : at + 2 * size]
        yield data[:at] + bytes(len(block)) + data[at + len(block) :], at + size
        yield data[:at] + other + block + data[at + 2 * size :], at + 2 * size
        if len(other) == size:
            yield data[: at + size] + block + data[at + 2 * size :], at + 2 * size
            yield data[:at] + other + data[at + size :], at + 2 * size


def vouched_after(subject: Subject, name: str, at: int) -> int:
    """Return what later records of the newest segment vouch for; everything if the change is in another file."""
    if name != subject.last:
        return 0 if name.endswith(".checkpoint") else subject.version
    return max((place.watermark for place in subject.places if place.begin >= at), default=0)


def test_files_that_are_cut_off_anywhere_never_make_another_state(subject: Subject) -> None:
    for name, data in needed(subject):
        for size in range(len(data)):
            found = subject.changed(name, data[:size])
            # Only marks may be missing unnoticed.
            assert isinstance(found, Damaged) or (name.endswith(".log") and found.version == subject.version)
    data = subject.files[subject.last]
    bounds = {HEADER_BYTES, *(place.end for place in subject.places)}
    for size in range(len(data)):
        found = subject.changed(subject.last, data[:size])
        assert isinstance(found, Damaged) or (found.torn is None) == (size in bounds or size >= max(bounds))


def test_a_missing_file_is_noticed_if_it_is_needed(subject: Subject) -> None:
    """A checkpoint is not needed if the log goes back to the beginning, nor are files before a checkpoint."""
    refused = 0
    for name, _ in needed(subject):
        found = subject.recovered({each: data for each, data in subject.files.items() if each != name})
        if isinstance(found, Damaged):
            assert "missing" in found.reason
            refused += 1
        else:
            assert found.version == subject.version
            assert name.endswith(".checkpoint") or name == names.log(1)
    assert refused


def test_a_missing_newest_segment_is_noticed(subject: Subject) -> None:
    """The one before it says that it was begun."""
    found = subject.recovered({name: data for name, data in subject.files.items() if name != subject.last})
    assert isinstance(found, Damaged)
    assert found.path.endswith(subject.last)
    assert "missing" in found.reason


def test_files_that_were_exchanged_are_refused(subject: Subject) -> None:
    segments = [name for name in subject.files if name.endswith(".log")][-2:]
    one, other = segments
    files = {**subject.files, one: subject.files[other], other: subject.files[one]}
    assert isinstance(subject.recovered(files), Damaged)
