"""The commit log: where every commit goes before anybody hears of it.

The event loop *adds* groups of commits; a worker thread *writes* whatever has been added meanwhile, in one write and
one sync. So one sync serves all commits that came while the last one ran (group commit):

        loop     add add ─ take ──── add add add ─── take ──── add …
        worker            write, sync ───────────────│ write, sync ──
                                     └▶ written, synced: replies may leave

Room is reserved before a commit is applied, so that a full disk refuses it and can never lose it: the next segment is
allocated ahead, under an unfinished name. A segment that is full is synced before anything goes to the next one, so
only the last can have a torn tail.
"""

import errno
from collections.abc import Callable, Iterator
from threading import Lock

import msgspec

from kvd.journal import names
from kvd.journal.disk import Disk
from kvd.journal.errors import NoSpace
from kvd.journal.records import HEADER_BYTES, LOG_MAGIC, Codec, Commits, Group, Header, Mark, Record

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What a group takes beside its keys and values, with a record of its own, and each key and each id, at most.
GROUP_BYTES = 320
# Groups share a record, up to about so many bytes.
COMMITS_BYTES = 256 * 1024
KEY_BYTES = 48
ID_BYTES = 128


class Segment(msgspec.Struct, eq=False):
    """The file that is written to; ``at`` is where the next record goes."""

    number: int
    descriptor: int
    codec: Codec
    at: int
    size: int

    @property
    def room(self) -> int:
        """How many bytes still fit."""
        return self.size - self.at


class Batch(msgspec.Struct, eq=False):
    """What is written in one go. ``version`` is the newest in it; ``sizes`` is what was reserved for each group."""

    groups: list[Group]
    sizes: list[int]
    version: int


