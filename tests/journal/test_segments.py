"""A file is read to its end, and the end is classified: complete, torn, or damaged."""

import msgspec
import pytest

from kvd.journal import names
from kvd.journal.errors import Damaged
from kvd.journal.records import (
    CHECKPOINT_MAGIC,
    HEADER_BYTES,
    LOG_MAGIC,
    Codec,
    Commits,
    End,
    Group,
    Header,
    Heads,
    Mark,
    Record,
)
from kvd.journal.segments import CheckpointReader, SegmentReader
from tests.journal.disks import MemoryDisk

HEADER = Header(99, 1, 10, 10, b"8 bytes!")
CODEC = Codec(HEADER.salt)
UNUSED = bytes(300)
GARBAGE = b"\xa5" * 40


def commit(version: int, watermark: int = 10, count: int = 1) -> bytes:
    keys = [f"k{number}" for number in range(count)]
    values: list[bytes | None] = [b"v"] * count
    return CODEC.encode(Commits(watermark, [Group(version, 0, (None, None, ""), count, keys, values)]))


def encoded(record: Record) -> bytes:
    return CODEC.encode(record)


def read(*pieces: bytes, header: Header = HEADER) -> tuple[SegmentReader, list[int]]:
    """Read a segment of these pieces; return the reader, and the versions of its groups."""
    disk = MemoryDisk({names.log(1): header.encode(LOG_MAGIC) + b"".join(pieces)})
    reader = SegmentReader(disk, 1)
    return reader, [group.version for group in reader]


def hole(piece: bytes) -> bytes:
    """Return what stands where a write did not reach the disk."""
    return bytes(len(piece))


@pytest.mark.parametrize("space", [b"", UNUSED])
def test_a_segment_ends_where_its_records_do(space: bytes) -> None:
    reader, versions = read(commit(11), commit(12), space)
    assert (versions, reader.version, reader.torn) == ([11, 12], 12, None)
    assert reader.end == HEADER_BYTES + len(commit(11)) * 2


def test_an_empty_segment_has_the_version_before_it() -> None:
    reader, versions = read(UNUSED)
    assert (versions, reader.version, reader.ceiling, reader.clean) == ([], 10, 10, False)


def test_groups_of_several_commits_count_as_many() -> None:
    assert read(commit(11, count=3), commit(14))[0].version == 14


def test_a_torn_tail_is_reported_with_its_place() -> None:
    reader, versions = read(commit(11), commit(12)[:-1], UNUSED)
    torn = reader.torn
    assert torn is not None
    assert (versions, torn.path, torn.version) == ([11], "/data/0000000001.log", 11)
    assert (torn.offset, torn.bytes) == (HEADER_BYTES + len(commit(11)), len(commit(12)) - 1)


def test_a_hole_is_torn_if_no_later_record_vouches_for_it() -> None:
    reader, versions = read(commit(11), hole(commit(12)), commit(13, watermark=11), UNUSED)
    assert (versions, reader.version) == ([11], 11)
    assert reader.torn is not None


@pytest.mark.parametrize("bad", [hole(commit(12)), GARBAGE, commit(12)[:-1] + b"?"])
def test_a_hole_is_damage_if_a_later_record_vouches_for_it(bad: bytes) -> None:
    with pytest.raises(Damaged, match="version 12 was on disk and cannot be read") as raised:
        read(commit(11), bad, commit(13, watermark=12), UNUSED)
    assert raised.value.offset == HEADER_BYTES + len(commit(11))


def test_a_mark_vouches_too() -> None:
    with pytest.raises(Damaged, match="version 12 was on disk"):
        read(commit(11), hole(commit(12)), encoded(Mark(12, 0, False)))


def test_a_record_that_vouches_may_stand_much_later_and_between_garbage() -> None:
    with pytest.raises(Damaged, match="version 11 was on disk"):
        read(GARBAGE, commit(12), bytes(1000), GARBAGE, commit(40, watermark=39), GARBAGE, UNUSED)


def test_a_record_within_garbage_or_a_value_of_another_file_vouches_for_nothing() -> None:
    """A client may have stored the bytes of a record: they have another salt."""
    planted = Codec(HEADER.salt + 1).encode(Mark(1000, 1000, False))
    reader, versions = read(commit(11), GARBAGE, planted, GARBAGE, UNUSED)
    assert (versions, reader.torn is not None) == ([11], True)


def test_a_megabyte_after_a_torn_record_is_searched_but_not_byte_by_byte() -> None:
    """That would take seconds; this test counts calls, not time."""
    calls = 0
    sound = Codec.payload_at

    def counting(codec: Codec, data: memoryview, at: int) -> memoryview | None:
        nonlocal calls
        calls += 1
        return sound(codec, data, at)

    Codec.payload_at = counting  # type: ignore[method-assign]
    try:
        with pytest.raises(Damaged):
            read(GARBAGE, b"\x93\xa1" * 500_000, commit(12, watermark=11), bytes(1_000_000))
    finally:
        Codec.payload_at = sound  # type: ignore[method-assign]
    assert calls < 10


