"""The bytes of the commit log and of checkpoints: a header, then records, each with its checksum.

        file    := header record*                       (a log segment may have zeros after its last record)
        header  := magic[8] format:u32 salt:u64 number:u64 version:u64 watermark:u64 store_id[8] crc:u32   = 56 bytes
        record  := length:u32 crc:u32 payload[length]   length ≥ 1
        payload := a MessagePack array, one of the structs below, its first element their tag

Numbers are little-endian. A record's checksum is CRC-32 over salt, length and payload. The salt is random for each
file. So a well-formed record that a client planted in a value, or one of an earlier file in a recycled block, is not
taken for a record of this file. And because the checksum covers the length, a block of zeros is not a record. The
checksum detects accidents, not forgery.

``watermark`` is the newest version that was known to be on disk when the record was written. It distinguishes a torn
tail from damage: a bad record is damage if a later record vouches for it (``segments.py``).
"""

import re
import struct
from binascii import crc32
from typing import Any

import msgspec

from kvd.journal.errors import Damaged, NewerFormat

FORMAT = 2
LOG_MAGIC = b"KVDLOG\r\n"
CHECKPOINT_MAGIC = b"KVDCKP\r\n"
_HEADER = struct.Struct("<8sIQQQQ8s")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
_RECORD = struct.Struct("<II")
RECORD_BYTES = _RECORD.size
# No commit gets a later version.
MAX_VERSION = 2**62
# No record is longer: a commit's frame has at most 256 MiB, and its keys and values make up most of its record.
MAX_RECORD_BYTES = 1 << 30


class Record(msgspec.Struct, array_like=True, tag=True, gc=False, eq=False):
    """A payload of a record."""


class Group(msgspec.Struct, array_like=True, gc=False, eq=False):
    """Commits made together, by one author at one time.

    ``commits`` is 1 (all keys under ``version``), or the number of keys, each under the next version. A value of None
    is a deletion. ``deadlines`` are wall-clock µs since the epoch. ``ephemeral`` keys are deleted when a connection
    closes, and so they do not survive the daemon. ``ids`` are ``[scope, id, version, answer]`` of the commits that
    carried one. ``wall`` is the time of the wall clock at the commit, if there are deadlines; ``time`` may be ahead of
    it by a second. ``keeps``: the keys keep the values that they have, and ``values`` is empty. ``step``: the clock
    was set before this commit, as ``[offset, by]``: the offset as in a Clock, and how far the clock was set, in µs.
    """

    version: int
    time: int
    author: tuple[int | None, int | None, str]
    commits: int
    keys: list[str]
    values: list[bytes | None]
    deadlines: dict[str, int] | None = None
    ephemeral: list[str] | None = None
    ids: list[tuple[int | None, bytes, int, Any]] | None = None
    wall: int | None = None
    keeps: bool = False
    step: tuple[int, int] | None = None


class Commits(Record, tag="c"):
    """Groups that are written together, in order: all of them are on the disk, or none."""

    watermark: int
    groups: list[Group]


class Mark(Record, tag="m"):
    """Facts beside commits: clients may have seen versions up to ``ceiling``; ``clean``: nothing follows."""

    watermark: int
    ceiling: int
    clean: bool


class Successor(Record, tag="n"):
    """The segment with this number has been begun after this one, and must be there."""

    watermark: int
    number: int


class Clock(Record, tag="t"):
    """How the wall clock went when the segment was begun, so that a later start notices that it was set meanwhile.

    ``offset`` is the wall clock's time minus the time since the boot that ``boot`` identifies, in µs. ``steps`` are the
    times at which the clock was set, as ``[version before, time after, by]``, oldest first.
    """

    boot: bytes
    offset: int
    steps: list[tuple[int, int, int]]


class Heads(Record, tag="h"):
    """A piece of a checkpoint: current values with their versions. ``wall`` is as in a Group."""

    keys: list[str]
    values: list[bytes]
    versions: list[int]
    deadlines: dict[str, int] | None = None
    ephemeral: list[str] | None = None
    wall: int | None = None


class End(Record, tag="e"):
    """The last record of a checkpoint: its number of keys, and the version and time at which it ended."""

    keys: int
    version: int
    time: int


# The beginning of the payload of a record with a watermark: an array of three or four elements, and the tag.
VOUCHING = re.compile(rb"\x93\xa1[cn]|\x94\xa1m")

AnyRecord = Commits | Mark | Successor | Clock | Heads | End
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder[AnyRecord](AnyRecord).decode
DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Header(msgspec.Struct, frozen=True):
    """The header of a file. ``version`` is the newest one before this file; ``number`` orders the files."""

    salt: int
    number: int
    version: int
    watermark: int
    store_id: bytes

    def encode(self, magic: bytes) -> bytes:
        """Return the bytes of the header."""
        data = _HEADER.pack(magic, FORMAT, self.salt, self.number, self.version, self.watermark, self.store_id)
        return data + _CRC.pack(crc32(data))


def decode_header(data: bytes, magic: bytes, path: str) -> Header:
    """Return the header at the beginning of ``data``. Raises Damaged, NewerFormat."""
    if len(data) < HEADER_BYTES:
        raise Damaged(path, len(data), "the file ends within its header")
    found, format_, salt, number, version, watermark, store_id = _HEADER.unpack_from(data)
    if found != magic:
        raise Damaged(path, 0, "it does not begin as a file of this kind")
    if _CRC.unpack_from(data, _HEADER.size)[0] != crc32(data[: _HEADER.size]):
        raise Damaged(path, 0, "the header's checksum is wrong")
    if format_ > FORMAT:
        raise NewerFormat(path, format_, FORMAT)
    if not watermark <= version <= MAX_VERSION:
        raise Damaged(path, 0, f"its header has the versions {watermark} and {version}")
    return Header(salt, number, version, watermark, store_id)


class Codec:
    """Encodes and decodes the records of one file, which has a salt of its own."""

    __slots__ = ("_seed",)

    def __init__(self, salt: int) -> None:
        self._seed = crc32(salt.to_bytes(8, "little"))

    def encode(self, record: Record) -> bytes:
        """Return the bytes of a record."""
        payload = _encode(record)
        length = len(payload)
        # The checksum as _crc computes it, with one call less.
        crc = crc32(payload, crc32(length.to_bytes(4, "little"), self._seed))
        return _RECORD.pack(length, crc) + payload

    def payload_at(self, data: memoryview, at: int) -> memoryview | None:
        """Return the payload of a complete, sound record at ``at``; None if there is none."""
        if at + RECORD_BYTES > len(data):
            return None
        length, crc = _RECORD.unpack_from(data, at)
        end = at + RECORD_BYTES + length
        if not 0 < length <= MAX_RECORD_BYTES or end > len(data):
            return None
        payload = data[at + RECORD_BYTES : end]
        return payload if self._crc(length, payload) == crc else None

    def _crc(self, length: int, payload: bytes | memoryview) -> int:
        return crc32(payload, crc32(length.to_bytes(4, "little"), self._seed))


def decode(payload: memoryview) -> AnyRecord:
    """Decode a sound payload. Raises one of DECODE_ERRORS if a faulty kvd wrote it."""
    record: AnyRecord = _decode(payload)
    return record