class CommitLog:
    """One log, open for writing. ``salt`` gives a random number of 64 bits."""

    def __init__(self, disk: Disk, header: Header, segment_bytes: int, salt: Callable[[], int]) -> None:
        self._disk = disk
        self._store_id = header.store_id
        self._segment_bytes = segment_bytes
        self._salt = salt
        self._lock = Lock()  # over the spare
        self._spare: tuple[int, int] | None = None  # descriptor and size
        self._pending: list[Group] = []
        self._sizes: list[int] = []
        self._outstanding_bytes = 0  # reserved and not yet written
        self.added = self.written = self.synced = header.watermark
        self.bytes = 0  # written since it was opened
        # Versions up to here may be given away before they are on the disk: after a crash the next goes behind it.
        self.ceiling = 0
        self._spare = self._new_spare(header.number, segment_bytes)
        self._segment = self._begin(header.number, header.version)
        self._spare = self._new_spare(header.number + 1, segment_bytes)

    @property
    def number(self) -> int:
        """The segment that is written to."""
        return self._segment.number

    # ------------------------------------------------------------------ in the loop

    def reserve(self, size: int) -> None:
        """Make sure that a record of up to ``size`` bytes fits. Raises NoSpace."""
        wanted = self._outstanding_bytes + size
        if wanted > self._segment.room and wanted > self._spare_bytes():
            self._grow_spare(wanted)

    def add(self, group: Group, size: int) -> None:
        """Take in a group that was reserved for."""
        self._pending.append(group)
        self._sizes.append(size)
        self._outstanding_bytes += size
        self.added = group.version + group.commits - 1

    @property
    def pending(self) -> int:
        """How many groups have been added and not taken."""
        return len(self._pending)

    @property
    def newest(self) -> Group:
        """The group added last; an id may still be put into it."""
        return self._pending[-1]

    def take(self) -> Batch | None:
        """What has been added since the last call; None if nothing has."""
        if not self._pending:
            return None
        batch = Batch(self._pending, self._sizes, self.added)
        self._pending, self._sizes = [], []
        return batch

    def fits_now(self) -> bool:
        """Whether all that was added goes into the segment that is written to."""
        return self._outstanding_bytes <= self._segment.room

    def done(self, batch: Batch) -> None:
        """A batch has been written."""
        self._outstanding_bytes -= sum(batch.sizes)

    # ------------------------------------------------------------------ in the worker, one call at a time

    def write(self, batch: Batch, *, sync: bool) -> None:
        """Write a batch, and wait for the disk if ``sync``.

        Raises OSError: then nothing may be acknowledged any more.
        """
        if sum(batch.sizes) <= COMMITS_BYTES:
            self._write_record(batch.groups)
        else:
            for groups in _in_records(batch):
                self._write_record(groups)
        self.written = max(self.written, batch.version)
        if sync:
            self.sync()

    def _write_record(self, groups: list[Group]) -> None:
        if groups:
            self._put(Commits(self.synced, groups), groups[0].version - 1)

    def _put(self, record: Record, version: int) -> None:
        """Write one record; ``version`` is the one before it."""
        encoded = self._segment.codec.encode(record)
        if len(encoded) > self._segment.room:
            self.rotate(version)
            encoded = self._segment.codec.encode(record)
        self._disk.write(self._segment.descriptor, encoded, self._segment.at)
        self._segment.at += len(encoded)
        self.bytes += len(encoded)

    def sync(self) -> None:
        """Wait until all that was written is on the disk. Raises OSError."""
        written = self.written
        self._disk.sync(self._segment.descriptor)
        self.synced = written

    def raise_ceiling(self, version: int) -> None:
        """Allow versions up to this one to be given away before they are on the disk. Raises OSError."""
        self._mark(Mark(self.synced, version, False))
        self.ceiling = version

    def mark(self) -> None:
        """Vouch for what is on the disk, so that its loss would be noticed. Raises OSError."""
        self._mark(Mark(self.synced, self.ceiling, False))

    def _mark(self, mark: Mark) -> None:
        self._put(mark, self.written)
        self.sync()

    def rotate(self, version: int) -> int:
        """Go on in a new segment, the old one synced and cut to its size; ``version`` is the last before it.

        Returns its number. Raises OSError.
        """
        old = self._segment
        self._disk.truncate(old.descriptor, old.at)
        self._disk.sync(old.descriptor)
        self.synced = self.written = max(self.written, version)
        number = old.number + 1
        if self._spare is None or self._spare[1] < HEADER_BYTES:
            self._spare = self._new_spare(number, self._segment_bytes)
        self._segment = self._begin(number, version)
        self._disk.close_file(old.descriptor)
        with self._lock:
            try:
                self._spare = self._new_spare(number + 1, self._segment_bytes)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._spare = None
        if self.ceiling:
            self._put(Mark(self.synced, self.ceiling, False), version)
        return number

    def close(self) -> None:
        """The last word: all is on the disk, and nothing follows. Raises OSError."""
        self._mark(Mark(self.written, self.written, True))
        self._disk.truncate(self._segment.descriptor, self._segment.at)
        self._disk.sync(self._segment.descriptor)
        self._disk.close_file(self._segment.descriptor)
        if self._spare is not None:
            self._disk.close_file(self._spare[0])
            self._disk.remove(names.unfinished(names.log(self._segment.number + 1)))

    # ------------------------------------------------------------------ segments

    def _begin(self, number: int, version: int) -> Segment:
        """Make the spare the segment: it gets its name only when its header is on the disk."""
        with self._lock:
            assert self._spare is not None
            descriptor, size = self._spare
            self._spare = None
        header = Header(self._salt(), number, version, self.written, self._store_id)
        self._disk.write(descriptor, header.encode(LOG_MAGIC), 0)
        self._disk.sync(descriptor)
        self._disk.rename(names.unfinished(names.log(number)), names.log(number))
        self._disk.sync_directory()
        return Segment(number, descriptor, Codec(header.salt), HEADER_BYTES, size)

    def _new_spare(self, number: int, size: int) -> tuple[int, int]:
        name = names.unfinished(names.log(number))
        descriptor = self._disk.create(name)
        try:
            self._disk.allocate(descriptor, size)
        except BaseException:
            self._disk.close_file(descriptor)
            self._disk.remove(name)
            raise
        return descriptor, size

    def _spare_bytes(self) -> int:
        spare = self._spare
        return 0 if spare is None else spare[1] - HEADER_BYTES

    def _grow_spare(self, wanted: int) -> None:
        """Allocate more, in the loop: more waits to be written than a segment holds, or space may have come back."""
        size = max(self._segment_bytes, wanted + HEADER_BYTES)
        with self._lock:
            try:
                if self._spare is None:
                    self._spare = self._new_spare(self._segment.number + 1, size)
                else:
                    self._disk.allocate(self._spare[0], size)
                    self._spare = self._spare[0], size
            except OSError as error:
                if error.errno in _FULL:
                    raise NoSpace(f"no space left in {self._disk.directory}; nothing was written") from error
                raise


def _in_records(batch: Batch) -> Iterator[list[Group]]:
    """The groups of a batch, as many together as share a record."""
    groups: list[Group] = []
    size = 0
    for group, group_size in zip(batch.groups, batch.sizes, strict=True):
        if groups and size + group_size > COMMITS_BYTES:
            yield groups
            groups, size = [], 0
        groups.append(group)
        size += group_size
    yield groups
