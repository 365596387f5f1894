"""Work on a data directory that no daemon uses: check, salvage, restore.

The source directory is never written to, and its lock is held so that no daemon starts on it. The target directory must
be empty, and is locked as by a daemon.
"""

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import msgspec

from kvd.engine.copying import Point, copy, leftovers, write_new
from kvd.engine.database import Database
from kvd.engine.examination import CheckReport, Extent, best_extent, examine, usable_extents
from kvd.engine.replay import Replay
from kvd.journal import names
from kvd.journal.backup_file import BackupReader, load_backup
from kvd.journal.disk import Disk, check_owner
from kvd.journal.errors import Damaged, JournalError
from kvd.journal.recovery import Progress, recover
from kvd.protocol import exits
from kvd.service.directory_lock import DirectoryLock, foreign_content, is_harmless, reading
from kvd.service.errors import StartError
from kvd.service.trusted_files import make_directories

# Opens a backup by the name that a person gave. The command line does that: its "-" is standard input.
OpenBackup = Callable[[str], BinaryIO]


class DataSummary(msgspec.Struct):
    """What was read or written: its last version, and the time of that version in µs since the epoch.

    ``keys`` is the number of keys, None if they were not counted. ``lost`` is the number of later versions that are
    known and could not be saved.
    """

    version: int
    time: int
    keys: int | None = None
    lost: int = 0


def check(directory: str, progress: Progress) -> CheckReport:
    """Examine everything in a data directory, which may be on a read-only file system. Raises StartError."""
    with _explain_errors(directory, directory), _reading(directory) as disk:
        return examine(disk, progress)


def check_backup(source: str, open_backup: OpenBackup, progress: Progress) -> DataSummary:
    """Read a backup to its end. Raises StartError."""
    with _explain_errors(source), open_backup(source) as stream:
        return _summary(_load(stream, source, progress))


def salvage(directory: str, new_directory: str, progress: Progress) -> DataSummary:
    """Copy what can be saved of a damaged directory: the data as of some version. Raises StartError."""
    with _explain_errors(directory, directory), _reading(directory) as source:
        report = examine(source)
        extent = report.saved if report.damages else best_extent(usable_extents(source))
        if extent is None:
            raise StartError(exits.DAMAGED_DATA, f"nothing of {directory} can be saved")
        point = Point(extent.version) if report.damages else Point()
        summary = _copy(source, directory, new_directory, extent, point, progress)
        summary.lost = max(0, report.newest_known - summary.version)
        return summary


def restore(
    source: str,
    new_directory: str,
    version: int | None,
    time_us: int | None,
    open_backup: OpenBackup,
    progress: Progress,
) -> DataSummary:
    """Make a data directory from a backup, or from another directory as of a version or a time (µs since the epoch).

    Raises StartError.
    """
    point = Point(version, time_us)
    if os.path.isdir(source):
        with _explain_errors(source, source), _reading(source) as disk:
            extent = _extent_for(disk, source, point)
            point = msgspec.structs.replace(point, clock_set=extent.clock_set[0])
            return _copy(disk, source, new_directory, extent, point, progress)
    if point != Point():
        text = f"{source} is a backup, which has no history; only a data directory can be restored to a point in it"
        raise StartError(exits.USAGE, text)
    with _explain_errors(source), open_backup(source) as stream, _writing(new_directory) as target:
        contents = _load(stream, source, progress)
        with _explain_errors(new_directory):
            write_new(target, Database(contents=contents), secrets.token_bytes(8), _salt, lambda done, size: None)
        return _summary(contents)


def _copy(
    disk: Disk, directory: str, new_directory: str, extent: Extent, point: Point, progress: Progress
) -> DataSummary:
    """Copy, and count what the copy holds by reading it as a start does."""
    with _writing(new_directory) as target, _explain_errors(f"{directory} to {new_directory}", directory):
        version, time_us = copy(disk, target, extent.base, point, secrets.token_bytes(8), _salt, progress)
        contents = Replay()
        recover(target, contents)
        return DataSummary(version, time_us, contents.count_lasting_keys())


def _extent_for(disk: Disk, source: str, point: Point) -> Extent:
    """Return the extent from which ``point`` can be restored with the most history. Raises StartError, Damaged."""
    extents = usable_extents(disk)
    clock_set = max((extent.clock_set for extent in extents), default=(0, 0))
    _check_clock(source, point, clock_set)
    point = msgspec.structs.replace(point, clock_set=clock_set[0])
    possible = [extent for extent in extents if extent.first == 0 or point.covers(extent.first, extent.first_time)]
    if not extents or not possible:
        _refuse(disk, source, extents)
    extent = best_extent(possible)
    assert extent is not None
    _check_began(source, point, extent)
    is_within = point.version is not None and point.version <= extent.version
    is_within = is_within or (point.time is not None and point.time < extent.time)
    if not is_within and extent.damage is not None:
        raise extent.damage
    if point.version is not None and point.version > extent.version:
        text = f"{source} ends with version {extent.version}; there is no version {point.version} in it"
        raise StartError(exits.FAILURE, text)
    return extent


