"""What is done with a data directory while no daemon uses it: check, salvage, restore.

The directory that is read is never written to; its lock is held so that no daemon begins to. The one that is written
has to be empty, and is locked as by a daemon.
"""

import errno
import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import msgspec

from kvd.engine.copying import Point, copy, leftovers, write_new
from kvd.engine.database import Database
from kvd.engine.examination import CheckReport, Extent, examine, furthest, reaches
from kvd.engine.replay import Replay
from kvd.journal import names
from kvd.journal.backup_file import BackupReader, load_backup
from kvd.journal.disk import Disk, check_owner
from kvd.journal.errors import Damaged, JournalError
from kvd.journal.recovery import Progress
from kvd.service.errors import EXIT_CONFIGURATION, EXIT_DAMAGED, EXIT_FAILURE, EXIT_IO_ERROR, EXIT_USAGE, StartError
from kvd.service.locks import LockFile, exclude_daemon

STDIN = "-"


class Made(msgspec.Struct):
    """A data directory that was made: the version that it ends with, and its time in µs since the epoch.

    ``keys``: how many it has, None if they were not counted. ``lost``: how many versions are known of behind it.
    """

    version: int
    time: int
    keys: int | None = None
    lost: int = 0


def check(directory: str, progress: Progress) -> CheckReport:
    """Look at all that a data directory holds; it may be on a read-only file system. Raises StartError."""
    with _explained(directory, directory), _reading(directory) as disk:
        return examine(disk, progress)


def check_backup(source: str, progress: Progress) -> Made:
    """Read a backup to its end. Raises StartError."""
    with _explained(source), _backup(source) as stream:
        database = _loaded(stream, source, progress)
        return Made(database.store.version, database.store.time, database.store.counters.keys)


def salvage(directory: str, new_directory: str, progress: Progress) -> Made:
    """Copy all of a damaged directory that can be saved, which is as it was at some version. Raises StartError."""
    with _explained(directory, directory), _reading(directory) as source:
        found = examine(source)
        reach = found.saved if found.damages else furthest(reaches(source))
        if reach is None:
            raise StartError(EXIT_DAMAGED, f"nothing of {directory} can be saved")
        point = Point(reach.version) if found.damages else Point()
        version, time_us = _copied(source, directory, new_directory, reach, point, progress)
        return Made(version, time_us, lost=max(0, found.newest_known - version))


def restore(source: str, new_directory: str, version: int | None, time_us: int | None, progress: Progress) -> Made:
    """Make a data directory out of a backup, or out of another one as it was at a version or time (µs since the epoch).

    Raises StartError.
    """
    point = Point(version, time_us)
    if os.path.isdir(source):
        with _explained(source, source), _reading(source) as disk:
            reach = _reach_for(disk, source, point)
            return Made(*_copied(disk, source, new_directory, reach, point, progress))
    if point != Point():
        text = f"{source} is a backup, which has no history; only a data directory can be restored to a point in it"
        raise StartError(EXIT_USAGE, text)
    with _explained(source), _backup(source) as stream, _writing(new_directory) as target:
        database = _loaded(stream, source, progress)
        with _explained(new_directory):
            write_new(target, database, secrets.token_bytes(8), _salt, lambda done, size: None)
        return Made(database.store.version, database.store.time, database.store.counters.keys)


def _copied(
    disk: Disk, directory: str, new_directory: str, reach: Extent, point: Point, progress: Progress
) -> tuple[int, int]:
    with _writing(new_directory) as target, _explained(f"{directory} to {new_directory}", directory):
        return copy(disk, target, reach.base, point, secrets.token_bytes(8), _salt, progress)


