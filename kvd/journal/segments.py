"""Reading a file of records to its end, and judging the end: all there, torn, or damaged.

A crash may leave the newest records torn, or, since two writes under one sync may reach the disk in either order, a
hole with sound records behind it. That is no loss: nobody was told of them. Damage is something else, and must not be
taken for it. What decides is the *watermark* that each record carries, the newest version that was on disk when it was
written:

        … 41  42  ---  44(watermark 43)      43 was on disk, and is not readable: damage
        … 41  42  ---  44(watermark 42)      43 was never promised: torn; 43 and 44 are cut off

So a bad record is damage exactly if a sound record behind it vouches for a version that is not there. Zeros to the end
of a segment are room that was allocated and not used. What remains undecidable is damage within the very last records,
behind which nothing vouches: it looks like a torn tail. A clean stop ends with a mark, behind which nothing may be
missing.
"""

from collections.abc import Iterator

import msgspec

from kvd.journal import names
from kvd.journal.disk import Disk
from kvd.journal.errors import Damaged
from kvd.journal.records import (
    CHECKPOINT_MAGIC,
    DECODE_ERRORS,
    HEADER_BYTES,
    LOG_MAGIC,
    RECORD_BYTES,
    VOUCHING,
    AnyRecord,
    Codec,
    Commits,
    End,
    Group,
    Header,
    Heads,
    Mark,
    decode,
    decode_header,
)


class TornTail(msgspec.Struct, frozen=True):
    """What a crash left behind the last whole record of a segment."""

    path: str
    offset: int
    bytes: int
    version: int


class SegmentReader:
    """The records of one segment. After the iteration, ``end`` says where they end and ``torn`` what lies behind.

    ``version`` is the newest one that has been read, to begin with the one before this segment.
    """

    def __init__(self, disk: Disk, number: int) -> None:
        name = names.log(number)
        self.path = disk.path(name)
        self._data, self._used = disk.read_sparse(name)  # from _used on there are only zeros
        self.header: Header = decode_header(bytes(self._data[:HEADER_BYTES]), LOG_MAGIC, self.path)
        if self.header.number != number:
            raise Damaged(self.path, 0, f"it says that it is segment {self.header.number}")
        self._codec = Codec(self.header.salt)
        self.version = self.header.watermark
        self.ceiling = self.header.version
        self.end = HEADER_BYTES
        self.clean = False
        self.torn: TornTail | None = None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._data)

    def __iter__(self) -> Iterator[Group]:
        """The groups, in order. Raises Damaged."""
        while (payload := self._codec.payload_at(self._data, self.end)) is not None:
            record = _decoded(payload, self.path, self.end)
            self.clean = isinstance(record, Mark) and record.clean
            if isinstance(record, Commits):
                for group in record.groups:
                    self._check_order(group)
                    yield group
            elif isinstance(record, Mark):
                given = self.header.version if record.clean else self.ceiling
                self.ceiling = max(given, record.ceiling)
            self.end += RECORD_BYTES + len(payload)
        self._judge_the_rest()

    def _check_order(self, group: Group) -> None:
        is_first = self.version == self.header.watermark
        first = 1 + (max(self.version, self.header.version) if is_first else self.version)
        if group.version != first:
            raise Damaged(self.path, self.end, f"it goes on with version {group.version}, not {first}")
        self.version = group.version + group.commits - 1

    def _judge_the_rest(self) -> None:
        rest = self._rest()
        if rest == bytes(len(rest)):
            return
        if self.clean:
            raise Damaged(self.path, self.end, "there is something behind the mark of a clean stop")
        vouched = self._vouched_for(rest)
        if vouched > self.version:
            raise Damaged(self.path, self.end, f"version {self.version + 1} was on disk and cannot be read")
        self.torn = TornTail(self.path, self.end, len(rest.rstrip(b"\0")), self.version)

    def _rest(self) -> bytes:
        """Return what follows the last whole record, without most of the zeros to the end of the segment."""
        return bytes(self._data[self.end : self._used])

    def _vouched_for(self, rest: bytes) -> int:
        """The newest version that a sound record behind the bad one says was on disk. Only looked for after a crash."""
        return max((record.watermark for record in self._sound_behind(rest)), default=0)

    def _sound_behind(self, rest: bytes) -> Iterator[Commits | Mark]:
        for found in VOUCHING.finditer(rest):
            at = self.end + found.start() - RECORD_BYTES
            payload = None if at <= self.end else self._codec.payload_at(self._data, at)
            if payload is not None:
                record = _decoded(payload, self.path, at)
                if isinstance(record, Commits | Mark):
                    yield record

    def newest_known(self) -> int:
        """The newest version that anything speaks of, behind damage too. After the iteration, however that ended."""
        newest = max(self.version, self.header.watermark)
        for record in self._sound_behind(self._rest()):
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
            raise Damaged(self.path, 0, f"it says that it is checkpoint {self.header.number}")
        self._codec = Codec(self.header.salt)
        self.at = HEADER_BYTES  # where the next record is
        self.end: End | None = None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._data)

    def __iter__(self) -> Iterator[Heads]:
        """The pieces. A checkpoint got its name when it was whole: anything amiss raises Damaged."""
        keys = 0
        while self.end is None:
            begin = self.at
            payload = self._codec.payload_at(self._data, begin)
            if payload is None:
                raise Damaged(self.path, begin, "a record's checksum is wrong, or the file ends here")
            record = _decoded(payload, self.path, begin)
            self.at += RECORD_BYTES + len(payload)
            if isinstance(record, Heads):
                keys += len(record.keys)
                yield record
            elif isinstance(record, End):
                self.end = record
            else:
                raise Damaged(self.path, begin, "a record that no checkpoint has")
        if self.end.keys != keys or self.at != len(self._data):
            raise Damaged(self.path, self.at, f"it should have {self.end.keys} keys and end here")


def _decoded(payload: memoryview, path: str, at: int) -> AnyRecord:
    try:
        return decode(payload)
    except DECODE_ERRORS as error:
        raise Damaged(path, at, f"a record with a right checksum that is none: {error}") from None
