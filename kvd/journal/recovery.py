"""The way back: from the files of a data directory to the store as it was.

1. The oldest checkpoint that is kept is loaded: the current values as of its end, roughly. As long as the very first
   segment is still there, the history reaches back to the beginning and no checkpoint is needed.
2. The segments from its number on are applied, in order. Up to the checkpoint's end only what is newer than what it
   has; behind it commit by commit, so that history, authors and remembered ids come back too.
3. A torn tail is left out. Anything else that is amiss raises, and nothing was changed.

Nothing here writes. What must be on disk before anybody is served is ``prepare_tail``'s matter.
"""

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from kvd.journal import names
from kvd.journal.disk import Disk
from kvd.journal.errors import Damaged
from kvd.journal.reading import CheckpointReader, SegmentReader, TornTail
from kvd.journal.records import Group

if TYPE_CHECKING:
    from kvd.database import Database

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class Recovered(msgspec.Struct):
    """What was found. ``number``: of the newest segment, 0 without any; ``ceiling``: versions below may be taken."""

    store_id: bytes = b""
    number: int = 0
    version: int = 0
    ceiling: int = 0
    clean: bool = False
    tail_end: int = 0
    torn: TornTail | None = None
    checkpoints: dict[int, int] = msgspec.field(default_factory=dict)
    commits: int = 0
    log_bytes: int = 0


def recover(disk: Disk, database: "Database", progress: Progress = lambda done, size: None) -> Recovered:
    """Fill an empty database with what the directory holds. Raises Damaged, NewerFormat, OSError."""
    # Nothing of what is made here is garbage, and looking for some again and again takes a fifth of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return _recover(disk, database, progress)
    finally:
        if was_enabled:
            gc.enable()


def _recover(disk: Disk, database: "Database", progress: Progress) -> Recovered:
    found = disk.names()
    segments, checkpoints = names.log_numbers(found), names.checkpoint_numbers(found)
    recovered = Recovered()
    base = checkpoints[0] if checkpoints and 1 not in segments else 1
    needed = [number for number in segments if number >= base]
    _check_complete(disk, base, needed, bool(checkpoints))
    sizes = [disk.size(names.checkpoint(number)) for number in checkpoints if number == base]
    total, done = sum(sizes) + sum(disk.size(names.log(number)) for number in needed), 0
    for number in checkpoints:
        if number == base:
            _load(CheckpointReader(disk, number), database, recovered)
            done = sizes[0]
            progress(done, total)
        else:
            recovered.checkpoints[number] = _end_of(CheckpointReader(disk, number), recovered)
    for number in needed:
        reader = SegmentReader(disk, number)
        _check_follows(reader, recovered)
        if number == base:
            database.begin_replay(reader.header.watermark)
        for group in reader:
            _apply(group, database, recovered)
        _note(reader, recovered, is_last=number == needed[-1])
        done += disk.size(names.log(number))
        progress(done, total)
    _check_reached(disk, recovered)
    database.end_of_replay(max(recovered.version, recovered.ceiling))
    return recovered


def _check_complete(disk: Disk, base: int, needed: list[int], has_checkpoint: bool) -> None:
    """Every segment from the checkpoint on has to be there."""
    if not needed:
        if has_checkpoint:
            raise Damaged(disk.path(names.log(base)), 0, "it is missing")
        return
    for expected, number in enumerate(needed, base):
        if number != expected:
            raise Damaged(disk.path(names.log(expected)), 0, "it is missing, and later ones are there")


def _load(reader: CheckpointReader, database: "Database", recovered: Recovered) -> None:
    for piece in reader:
        database.load(piece.keys, piece.values, piece.versions, piece.deadlines, piece.ephemeral)
    assert reader.end is not None
    recovered.checkpoints[reader.header.number] = reader.end.version
    recovered.store_id = reader.header.store_id
    recovered.version = reader.header.version
    database.end_of_load(reader.end.version, reader.end.time)


def _end_of(reader: CheckpointReader, recovered: Recovered) -> int:
    for _ in reader:
        pass
    assert reader.end is not None
    _check_store(reader, recovered)
    return reader.end.version


def _check_store(reader: CheckpointReader | SegmentReader, recovered: Recovered) -> None:
    if recovered.store_id and reader.header.store_id != recovered.store_id:
        raise Damaged(reader.path, 0, "it belongs to another store")
    recovered.store_id = reader.header.store_id


def _check_reached(disk: Disk, recovered: Recovered) -> None:
    """The log was on the disk through the end of a checkpoint before that got its name."""
    for number, version in recovered.checkpoints.items():
        if version > recovered.version:
            text = f"it ends with version {recovered.version}, and {names.checkpoint(number)} with {version}"
            raise Damaged(disk.path(names.log(recovered.number)), recovered.tail_end, text)


def _check_follows(reader: SegmentReader, recovered: Recovered) -> None:
    header = reader.header
    _check_store(reader, recovered)
    if recovered.number and header.watermark != recovered.version:
        text = f"it goes on behind version {header.watermark}, and the segment before it ends with {recovered.version}"
        raise Damaged(reader.path, 0, text)
    recovered.version = max(recovered.version, header.watermark)


def _apply(group: Group, database: "Database", recovered: Recovered) -> None:
    database.replay(group)
    recovered.version = group.version + group.commits - 1
    recovered.commits += group.commits


def _note(reader: SegmentReader, recovered: Recovered, *, is_last: bool) -> None:
    if reader.torn is not None and not is_last:
        raise Damaged(reader.torn.path, reader.torn.offset, "it is torn, though later segments are there")
    recovered.number = reader.header.number
    # Each segment says again which versions may have been given away when it was begun.
    recovered.ceiling = reader.ceiling
    recovered.clean, recovered.torn, recovered.tail_end = reader.clean, reader.torn, reader.end
    recovered.log_bytes += reader.end


def prepare_tail(disk: Disk, recovered: Recovered) -> None:
    """Make what was recovered from the newest segment certain, before anybody is served. Raises OSError.

    After a crash its pages may show what never reached the disk, and after a failed sync they may even be lost: so it
    is copied, synced, and takes the old one's place. Unfinished files go.
    """
    for name in disk.names():
        if names.is_unfinished(name):
            disk.remove(name)
    if not recovered.number or recovered.clean:
        return
    name = names.log(recovered.number)
    data = disk.read(name)[: recovered.tail_end]
    descriptor = disk.create(names.unfinished(name))
    try:
        disk.write(descriptor, data, 0)
        disk.sync(descriptor)
    finally:
        disk.close_file(descriptor)
    disk.rename(names.unfinished(name), name)
    disk.sync_directory()