def _reach_for(disk: Disk, source: str, point: Point) -> Extent:
    """From where ``point`` can be made, with as much history as there is. Raises StartError, Damaged."""
    found = reaches(disk)
    possible = [reach for reach in found if reach.first == 0 or point.covers(reach.first, reach.first_time)]
    if not found or not possible:
        _refuse_to_begin(disk, source, found)
    reach = furthest(possible)
    assert reach is not None
    is_within = point.version is not None and point.version <= reach.version
    is_within = is_within or (point.time is not None and point.time < reach.time)
    if not is_within and reach.damage is not None:
        raise reach.damage
    if point.version is not None and point.version > reach.version:
        text = f"{source} ends with version {reach.version}; there is no version {point.version} in it"
        raise StartError(EXIT_FAILURE, text)
    return reach


def _refuse_to_begin(disk: Disk, source: str, found: list[Extent]) -> None:
    if not found:
        examine(disk)  # which says what is wrong
        raise StartError(EXIT_DAMAGED, f"{source} has nothing that could be restored")
    oldest = min(found, key=lambda reach: reach.first)
    text = f"{source} goes back to version {oldest.first} of {_shown(oldest.first_time)}, and not further"
    raise StartError(EXIT_FAILURE, text)


def _shown(time_us: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_us // 1_000_000))


def _loaded(stream: BinaryIO, source: str, progress: Progress) -> Database:
    """A database with what a backup holds, without the keys whose connections have ended."""
    size = os.fstat(stream.fileno()).st_size
    contents = Replay()
    load_backup(BackupReader(stream, source), contents, lambda done: progress(done, max(size, done)))
    database = Database(contents=contents)
    database.delete_orphaned_ephemerals()
    return database


def _salt() -> int:
    return secrets.randbits(64)


# ------------------------------------------------------------------ places


@contextmanager
def _reading(directory: str) -> Iterator[Disk]:
    """A directory that is only read, and that no daemon uses meanwhile."""
    disk = Disk(directory)
    try:
        found = disk.names()
        if not names.log_numbers(found) and not names.checkpoint_numbers(found) and names.UNFINISHED_COPY not in found:
            raise StartError(EXIT_FAILURE, f"{directory} is no data directory: nothing of kvd's is in it")
        with exclude_daemon(os.path.join(directory, names.LOCK)):
            yield disk
    finally:
        disk.close()


@contextmanager
def _writing(directory: str) -> Iterator[Disk]:
    """An empty directory of our own, made if it is missing, and locked. One that was made and not filled goes again."""
    with _explained(directory):
        is_new = not os.path.isdir(directory)
        if is_new:
            _make(directory)
        problem = check_owner(directory)
        if problem:
            raise StartError(EXIT_CONFIGURATION, f"{directory}: {problem}")
        lock = LockFile(os.path.join(directory, names.LOCK))
        lock.acquire()
        disk = Disk(directory)
    try:
        _check_empty(directory)
        yield disk
    finally:
        disk.close()
        lock.release()
        if is_new and not os.listdir(directory):
            os.rmdir(directory)


def _make(directory: str) -> None:
    os.makedirs(directory, 0o700)
    parent = Disk(os.path.dirname(os.path.abspath(directory)))
    parent.sync_directory()
    parent.close()


def _check_empty(directory: str) -> None:
    found = os.listdir(directory)
    ours = {names.LOCK, names.UNFINISHED_COPY, *leftovers(found)}
    others = sorted(set(found) - ours)
    if others:
        raise StartError(EXIT_USAGE, f"{directory} is not empty: it has {others[0]}; name an empty directory")


@contextmanager
def _backup(source: str) -> Iterator[BinaryIO]:
    if source == STDIN:
        yield sys.stdin.buffer
        return
    with open(source, "rb") as stream:
        yield stream


@contextmanager
def _explained(place: str, directory: str | None = None) -> Iterator[None]:
    """Errors as StartErrors that say what to do; ``directory`` is the data directory that may be damaged."""
    try:
        yield
    except JournalError as error:
        hint = f"; what can be saved: kv check {directory}" if isinstance(error, Damaged) and directory else ""
        raise StartError(EXIT_DAMAGED, f"{error}{hint}") from None
    except OSError as error:
        full = " (the disk is full)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise StartError(EXIT_IO_ERROR, f"{place}: {error.strerror}{full}") from None