def test_zeros_are_unused_space_and_anything_else_is_not() -> None:
    reader, _ = read(commit(11), bytes(50), b"\1", UNUSED)
    assert reader.torn is not None
    assert reader.torn.bytes == 51


# ---------------------------------------------------------------------- zeros at the end


def ends_in_zeros(count: int, version: int = 11, watermark: int = 10) -> bytes:
    """Return a record whose last ``count`` bytes are zeros: those of its last value, or of its clock step."""
    group = Group(version, 0, (None, None, ""), 1, ["k"], [b"v"], step=(0, 0))
    if count > 1:
        # The fields after the values are left out where they are None, which is their default.
        raw = msgspec.msgpack.encode([version, 0, [None, None, ""], 1, ["k"], [bytes(count)]])
        payload = msgspec.msgpack.encode(["c", watermark, [msgspec.Raw(raw)]])
        head = len(payload).to_bytes(4, "little")
        record = head + CODEC._crc(len(payload), payload).to_bytes(4, "little") + payload
    else:
        record = CODEC.encode(Commits(watermark, [group]))
    assert record.endswith(bytes(count))
    return record


@pytest.mark.parametrize("count", [1, 2, 255, 4_096, 5_000, 3 << 20])
@pytest.mark.parametrize("space", [b"", b"\0", bytes(300), bytes(2 << 20)], ids=len)
def test_zeros_at_the_end_of_the_last_record_belong_to_it(count: int, space: bytes) -> None:
    record = ends_in_zeros(count)
    reader, versions = read(record, space)
    assert (versions, reader.version, reader.torn) == ([11], 11, None)
    assert reader.end == HEADER_BYTES + len(record)
    assert reader.size == HEADER_BYTES + len(record) + len(space)


@pytest.mark.parametrize("count", [1, 300, 5_000])
def test_a_record_whose_last_zeros_are_beyond_the_file_is_torn(count: int) -> None:
    reader, versions = read(commit(11), ends_in_zeros(count, 12)[:-1])
    assert (versions, reader.torn is not None) == ([11], True)
    assert reader.size == HEADER_BYTES + len(commit(11)) + len(ends_in_zeros(count, 12)) - 1


@pytest.mark.parametrize("count", [1, 300, 5_000])
def test_a_record_that_vouches_may_end_in_zeros(count: int) -> None:
    with pytest.raises(Damaged, match="version 12 was on disk and cannot be read"):
        read(commit(11), hole(commit(12)), ends_in_zeros(count, 13, watermark=12), UNUSED)


@pytest.mark.parametrize("count", [1, 300, 5_000])
def test_a_hole_before_a_record_that_ends_in_zeros_and_vouches_for_nothing_is_torn(count: int) -> None:
    reader, versions = read(commit(11), hole(commit(12)), ends_in_zeros(count, 13, watermark=11), UNUSED)
    assert (versions, reader.torn is not None) == ([11], True)


def test_a_header_may_end_in_zeros() -> None:
    header = next(
        header
        for header in (Header(salt, 1, 10, 10, b"8 bytes!") for salt in range(1 << 20))
        if header.encode(LOG_MAGIC).endswith(b"\0\0")
    )
    reader, versions = read(UNUSED, header=header)
    assert (versions, reader.header, reader.torn) == ([], header, None)
    with pytest.raises(Damaged, match="the file ends within its header"):
        SegmentReader(MemoryDisk({names.log(1): header.encode(LOG_MAGIC)[:-1]}), 1)


def test_a_segment_of_zeros_has_no_header() -> None:
    with pytest.raises(Damaged, match="does not begin as a file of this kind"):
        SegmentReader(MemoryDisk({names.log(1): bytes(4096)}), 1)


def test_a_length_that_reaches_into_the_zeros_or_beyond_the_file_is_torn() -> None:
    for length in (1, 250, 300, 10**6, 2**32 - 1):
        reader, versions = read(commit(11), length.to_bytes(4, "little"), UNUSED)
        assert (versions, reader.torn is not None) == ([11], True)


@pytest.mark.parametrize("version", [11, 12])
def test_a_record_known_after_damage_may_end_in_zeros(version: int) -> None:
    reader, _ = read(commit(11), GARBAGE, ends_in_zeros(5_000, version + 1, watermark=11), UNUSED)
    assert reader.newest_known() == version + 1


# ---------------------------------------------------------------------- order


@pytest.mark.parametrize("versions", [(12,), (11, 13), (11, 11), (11, 10), (10,)])
def test_versions_that_do_not_follow_each_other_are_damage(versions: tuple[int, ...]) -> None:
    with pytest.raises(Damaged, match="the next version is"):
        read(*(commit(version) for version in versions))