def _check_clock(source: str, point: Point, clock_set: tuple[int, int]) -> None:
    version, time_us = clock_set
    if point.time is not None and point.time < time_us:
        text = (
            f"the clock was set to {_shown(time_us)} after version {version} of {source}, so it is not known which "
            "version an earlier time means; name a version"
        )
        raise StartError(exits.FAILURE, text)


def _check_began(source: str, point: Point, extent: Extent) -> None:
    """Refuse a point before the first commit: nothing was there yet, and an empty store would be no answer."""
    version, time_us = extent.began
    if extent.first == 0 and version and not point.covers(version, time_us):
        text = f"{source} begins with version {version} of {_shown(time_us)}; there is nothing before that"
        raise StartError(exits.FAILURE, text)


def _refuse(disk: Disk, source: str, extents: list[Extent]) -> None:
    if not extents:
        examine(disk)  # raises an error that says what is wrong
        raise StartError(exits.DAMAGED_DATA, f"{source} holds nothing that can be restored")
    oldest = min(extents, key=lambda extent: extent.first)
    text = f"{source} goes back to version {oldest.first} of {_shown(oldest.first_time)}, and not further"
    raise StartError(exits.FAILURE, text)


def _shown(time_us: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_us // 1_000_000))


def _summary(contents: Replay) -> DataSummary:
    return DataSummary(contents.store.version, contents.store.time, contents.count_lasting_keys())


def _load(stream: BinaryIO, source: str, progress: Progress) -> Replay:
    """Return the content of a backup, without ephemeral keys, whose connections have ended."""
    size = os.fstat(stream.fileno()).st_size
    contents = Replay()
    load_backup(BackupReader(stream, source), contents, lambda done: progress(done, max(size, done)))
    contents.leave_out_orphans()
    return contents


def _salt() -> int:
    return secrets.randbits(64)


# ------------------------------------------------------------------ sources and targets


@contextmanager
def _reading(directory: str) -> Iterator[Disk]:
    """Open a directory for reading; no daemon can use it inside the block."""
    disk = Disk(directory)
    try:
        if not _is_data_directory(disk.names()):
            raise StartError(exits.FAILURE, f"{directory} is not a data directory: it holds no file of kvd")
        with reading(directory):
            yield disk
    finally:
        disk.close()


def _is_data_directory(present: list[str]) -> bool:
    return bool(names.log_numbers(present) or names.checkpoint_numbers(present) or names.UNFINISHED_COPY in present)


@contextmanager
def _writing(directory: str) -> Iterator[Disk]:
    """Open an empty directory of our own for writing, and lock it.

    The directory is made if it is missing, and removed if it stays empty.
    """
    with _explain_errors(directory):
        is_new = not os.path.isdir(directory)
        if is_new:
            _make(directory)
        problem = check_owner(directory)
        if problem:
            raise StartError(exits.CONFIGURATION, f"{directory}: {problem}")
        if foreign_content(directory) is not None:
            _check_empty(directory)
        lock = DirectoryLock(directory)
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
    make_directories(directory)
    parent = Disk(os.path.dirname(os.path.abspath(directory)))
    parent.sync_directory()
    parent.close()


def _check_empty(directory: str) -> None:
    present = os.listdir(directory)
    ours = {names.LOCK, names.UNFINISHED_COPY, *leftovers(present)}
    others = sorted(name for name in set(present) - ours if not is_harmless(directory, name))
    if others:
        raise StartError(exits.USAGE, f"{directory} is not empty: it has {others[0]}; name an empty directory")


@contextmanager
def _explain_errors(place: str, directory: str | None = None) -> Iterator[None]:
    """Turn errors into StartErrors that say what to do; ``directory`` is the data directory that may be damaged."""
    try:
        yield
    except JournalError as error:
        hint = f"; what can be saved: kv check {directory}" if isinstance(error, Damaged) and directory else ""
        raise StartError(exits.DAMAGED_DATA, f"{error}{hint}") from None
    except OSError as error:
        full = " (the disk is full)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise StartError(exits.IO_ERROR, f"{place}: {error.strerror}{full}") from None
