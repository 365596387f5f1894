"""Data directories that are written in one go: from a backup, or from another directory up to some point.

A copy is another store. It has an id of its own, because clients may remember versions of the old store, perhaps later
ones than the copy has. While the copy is written, a file in its directory marks it as unfinished.
"""

from collections.abc import Callable

import msgspec

from kvd.engine.database import Database
from kvd.journal import names
from kvd.journal.checkpoint import CheckpointFile, slices
from kvd.journal.disk import Disk
from kvd.journal.records import LOG_MAGIC, Clock, Codec, Commits, Group, Header, Heads, Mark, Record, Successor
from kvd.journal.recovery import Progress, follow

# Not 1: the first segment of all would mean that the log goes back to the beginning and needs no checkpoint.
_FIRST_NUMBER = 2
Salt = Callable[[], int]  # a random number of 64 bits


class Point(msgspec.Struct, frozen=True):
    """The last commit to be copied: by its version, or by its time in µs since the epoch; without either, all are.

    The time is one of the clock as it was set after version ``clock_set``; earlier commits are all before it.
    """

    version: int | None = None
    time: int | None = None
    clock_set: int = 0

    def covers(self, version: int, time: int) -> bool:
        """Whether a commit of this version and time is at or before the point."""
        if self.version is not None and version > self.version:
            return False
        return self.time is None or version <= self.clock_set or time <= self.time


class _Reached(Exception):
    """The copy has come to its point."""


class UnfinishedCopy:
    """A directory that is being filled. Until ``finish`` a mark says that it is unfinished, and no daemon starts on it.

    The files of an earlier attempt are removed first. Raises OSError.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._mark()
        for name in leftovers(disk.names()):
            disk.remove(name)

    def _mark(self) -> None:
        self._disk.close_file(self._disk.create(names.UNFINISHED_COPY))
        self._disk.sync_directory()

    def finish(self) -> None:
        """Remove the mark, once all is on the disk. Raises OSError."""
        self._disk.sync_directory()
        self._disk.remove(names.UNFINISHED_COPY)
        self._disk.sync_directory()


def leftovers(files: list[str]) -> list[str]:
    """Return those of a directory's files that an interrupted copy has left beside its mark; no store needs them."""
    if names.UNFINISHED_COPY not in files:
        return []
    logs = map(names.log, names.log_numbers(files))
    checkpoints = map(names.checkpoint, names.checkpoint_numbers(files))
    return [*logs, *checkpoints, *filter(names.is_unfinished, files)]


class SegmentFile:
    """A segment that is written from its beginning to its end, while no client waits. Its methods raise OSError."""

    def __init__(self, disk: Disk, header: Header) -> None:
        self._disk = disk
        self._codec = Codec(header.salt)
        self._descriptor = disk.create(names.log(header.number))
        self._version = header.watermark
        self._at = 0
        self._put(header.encode(LOG_MAGIC))

    def write(self, group: Group) -> None:
        """Write the next commits."""
        self._record(Commits(self._version, [group]))
        self._version = group.version + group.commits - 1

    def note_clock(self, record: Clock) -> None:
        """Write how the clock went."""
        self._record(record)

    def finish(self, successor: int | None) -> None:
        """Sync and close it, with the number of the next segment; None: with a mark that nothing follows."""
        if successor is None:
            self._record(Mark(self._version, self._version, True))
        else:
            self._record(Successor(self._version, successor))
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
    """Writes what it takes in from one directory (as ``recovery.Target``) into another, up to ``point``."""

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
        self._finish_segment(header.number)
        self._segment = SegmentFile(self._disk, self._own(header))
        self._end_at(header.watermark)

    def note_clock(self, record: Clock) -> None:
        assert self._segment is not None
        self._segment.note_clock(record)

    def _own(self, header: Header) -> Header:
        return msgspec.structs.replace(header, salt=self._salt(), store_id=self._store_id)

    def replay(self, group: Group) -> None:
        wanted = _up_to(group, self._point)
        if wanted is not None:
            assert self._segment is not None
            self._segment.write(wanted)
            last = wanted.version + wanted.commits - 1
            if last > self.version:
                self.version, self.time = last, wanted.time
            self._end_at(last)
        if wanted is not group:
            raise _Reached

    def _end_at(self, version: int) -> None:
        """Stop at once when the log is copied up to the point: what comes next may be damaged."""
        if self._point.version is not None and version >= self._point.version:
            raise _Reached

    def end_of_replay(self, version: int) -> None:
        """Do nothing: the copy gives no version away that its log does not have."""

    def finish(self) -> None:
        """Give the checkpoint its name, after the log is on the disk."""
        self._finish_segment(None)
        if self._checkpoint is not None and self._ended is not None:
            self._checkpoint.finish(*self._ended)

    def _finish_segment(self, successor: int | None) -> None:
        if self._segment is not None:
            segment, self._segment = self._segment, None
            segment.finish(successor)


def _up_to(group: Group, point: Point) -> Group | None:
    """Return what of ``group`` is to be copied: all of it, its first commits, or None."""
    last = group.version + group.commits - 1
    if point.covers(last, group.time):
        return group
    if not point.covers(group.version, group.time):
        return None
    assert point.version is not None
    wanted = 1 + point.version - group.version
    keys = group.keys[:wanted]
    return msgspec.structs.replace(
        group,
        commits=wanted,
        keys=keys,
        values=group.values[:wanted],
        deadlines={key: deadline for key, deadline in (group.deadlines or {}).items() if key in keys} or None,
        ephemeral=[key for key in group.ephemeral or () if key in keys] or None,
        ids=[each for each in group.ids or () if each[2] <= point.version] or None,
    )


def copy(
    source: Disk, target: Disk, base: int, point: Point, store_id: bytes, salt: Salt, progress: Progress
) -> tuple[int, int]:
    """Copy a directory from ``base`` up to ``point``, which it reaches; return version and time of the last commit.

    History and remembered ids are copied, too. Raises Damaged, NewerFormat, OSError.
    """
    unfinished = UnfinishedCopy(target)
    written = _Copy(target, point, store_id, salt)
    try:
        follow(source, base, written, progress)
    except _Reached:
        pass
    written.finish()
    unfinished.finish()
    return written.version, written.time


def write_new(disk: Disk, database: Database, store_id: bytes, salt: Salt, progress: Progress) -> None:
    """Write what a database holds now into a directory, without history. ``progress`` counts keys. Raises OSError."""
    unfinished = UnfinishedCopy(disk)
    version, time = database.store.version, database.store.time
    header = Header(salt(), _FIRST_NUMBER, version, version, store_id)
    SegmentFile(disk, header).finish(None)
    checkpoint = CheckpointFile(disk, msgspec.structs.replace(header, salt=salt()))
    for record in slices(database):
        checkpoint.write(record)
        progress(checkpoint.keys, database.store.counters.keys)
    checkpoint.finish(version, time)
    unfinished.finish()
