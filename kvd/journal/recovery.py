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
from typing import Protocol

import msgspec

from kvd.journal import names
from kvd.journal.disk import Disk
from kvd.journal.errors import Damaged, Unfinished
from kvd.journal.records import Group, Header
from kvd.journal.segments import CheckpointReader, SegmentReader, TornTail

Progress = Callable[[int, int], None]  # bytes done, bytes in all
# Progress is told about each time when so many more have been done.
_STEP_BYTES = 1024 * 1024


class Target(Protocol):
    """What takes in the contents of a directory: ``kvd.engine.replay.Replay``, or a copy (``kvd/engine/copying.py``).

    First a checkpoint if there is one: ``begin_load``, ``load`` for each of its pieces, ``end_of_load``. Then the
    segments.
    """

    def begin_load(self, header: Header) -> None:
        """A checkpoint begins."""

    def load(
        self,
        keys: list[str],
        values: list[bytes],
        versions: list[int],
        deadlines: dict[str, int] | None,
        ephemeral: list[str] | None,
        wall: int | None,
    ) -> None:
        """A piece of the checkpoint."""

    def end_of_load(self, version: int, time: int) -> None:
        """The checkpoint ended at ``version``: up to there, what follows may be in it already."""

    def begin_segment(self, header: Header, *, is_first: bool) -> None:
        """The next groups are out of this segment."""

    def replay(self, group: Group) -> None:
        """The next commits."""

    def end_of_replay(self, version: int) -> None:
        """That was all; nothing at or before ``version`` may be given to a commit again."""


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


def recover(disk: Disk, target: Target, progress: Progress = lambda done, size: None) -> Recovered:
    """Fill an empty target with what the directory holds. Raises Damaged, NewerFormat, Unfinished, OSError."""
    found = disk.names()
    if names.UNFINISHED_COPY in found:
        raise Unfinished(disk.directory)
    base = bases(found)[0]
    # Nothing of what is made here is garbage, and looking for some again and again takes a fifth of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        recovered = follow(disk, base, target, progress)
        _check_other_checkpoints(disk, base, recovered)
        target.end_of_replay(max(recovered.version, recovered.ceiling))
    finally:
        if was_enabled:
            gc.enable()
    return recovered


def bases(found: list[str]) -> list[int]:
    """Where one may begin, the most history first: the first segment, or a checkpoint, each by its number."""
    segments, checkpoints = names.log_numbers(found), names.checkpoint_numbers(found)
    return checkpoints if checkpoints and 1 not in segments else sorted({1, *checkpoints})


def follow(disk: Disk, base: int, target: Target, progress: Progress = lambda done, size: None) -> Recovered:
    """Tell ``target`` all that there is from ``base`` on, but for the end. Raises Damaged, NewerFormat, OSError."""
    found = disk.names()
    recovered = Recovered()
    has_checkpoint = base in names.checkpoint_numbers(found)
    needed = [number for number in names.log_numbers(found) if number >= base]
    _check_complete(disk, base, needed, has_checkpoint)
    files = [names.checkpoint(base)] * has_checkpoint + [names.log(number) for number in needed]
    meter = _Meter(progress, sum(map(disk.size, files)))
    if has_checkpoint:
        _load(CheckpointReader(disk, base), target, recovered, meter)
    for number in needed:
        reader = SegmentReader(disk, number)
        _check_follows(reader, recovered)
        target.begin_segment(reader.header, is_first=number == base)
        for group in reader:
            target.replay(group)
            recovered.version = group.version + group.commits - 1
            recovered.commits += group.commits
            if reader.end >= meter.due:
                meter.tell(reader.end)
        _note(reader, recovered, is_last=number == needed[-1])
        meter.done(reader.size)
    _check_reached(disk, recovered)
    return recovered


class _Meter:
    """Tells now and then how far it is. ``due``: at which byte of the present file it is time again."""

    def __init__(self, progress: Progress, size: int) -> None:
        self._progress = progress
        self._size = size
        self._before = 0
        self.due = _STEP_BYTES

    def tell(self, at: int) -> None:
        """It has come to this byte of the present file."""
        self.due = at + _STEP_BYTES
        self._progress(self._before + at, self._size)

    def done(self, size: int) -> None:
        """The present file is done, which has so many bytes."""
        self._before += size
        self.due = _STEP_BYTES
        self._progress(self._before, self._size)


def _check_complete(disk: Disk, base: int, needed: list[int], has_checkpoint: bool) -> None:
    """Every segment from the base on has to be there."""
    if not needed:
        if has_checkpoint:
            raise Damaged(disk.path(names.log(base)), 0, "it is missing")
        return
    for expected, number in enumerate(needed, base):
        if number != expected:
            raise Damaged(disk.path(names.log(expected)), 0, "it is missing, and later ones are there")


def _load(reader: CheckpointReader, target: Target, recovered: Recovered, meter: _Meter) -> None:
    target.begin_load(reader.header)
    for piece in reader:
        target.load(piece.keys, piece.values, piece.versions, piece.deadlines, piece.ephemeral, piece.wall)
        if reader.at >= meter.due:
            meter.tell(reader.at)
    meter.done(reader.size)
    assert reader.end is not None
    recovered.checkpoints[reader.header.number] = reader.end.version
    recovered.store_id = reader.header.store_id
    recovered.version = reader.header.version
    target.end_of_load(reader.end.version, reader.end.time)


def _check_other_checkpoints(disk: Disk, base: int, recovered: Recovered) -> None:
    """Those that are not needed today may be the base one day."""
    for number in names.checkpoint_numbers(disk.names()):
        if number != base:
            reader = CheckpointReader(disk, number)
            for _ in reader:
                pass
            assert reader.end is not None
            _check_store(reader, recovered)
            recovered.checkpoints[number] = reader.end.version
    _check_reached(disk, recovered)


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
    data = disk.read(name, recovered.tail_end)
    descriptor = disk.create(names.unfinished(name))
    try:
        disk.write(descriptor, data, 0)
        disk.sync(descriptor)
    finally:
        disk.close_file(descriptor)
    disk.rename(names.unfinished(name), name)
    disk.sync_directory()
