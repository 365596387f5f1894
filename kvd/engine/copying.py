"""Data directories that are written in one go: out of a backup, or out of another directory up to some point.

A copy is another store: it has an id of its own, so that nobody who remembers versions of the old one, and perhaps
later ones than the copy has, takes them for the same. While it is written a file beside it says that it is not whole.
"""

from collections.abc import Callable

import msgspec

from kvd.engine.database import Database
from kvd.journal import names
from kvd.journal.checkpoint import CheckpointFile, slices
from kvd.journal.disk import Disk
from kvd.journal.records import LOG_MAGIC, Codec, Commits, Group, Header, Heads, Mark, Record
from kvd.journal.recovery import Progress, follow

# Behind the first segment, which would say that the log goes back to the beginning and no checkpoint is needed.
_FIRST_NUMBER = 2
Salt = Callable[[], int]  # a random number of 64 bits


class Point(msgspec.Struct, frozen=True):
    """The last commit that is wanted: by its version, or by its time in µs since the epoch; neither: all."""

    version: int | None = None
    time: int | None = None

    def covers(self, version: int, time: int) -> bool:
        """Whether a commit is at or before it."""
        return (self.version is None or version <= self.version) and (self.time is None or time <= self.time)


class _Enough(Exception):
    """All that was wanted is there."""


class UnfinishedCopy:
    """A directory that is being filled; whoever finds it before ``finish`` is told that it is not whole."""

    def __init__(self, disk: Disk) -> None:
        """Remove what an earlier attempt has left, and begin. Raises OSError."""
        self._disk = disk
        self._mark()
        for name in leftovers(disk.names()):
            disk.remove(name)

    def _mark(self) -> None:
        self._disk.close_file(self._disk.create(names.UNFINISHED_COPY))
        self._disk.sync_directory()

    def finish(self) -> None:
        """It is whole, and on the disk. Raises OSError."""
        self._disk.sync_directory()
        self._disk.remove(names.UNFINISHED_COPY)
        self._disk.sync_directory()


def leftovers(found: list[str]) -> list[str]:
    """What an interrupted copy has left beside its mark: nobody's data."""
    if names.UNFINISHED_COPY not in found:
        return []
    numbered = map(names.log, names.log_numbers(found)), map(names.checkpoint, names.checkpoint_numbers(found))
    return [*numbered[0], *numbered[1], *filter(names.is_unfinished, found)]


class SegmentFile:
    """A segment that is written from its beginning to its end, and nobody waits for. Its methods raise OSError."""

    def __init__(self, disk: Disk, header: Header) -> None:
        self._disk = disk
        self._codec = Codec(header.salt)
        self._descriptor = disk.create(names.log(header.number))
        self._version = header.watermark
        self._at = 0
        self._put(header.encode(LOG_MAGIC))

    def write(self, group: Group) -> None:
        """The next commits."""
        self._record(Commits(self._version, [group]))
        self._version = group.version + group.commits - 1

    def finish(self, *, is_last: bool) -> None:
        """Sync and close it; behind the last one nothing follows."""
        if is_last:
            self._record(Mark(self._version, self._version, True))
        self._disk.sync(self._descriptor)
        self.close()

    def close(self) -> None:
        """Give the descriptor back."""
        self._disk.close_file(self._descriptor)

    def _record(self, record: Record) -> None:
        self._put(self._codec.encode(record))

    def _put(self, data: bytes) -> None:
        self._disk.write(self._descriptor, data, self._at)
        self._at += len(data)


