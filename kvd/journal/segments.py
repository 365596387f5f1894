"""How a file of records is read to its end, and the end classified: complete, torn, or damaged.

A crash may leave the newest records torn. Or it leaves a hole with sound records after it, because two writes under one
sync may reach the disk in either order. Neither is a loss, because these records were never promised to be durable.
Damage is a loss, and must not be taken for a torn tail. The *watermark* of each record decides, the newest version that
was on disk when the record was written:

        … 41  42  ---  44(watermark 43)      43 was on disk, and cannot be read: damage
        … 41  42  ---  44(watermark 42)      43 was never promised: torn; 43 and 44 are cut off

So a bad record is damage exactly if a sound record after it vouches for a version that is missing. Zeros up to the end
of a segment are space that was allocated and not used; the last record may end in zeros, too. Damage to the very last
records, after which no record vouches for them, cannot be told from a torn tail. A clean stop ends with a mark, after
which nothing may follow, but the number of the next segment: it is noted once that one is on the disk. A crash may tear
this note. So a few torn bytes at the end of a segment are no damage if the next segment is there, because that one says
which version it continues.
"""

from collections.abc import Iterator

import msgspec

from kvd.journal import names
from kvd.journal.checking import read_record
from kvd.journal.disk import Disk
from kvd.journal.errors import Damaged
from kvd.journal.records import (
    CHECKPOINT_MAGIC,
    HEADER_BYTES,
    LOG_MAGIC,
    RECORD_BYTES,
    VOUCHING,
    Clock,
    Codec,
    Commits,
    End,
    Group,
    Header,
    Heads,
    Mark,
    Successor,
    decode_header,
)

# The most that the last mark and the note of the next segment take, at the end of a segment.
MAX_NOTE_BYTES = 64


class TornTail(msgspec.Struct, frozen=True):
    """What a crash left after the last complete record of a segment."""

    path: str
    offset: int
    bytes: int
    version: int


