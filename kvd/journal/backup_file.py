"""A backup: everything at one version, in one file that can be told and read from the first byte to the last.

It is a checkpoint with its piece of the commit log, the two side by side as they came to be:

        file   := header piece* end          header and records as in ``records.py``, with a magic of its own
        piece  := commits | heads            what was committed since the last piece, or a slice of the keyspace

Slices are taken while writes go on, each at a version of its own; a commit is there if it came behind the slice that
has its keys, and perhaps if it did not. So whoever reads it applies every piece in order, passing over what is older
than what is there already. At the end everything is as of the end's version, and not before: a file without its end
record is none. No slice stands behind a commit that came after it.
"""

from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from kvd.journal.errors import Damaged
from kvd.journal.records import (
    DECODE_ERRORS,
    HEADER_BYTES,
    MAX_RECORD_BYTES,
    RECORD_BYTES,
    AnyRecord,
    Codec,
    Commits,
    End,
    Header,
    Heads,
    decode,
    decode_header,
)
from kvd.journal.recovery import Target

BACKUP_MAGIC = b"KVDBAK\r\n"
# Above every version: until the end is known, all that comes may be older than what is there.
_NEVER = 2**63 - 1


class BackupReader:
    """The pieces of a backup, out of any stream. After the iteration, ``end`` is its last record.

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
        """The pieces, in order. Raises Damaged where one is not whole, and at the end if it is not all."""
        while self.end is None:
            begin = self.at
            record = self._record()
            if isinstance(record, Heads | Commits):
                yield record
            elif isinstance(record, End):
                self.end = record
            else:
                raise Damaged(self.path, begin, "a record that no backup has")
        if self._stream.read(1):
            raise Damaged(self.path, self.at, "it should end here")

    def _record(self) -> AnyRecord:
        begin = self.at
        try:
            return decode(self._payload(begin))
        except DECODE_ERRORS as error:
            raise Damaged(self.path, begin, f"a record with a right checksum that is none: {error}") from None

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
        """So many bytes, fewer at the end of the stream. A wrong length costs no more memory than there is to read."""
        parts = bytearray()
        while len(parts) < size and (part := self._stream.read(min(size - len(parts), 1 << 20))):
            parts += part
        self.at += len(parts)
        return bytes(parts)


class CountingTarget(Target, Protocol):
    """A target of a recovery that knows how many keys it has."""

    def count_keys(self) -> int:
        """How many keys have a value."""


def load_backup(reader: BackupReader, target: CountingTarget, progress: Callable[[int], None]) -> None:
    """Fill an empty target with a backup; ``progress`` is called with the number of bytes that have been read.

    Raises Damaged, NewerFormat, OSError; then the target is of no use.
    """
    target.end_of_load(_NEVER, 0)
    for piece in reader:
        if isinstance(piece, Heads):
            target.load(piece.keys, piece.values, piece.versions, piece.deadlines, piece.ephemeral, piece.wall)
        else:
            for group in piece.groups:
                target.replay(group)
        progress(reader.at)
    assert reader.end is not None
    keys = target.count_keys()
    if keys != reader.end.keys:
        raise Damaged(reader.path, reader.at, f"it should have {reader.end.keys} keys, and has {keys}")
    target.end_of_load(reader.end.version, reader.end.time)
    target.end_of_replay(reader.end.version)
