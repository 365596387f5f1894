"""The bytes of records and headers: they decode as they were encoded, and nothing else is taken for one."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvd.journal import records
from kvd.journal.commit_log import ID_BYTES, MARK_BYTES
from kvd.journal.errors import Damaged, NewerFormat
from kvd.journal.records import (
    CHECKPOINT_MAGIC,
    DECODE_ERRORS,
    HEADER_BYTES,
    LOG_MAGIC,
    MAX_VERSION,
    RECORD_BYTES,
    VOUCHING,
    Codec,
    Commits,
    End,
    Group,
    Header,
    Heads,
    Mark,
    Record,
    decode,
    decode_header,
)

LARGEST = 2**64 - 1
HEADER = Header(LARGEST, 7, 41, 40, b"8 bytes!")
CODEC = Codec(HEADER.salt)
numbers = st.integers(0, LARGEST)
keys = st.text(max_size=8)
deadlines = st.none() | st.dictionaries(keys, numbers, max_size=3)
groups = st.builds(
    Group,
    version=numbers,
    time=numbers,
    author=st.tuples(st.none() | numbers, st.none() | numbers, keys),
    commits=numbers,
    keys=st.lists(keys, max_size=3),
    values=st.lists(st.none() | st.binary(max_size=9), max_size=3),
    deadlines=deadlines,
    ephemeral=st.none() | st.lists(keys, max_size=3),
    ids=st.none() | st.lists(st.tuples(st.none() | numbers, st.binary(max_size=16), numbers, numbers), max_size=3),
)
all_records = st.one_of(
    st.builds(Commits, watermark=numbers, groups=st.lists(groups, max_size=3)),
    st.builds(Mark, watermark=numbers, ceiling=numbers, clean=st.booleans()),
    st.builds(
        Heads,
        keys=st.lists(keys, max_size=3),
        values=st.lists(st.binary(max_size=9), max_size=3),
        versions=st.lists(numbers, max_size=3),
        deadlines=deadlines,
        ephemeral=st.none() | st.lists(keys, max_size=3),
    ),
    st.builds(End, keys=numbers, version=numbers, time=numbers),
)


def payload_of(data: bytes, at: int = 0) -> memoryview | None:
    return CODEC.payload_at(memoryview(data), at)


@given(all_records, st.binary(max_size=20), st.binary(max_size=20))
def test_a_record_is_decoded_as_it_was_encoded_wherever_it_stands(record: Record, before: bytes, after: bytes) -> None:
    encoded = CODEC.encode(record)
    payload = payload_of(before + encoded + after, len(before))
    assert payload is not None
    assert len(payload) == len(encoded) - RECORD_BYTES
    assert repr(decode(payload)) == repr(record)


@pytest.mark.parametrize("record", [Commits(3, []), Commits(LARGEST, []), Mark(0, 0, False), Mark(LARGEST, 9, True)])
def test_a_search_for_records_that_vouch_finds_them(record: Record) -> None:
    found = VOUCHING.search(CODEC.encode(record))
    assert found is not None
    assert found.start() == RECORD_BYTES


def test_a_mark_fits_into_the_space_that_is_kept_for_it() -> None:
    assert len(CODEC.encode(Mark(LARGEST, LARGEST, True))) <= MARK_BYTES


def test_an_id_fits_into_the_space_that_is_reserved_for_it() -> None:
    entry = (LARGEST, b"i" * 16, LARGEST, (-(2**63), LARGEST))
    assert len(msgspec.msgpack.encode(entry)) < ID_BYTES


def test_every_changed_byte_is_noticed() -> None:
    encoded = CODEC.encode(Commits(5, [Group(6, 7, (1, 2, "me"), 1, ["key"], [b"value"])]))
    for at in range(len(encoded)):
        for other in {1, 0x80, 0xFF}:
            changed = bytearray(encoded)
            changed[at] ^= other
            assert payload_of(bytes(changed)) is None
            assert payload_of(bytes(changed) + bytes(300)) is None


@pytest.mark.parametrize("size", [0, 1, RECORD_BYTES - 1, RECORD_BYTES, RECORD_BYTES + 1])
def test_a_truncated_record_is_not_read(size: int) -> None:
    encoded = CODEC.encode(Mark(1, 2, False))
    assert payload_of(encoded[:size]) is None
    assert payload_of(encoded[:-1]) is None
    assert payload_of(encoded, 1) is None


def test_zeros_are_not_a_record() -> None:
    """With any salt: a length of 0 is never a record."""
    for salt in (0, 1, LARGEST):
        assert Codec(salt).payload_at(memoryview(bytes(64)), 0) is None


def test_an_empty_record_with_a_valid_checksum_is_not_read() -> None:
    crc = CODEC._crc(0, b"")
    assert payload_of(bytes(4) + crc.to_bytes(4, "little") + bytes(16)) is None


def test_a_record_with_a_length_above_the_bound_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = CODEC.encode(Mark(1, 2, False))
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", len(encoded) - RECORD_BYTES)
    assert payload_of(encoded) is not None
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", len(encoded) - RECORD_BYTES - 1)
    assert payload_of(encoded) is None


@given(numbers, numbers)
def test_a_record_of_another_file_is_not_read(salt: int, other: int) -> None:
    """The salt excludes a record that a client planted in a value, or that an earlier file left in a block."""
    encoded = Codec(salt).encode(Mark(1, 2, False))
    assert (Codec(other).payload_at(memoryview(encoded), 0) is None) == (salt != other)


@pytest.mark.parametrize(
    "payload",
    [b"\xc0", b"\x93\xa1x\x01\x90", b"\x92\xa1c\x01", b"\x93\xa1c\x01\xa0", b"\x91", b"\x94\xa1m\x01\x02\x03", b"\xc1"],
)
def test_a_sound_payload_that_is_not_a_record_raises_a_known_error(payload: bytes) -> None:
    with pytest.raises(DECODE_ERRORS):
        decode(memoryview(payload))


def test_a_key_that_is_not_text_raises_a_known_error() -> None:
    encoded = msgspec.msgpack.encode(Heads(["??"], [b""], [1]))
    with pytest.raises(DECODE_ERRORS):
        decode(memoryview(encoded.replace(b"??", b"\xff\xff")))


# ---------------------------------------------------------------------- headers


@given(
    st.tuples(st.integers(0, MAX_VERSION), st.integers(0, MAX_VERSION)).flatmap(
        lambda two: st.builds(
            Header, numbers, numbers, st.just(max(two)), st.just(min(two)), st.binary(min_size=8, max_size=8)
        )
    )
)
@pytest.mark.parametrize("magic", [LOG_MAGIC, CHECKPOINT_MAGIC])
def test_a_header_is_decoded_as_it_was_encoded(magic: bytes, header: Header) -> None:
    data = header.encode(magic)
    assert len(data) == HEADER_BYTES
    assert decode_header(data, magic, "path") == header
    assert decode_header(data + b"more", magic, "path") == header


def test_every_changed_byte_of_a_header_is_noticed() -> None:
    data = HEADER.encode(LOG_MAGIC)
    for at in range(HEADER_BYTES):
        changed = bytearray(data)
        changed[at] ^= 0x10
        with pytest.raises(Damaged, match="path is damaged at byte 0"):
            decode_header(bytes(changed), LOG_MAGIC, "path")


@pytest.mark.parametrize("size", range(HEADER_BYTES))
def test_a_truncated_header_is_damage_at_its_end(size: int) -> None:
    with pytest.raises(Damaged) as raised:
        decode_header(HEADER.encode(LOG_MAGIC)[:size], LOG_MAGIC, "path")
    assert (raised.value.path, raised.value.offset) == ("path", size)


def test_the_header_of_another_kind_of_file_is_refused() -> None:
    with pytest.raises(Damaged, match="does not begin as a file of this kind"):
        decode_header(HEADER.encode(CHECKPOINT_MAGIC), LOG_MAGIC, "path")


def test_a_newer_format_is_refused_and_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "FORMAT", 2)
    data = HEADER.encode(LOG_MAGIC)
    assert decode_header(data, LOG_MAGIC, "path") == HEADER
    monkeypatch.setattr(records, "FORMAT", 1)
    with pytest.raises(NewerFormat, match="path has format 2; this kvd reads formats up to 1: start a newer one"):
        decode_header(data, LOG_MAGIC, "path")
