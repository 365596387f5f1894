"""A backup: everything at one version, in one file that is written and read as a stream.

It is a checkpoint with its part of the commit log, interleaved in the order in which they were made:

        file   := header piece* end          header and records as in ``records.py``, with a magic of its own
        piece  := commits | heads            the commits since the last piece, or a slice of the keyspace

Slices are taken while writes go on, each at a version of its own. A commit is in the file if it came after the slice
with its keys, and may be there otherwise. So a reader applies all pieces in order, and skips values that are older than
those it has. Only at the end is everything as of the end's version: a file without its end record is not a backup. No
slice stands after a commit that is newer than the slice.
"""

from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from kvd.journal.checking import read_record
from kvd.journal.errors import Damaged
from kvd.journal.records import (
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    RECORD_BYTES,
    AnyRecord,
    Codec,
    Commits,
    End,
    Header,
    Heads,
    decode_header,
)
from kvd.journal.recovery import Target

BACKUP_MAGIC = b"KVDBAK\r\n"
# Above every version: until the end is known, each commit may be older than the loaded values.
_NEVER = 2**63 - 1


class BackupReader:
    """The pieces of a backup, read from any stream. After the iteration, ``end`` is its last record.

    ``path`` is for messages. Raises Damaged, NewerFormat, OSError.
    """

    def __init__(self, stream: BinaryIO, path: str) -> None:
        self.path = path
        self.at = 0  # bytes read
        self._stream = stream
        self.header: Header = decode_header(self._read(HEADER_BYTES), BACKUP_MAGIC, path)
        self._codec = Codec(self.header.salt)
        self.end: End | None = None

    def __iter__(self) -> Iterator[Heads | Commits]:
        """Yield the pieces, in order. Raises Damaged at a damaged piece, and at the end if pieces are missing."""
        while self.end is None:
            begin = self.at
            record = self._record()
            if isinstance(record, Heads | Commits):
                yield record
            elif isinstance(record, End):
                self.end = record
            else:
                raise Damaged(self.path, begin, "this kind of record does not belong in a backup")
        if self._stream.read(1):
            raise Damaged(self.path, self.at, "the file should end here")

    def _record(self) -> AnyRecord:
        begin = self.at
        return read_record(self._payload(begin), self.path, begin)

    def _payload(self, begin: int) -> memoryview:
        head = self._read(RECORD_BYTES)
        length = int.from_bytes(head[:4], "little")
        data = head + (self._read(length) if len(head) == RECORD_BYTES and 0 < length <= MAX_RECORD_BYTES else b"")
        payload = self._codec.payload_at(memoryview(data), 0)
        if payload is None:
            ends = len(head) < RECORD_BYTES or 0 < length > len(data) - RECORD_BYTES
            reason = "the file ends here, before the backup does" if ends else "a record's checksum is wrong"
            raise Damaged(self.path, begin, reason)
        return payload

    def _read(self, size: int) -> bytes:
        """Read ``size`` bytes, fewer at the end of the stream. A wrong size takes no extra memory."""
        parts = bytearray()
        while len(parts) < size and (part := self._stream.read(min(size - len(parts), 1 << 20))):
            parts += part
        self.at += len(parts)
        return bytes(parts)


class CountingTarget(Target, Protocol):
    """A target of a recovery that knows how many keys it has."""

    def count_keys(self) -> int:
        """Return the number of keys that have a value."""


def load_backup(reader: BackupReader, target: CountingTarget, progress: Callable[[int], None]) -> None:
    """Fill an empty target with a backup; ``progress`` is called with the number of bytes that have been read.

    Raises Damaged, NewerFormat, OSError; then the target must not be used.
    """
    newest = 0
    target.end_of_load(_NEVER, 0)
    for piece in reader:
        if isinstance(piece, Heads):
            newest = max(newest, max(piece.versions, default=0))
            target.load(piece.keys, piece.values, piece.versions, piece.deadlines, piece.ephemeral, piece.wall)
        else:
            for group in piece.groups:
                newest = max(newest, group.version + group.commits - 1)
                target.replay(group)
        progress(reader.at)
    assert reader.end is not None
    keys = target.count_keys()
    if keys != reader.end.keys:
        raise Damaged(reader.path, reader.at, f"it should have {reader.end.keys} keys, but has {keys}")
    if newest > reader.end.version:
        text = f"it ends at version {reader.end.version}, but has a commit of version {newest}"
        raise Damaged(reader.path, reader.at, text)
    target.end_of_load(reader.end.version, reader.end.time)
    target.end_of_replay(reader.end.version)