def test_after_a_crash_versions_go_on_above_those_that_clients_may_have_seen() -> None:
    header = Header(99, 1, 500, 10, b"8 bytes!")
    reader, versions = read(commit(501), commit(502), header=header)
    assert (versions, reader.version) == ([501, 502], 502)
    with pytest.raises(Damaged, match="the next version is 11, but should be 501"):
        read(commit(11), header=header)
    with pytest.raises(Damaged, match="the next version is 1001, but should be 502"):
        read(commit(501), commit(1001), header=header)


# ---------------------------------------------------------------------- marks


def test_the_highest_ceiling_counts() -> None:
    reader, _ = read(encoded(Mark(10, 900, False)), encoded(Mark(10, 300, False)), commit(11))
    assert reader.ceiling == 900


def test_after_a_clean_stop_clients_have_seen_only_recorded_versions() -> None:
    reader, _ = read(encoded(Mark(10, 900, False)), commit(11), encoded(Mark(11, 11, True)))
    assert (reader.clean, reader.ceiling) == (True, 11)


def test_a_clean_stop_keeps_the_ceiling_of_an_earlier_run() -> None:
    reader, _ = read(encoded(Mark(10, 10, True)), header=Header(99, 1, 500, 10, b"8 bytes!"))
    assert (reader.clean, reader.ceiling) == (True, 500)


def test_only_the_last_record_makes_a_stop_clean() -> None:
    assert not read(encoded(Mark(10, 10, True)), commit(11))[0].clean
    assert not read(encoded(Mark(10, 10, True)), encoded(Mark(10, 10, False)))[0].clean


def test_data_after_a_clean_stop_is_damage() -> None:
    with pytest.raises(Damaged, match="data after the mark of a clean stop"):
        read(commit(11), encoded(Mark(11, 11, True)), UNUSED, b"?")


# ---------------------------------------------------------------------- headers


def test_a_segment_under_another_number_is_refused() -> None:
    disk = MemoryDisk({names.log(2): HEADER.encode(LOG_MAGIC)})
    with pytest.raises(Damaged, match="its header says that it is segment 1"):
        SegmentReader(disk, 2)


def test_a_record_that_a_faulty_kvd_wrote_is_damage() -> None:
    payload = b"\xa4oops"
    crc = CODEC._crc(len(payload), payload)
    with pytest.raises(Damaged, match="the record's checksum is valid, but it cannot be decoded"):
        read(len(payload).to_bytes(4, "little") + crc.to_bytes(4, "little") + payload)


# ---------------------------------------------------------------------- checkpoints

HEADS = Heads(["a", "b"], [b"1", b"2"], [3, 4])
END = End(2, 10, 77)


def read_checkpoint(*pieces: bytes, number: int = 1) -> tuple[CheckpointReader, list[Heads]]:
    disk = MemoryDisk({names.checkpoint(number): HEADER.encode(CHECKPOINT_MAGIC) + b"".join(pieces)})
    reader = CheckpointReader(disk, number)
    return reader, list(reader)


def test_a_checkpoint_gives_its_pieces_and_its_end() -> None:
    reader, pieces = read_checkpoint(encoded(HEADS), encoded(Heads([], [], [])), encoded(END))
    assert [piece.keys for piece in pieces] == [["a", "b"], []]
    assert reader.end is not None
    assert (reader.end.keys, reader.end.version, reader.end.time) == (2, 10, 77)
    assert reader.size == HEADER_BYTES + sum(map(len, map(encoded, (HEADS, Heads([], [], []), END))))


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([], "the file ends here"),
        ([encoded(HEADS)], "the file ends here"),
        ([encoded(HEADS), encoded(END)[:-1]], "the file ends here"),
        ([encoded(HEADS), UNUSED], "checksum is wrong"),
        ([encoded(HEADS), GARBAGE, encoded(END)], "checksum is wrong"),
        ([encoded(HEADS), encoded(End(3, 10, 77))], "should have 3 keys"),
        ([encoded(HEADS), encoded(END), b"\0"], "end here"),
        ([encoded(Mark(1, 1, True)), encoded(END)], "does not belong in a checkpoint"),
    ],
)
def test_an_incomplete_checkpoint_is_damaged(pieces: list[bytes], reason: str) -> None:
    with pytest.raises(Damaged, match=reason):
        read_checkpoint(*pieces)


def test_a_checkpoint_under_another_number_is_refused() -> None:
    with pytest.raises(Damaged, match="its header says that it is checkpoint 1"):
        read_checkpoint(encoded(END), number=2)


def test_a_segment_is_no_checkpoint() -> None:
    disk = MemoryDisk({names.checkpoint(1): HEADER.encode(LOG_MAGIC)})
    with pytest.raises(Damaged, match="does not begin as a file of this kind"):
        CheckpointReader(disk, 1)