class _Copy:
    """Is told what a directory holds (``recovery.Target``), and writes it into another, up to ``point``."""

    def __init__(self, disk: Disk, point: Point, store_id: bytes, salt: Salt) -> None:
        self._disk = disk
        self._point = point
        self._store_id = store_id
        self._salt = salt
        self._checkpoint: CheckpointFile | None = None
        self._ended: tuple[int, int] | None = None
        self._segment: SegmentFile | None = None
        self.version = self.time = 0

    def begin_load(self, header: Header) -> None:
        self._checkpoint = CheckpointFile(self._disk, self._own(header))

    def load(
        self,
        keys: list[str],
        values: list[bytes],
        versions: list[int],
        deadlines: dict[str, int] | None,
        ephemeral: list[str] | None,
        wall: int | None,
    ) -> None:
        assert self._checkpoint is not None
        self._checkpoint.write(Heads(keys, values, versions, deadlines, ephemeral, wall))

    def end_of_load(self, version: int, time: int) -> None:
        self.version, self.time = self._ended = version, time

    def begin_segment(self, header: Header, *, is_first: bool) -> None:
        self._finish_segment(is_last=False)
        self._segment = SegmentFile(self._disk, self._own(header))
        self._end_at(header.watermark)

    def _own(self, header: Header) -> Header:
        return msgspec.structs.replace(header, salt=self._salt(), store_id=self._store_id)

    def replay(self, group: Group) -> None:
        wanted = _up_to(group, self._point)
        if wanted is not None:
            assert self._segment is not None
            self._segment.write(wanted)
            last = wanted.version + wanted.commits - 1
            self.version, self.time = max(self.version, last), max(self.time, wanted.time)
            self._end_at(last)
        if wanted is not group:
            raise _Enough

    def _end_at(self, version: int) -> None:
        """At once when the log is copied so far: what comes next may be damaged."""
        if self._point.version is not None and version >= self._point.version:
            raise _Enough

    def end_of_replay(self, version: int) -> None:
        """Nothing to do: the copy gives no version away that its log does not have."""

    def finish(self) -> None:
        """Give the checkpoint its name, behind the log."""
        self._finish_segment(is_last=True)
        if self._checkpoint is not None and self._ended is not None:
            self._checkpoint.finish(*self._ended)

    def _finish_segment(self, *, is_last: bool) -> None:
        if self._segment is not None:
            segment, self._segment = self._segment, None
            segment.finish(is_last=is_last)


def _up_to(group: Group, point: Point) -> Group | None:
    """What of ``group`` is wanted: all of it, its first commits, or nothing."""
    last = group.version + group.commits - 1
    if point.covers(last, group.time):
        return group
    if not point.covers(group.version, group.time):
        return None
    assert point.version is not None
    wanted = 1 + point.version - group.version
    keys = group.keys[:wanted]
    return Group(
        group.version, group.time, group.author, wanted, keys, group.values[:wanted],
        {key: deadline for key, deadline in (group.deadlines or {}).items() if key in keys} or None,
        [key for key in group.ephemeral or () if key in keys] or None,
        [each for each in group.ids or () if each[2] <= point.version] or None, group.wall,
    )  # fmt: skip


def copy(
    source: Disk, target: Disk, base: int, point: Point, store_id: bytes, salt: Salt, progress: Progress
) -> tuple[int, int]:
    """Copy a directory from ``base`` up to ``point``, which it reaches; version and time of the last commit copied.

    History and remembered ids come along. Raises Damaged, NewerFormat, OSError.
    """
    unfinished = UnfinishedCopy(target)
    written = _Copy(target, point, store_id, salt)
    try:
        follow(source, base, written, progress)
    except _Enough:
        pass
    written.finish()
    unfinished.finish()
    return written.version, written.time


def write_new(disk: Disk, database: Database, store_id: bytes, salt: Salt, progress: Progress) -> None:
    """Make a directory of what a database holds now, without history. ``progress`` counts keys. Raises OSError."""
    unfinished = UnfinishedCopy(disk)
    version, time = database.store.version, database.store.time
    header = Header(salt(), _FIRST_NUMBER, version, version, store_id)
    SegmentFile(disk, header).finish(is_last=True)
    checkpoint = CheckpointFile(disk, msgspec.structs.replace(header, salt=salt()))
    for record in slices(database):
        checkpoint.write(record)
        progress(checkpoint.keys, database.store.counters.keys)
    checkpoint.finish(version, time)
    unfinished.finish()
