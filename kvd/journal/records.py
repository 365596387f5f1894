"""The bytes of the commit log and of checkpoints: a header, then records, each with its checksum.

        file    := header record*                       (a log segment may have zeros behind its last record)
        header  := magic[8] format:u32 salt:u64 number:u64 version:u64 watermark:u64 store_id[8] crc:u32   = 56 bytes
        record  := length:u32 crc:u32 payload[length]   length ≥ 1
        payload := a MessagePack array, one of the structs below, its first element their tag

Numbers are little-endian. A record's checksum is CRC-32 over salt, length and payload: the salt, random for each
file, keeps a well-formed record that somebody planted in a value, or one of an earlier file in a recycled block, from
passing for one of this file; and since the length is part of it, a block of zeros is no record. It tells accidents,
not forgery.

``watermark`` is the newest version that was known to be on disk when the record was written. It tells a torn tail
from damage: what comes behind a bad record and vouches for it makes it damage (``recovery.py``).
"""

import re
import struct
from binascii import crc32
from typing import Any

import msgspec

from kvd.journal.errors import Damaged, NewerFormat

FORMAT = 1
LOG_MAGIC = b"KVDLOG\r\n"
CHECKPOINT_MAGIC = b"KVDCKP\r\n"
_HEADER = struct.Struct("<8sIQQQQ8s")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
_RECORD = struct.Struct("<II")
RECORD_BYTES = _RECORD.size
# No record is longer: a commit's frame has at most 256 MiB, and its keys and values come on top of little.
MAX_RECORD_BYTES = 1 << 30


class Record(msgspec.Struct, array_like=True, tag=True, gc=False, eq=False):
    """A payload."""


class Group(msgspec.Struct, array_like=True, gc=False, eq=False):
    """Commits made together, by one author at one time.

    ``commits`` is 1 (all keys under ``version``), or as many as keys, each under the next version. A value of None is a
    deletion. ``deadlines`` are wall-clock µs since the epoch; ``ephemeral`` keys die with a connection, and so with the
    server. ``ids`` are ``[scope, id, version, answer]`` of the commits that carried one. ``wall``: what the wall clock
    said then, if there are deadlines; ``time``, which never goes back, may be ahead of it once it was set back.
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


class Commits(Record, tag="c"):
    """Groups that are written together, in order: all are there, or none."""

    watermark: int
    groups: list[Group]


class Mark(Record, tag="m"):
    """What is known beside commits: versions below ``ceiling`` may have been given away; ``clean``: nothing follows."""

    watermark: int
    ceiling: int
    clean: bool


class Heads(Record, tag="h"):
    """A piece of a checkpoint: current values with their versions. ``wall`` as in a Group."""

    keys: list[str]
    values: list[bytes]
    versions: list[int]
    deadlines: dict[str, int] | None = None
    ephemeral: list[str] | None = None
    wall: int | None = None


class End(Record, tag="e"):
    """The last record of a checkpoint: how many keys it has, and the version and time it was finished at."""

    keys: int
    version: int
    time: int


# How the payload of a record with a watermark begins: an array of three or four, and the tag.
VOUCHING = re.compile(rb"\x93\xa1c|\x94\xa1m")

AnyRecord = Commits | Mark | Heads | End
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder[AnyRecord](AnyRecord).decode
DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError)


class Header(msgspec.Struct, frozen=True):
    """The head of a file. ``version``: the newest one before this file; ``number`` orders the files."""

    salt: int
    number: int
    version: int
    watermark: int
    store_id: bytes

    def encode(self, magic: bytes) -> bytes:
        """As it stands on disk."""
        data = _HEADER.pack(magic, FORMAT, self.salt, self.number, self.version, self.watermark, self.store_id)
        return data + _CRC.pack(crc32(data))


def decode_header(data: bytes, magic: bytes, path: str) -> Header:
    """The header at the beginning of ``data``. Raises Damaged, NewerFormat."""
    if len(data) < HEADER_BYTES:
        raise Damaged(path, len(data), "the file ends within its header")
    found, format_, salt, number, version, watermark, store_id = _HEADER.unpack_from(data)
    if found != magic:
        raise Damaged(path, 0, "this is not a file of its kind")
    if _CRC.unpack_from(data, _HEADER.size)[0] != crc32(data[: _HEADER.size]):
        raise Damaged(path, 0, "the header's checksum is wrong")
    if format_ > FORMAT:
        raise NewerFormat(path, format_, FORMAT)
    return Header(salt, number, version, watermark, store_id)


class Codec:
    """Records of one file: the salt is its own."""

    __slots__ = ("_seed",)

    def __init__(self, salt: int) -> None:
        self._seed = crc32(salt.to_bytes(8, "little"))

    def encode(self, record: Record) -> bytes:
        """A record as it stands on disk."""
        payload = _encode(record)
        length = len(payload)
        # The checksum as _crc computes it, with one call less.
        crc = crc32(payload, crc32(length.to_bytes(4, "little"), self._seed))
        return _RECORD.pack(length, crc) + payload

    def payload_at(self, data: memoryview, at: int) -> memoryview | None:
        """The payload of a whole, sound record at ``at``; None if there is none."""
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
    """A sound payload as its struct. Raises one of DECODE_ERRORS: then a faulty kvd wrote it."""
    record: AnyRecord = _decode(payload)
    return record