class SegmentReader:
    """The records of one segment. After the iteration, ``end`` is where they end, and ``torn`` what follows them.

    ``version`` is the newest one that has been read; before the iteration, the last one before this segment.
    ``is_last``: no later segment exists.
    """

    def __init__(self, disk: Disk, number: int, *, is_last: bool = True) -> None:
        name = names.log(number)
        self._is_last = is_last
        self.path = disk.path(name)
        self._data, self._used = disk.read_sparse(name)  # from _used on there are only zeros
        self.header: Header = decode_header(bytes(self._data[:HEADER_BYTES]), LOG_MAGIC, self.path)
        if self.header.number != number:
            raise Damaged(self.path, 0, f"its header says that it is segment {self.header.number}")
        self._codec = Codec(self.header.salt)
        self.version = self.header.watermark
        self.ceiling = self.header.version
        self.end = HEADER_BYTES
        self.clean = False
        self.successor = 0  # the number of the next segment, if it was begun and that could be noted
        self.torn: TornTail | None = None

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return len(self._data)

    def __iter__(self) -> Iterator[Group | Clock]:
        """Yield the groups, and what is known of the clock, in order. Raises Damaged."""
        while (payload := self._codec.payload_at(self._data, self.end)) is not None:
            record = read_record(payload, self.path, self.end)
            self.clean = isinstance(record, Mark) and record.clean
            if isinstance(record, Commits):
                for group in record.groups:
                    self._check_order(group)
                    yield group
            elif isinstance(record, Mark):
                ceiling = self.header.version if record.clean else self.ceiling
                self.ceiling = max(ceiling, record.ceiling)
            elif isinstance(record, Clock):
                yield record
            elif isinstance(record, Successor):
                self.successor = record.number
            self.end += RECORD_BYTES + len(payload)
        self._classify_tail()

    def _check_order(self, group: Group) -> None:
        is_first = self.version == self.header.watermark
        first = 1 + (max(self.version, self.header.version) if is_first else self.version)
        if group.version != first:
            raise Damaged(self.path, self.end, f"the next version is {group.version}, but should be {first}")
        self.version = group.version + group.commits - 1

    def _classify_tail(self) -> None:
        tail = self._tail()
        if tail == bytes(len(tail)):
            return
        if not self._is_last and self._is_torn_note(tail):
            return
        if self.clean:
            raise Damaged(self.path, self.end, "there is data after the mark of a clean stop")
        vouched = self._vouched_for(tail)
        if vouched > self.version:
            raise Damaged(self.path, self.end, f"version {self.version + 1} was on disk and cannot be read")
        self.torn = TornTail(self.path, self.end, len(tail.rstrip(b"\0")), self.version)

    def _is_torn_note(self, tail: bytes) -> bool:
        """Whether this may be the last mark and the note of the next segment, which are not needed any more.

        That the commits before them are complete, the next segment says.
        """
        if len(tail.rstrip(b"\0")) > MAX_NOTE_BYTES:
            return False
        return not any(isinstance(record, Commits) for record in self._sound_records(tail))

    def _tail(self) -> bytes:
        """Return what follows the last complete record, without most of the zeros up to the end of the segment."""
        return bytes(self._data[self.end : self._used])

    def _vouched_for(self, tail: bytes) -> int:
        """Return the newest version that a sound record after the bad one vouches for. Only needed after a crash."""
        return max((record.watermark for record in self._sound_records(tail)), default=0)

    def _sound_records(self, tail: bytes) -> Iterator[Commits | Mark | Successor]:
        for match in VOUCHING.finditer(tail):
            at = self.end + match.start() - RECORD_BYTES
            payload = None if at <= self.end else self._codec.payload_at(self._data, at)
            if payload is not None:
                record = read_record(payload, self.path, at)
                if isinstance(record, Commits | Mark | Successor):
                    yield record

    def newest_known(self) -> int:
        """Return the newest version in any sound record, after damage too. Call this after the iteration."""
        newest = max(self.version, self.header.watermark)
        for record in self._sound_records(self._tail()):
            groups = record.groups if isinstance(record, Commits) else []
            newest = max(newest, record.watermark, *(group.version + group.commits - 1 for group in groups))
        return newest


class CheckpointReader:
    """The pieces of one checkpoint; after the iteration, ``end`` is its last record."""

    def __init__(self, disk: Disk, number: int) -> None:
        name = names.checkpoint(number)
        self.path = disk.path(name)
        self._data = memoryview(disk.read(name))
        self.header: Header = decode_header(bytes(self._data[:HEADER_BYTES]), CHECKPOINT_MAGIC, self.path)
        if self.header.number != number:
            raise Damaged(self.path, 0, f"its header says that it is checkpoint {self.header.number}")
        self._codec = Codec(self.header.salt)
        self.at = HEADER_BYTES  # the offset of the next record
        self.end: End | None = None

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return len(self._data)

    def __iter__(self) -> Iterator[Heads]:
        """Yield the pieces. A checkpoint gets its name when it is complete, so any fault raises Damaged."""
        keys = newest = 0
        while self.end is None:
            begin = self.at
            payload = self._codec.payload_at(self._data, begin)
            if payload is None:
                raise Damaged(self.path, begin, "a record's checksum is wrong, or the file ends here")
            record = read_record(payload, self.path, begin)
            self.at += RECORD_BYTES + len(payload)
            if isinstance(record, Heads):
                keys += len(record.keys)
                newest = max(newest, max(record.versions, default=0))
                yield record
            elif isinstance(record, End):
                self.end = record
            else:
                raise Damaged(self.path, begin, "this kind of record does not belong in a checkpoint")
        if self.end.keys != keys or self.at != len(self._data):
            raise Damaged(self.path, self.at, f"it should have {self.end.keys} keys, and end here")
        if newest > self.end.version:
            raise Damaged(self.path, self.at, f"it ends at version {self.end.version}, but has a value of {newest}")
