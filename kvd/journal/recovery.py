"""Recovery: from the files of a data directory to the store as it was.

1. Load the oldest checkpoint that is kept: approximately the values as of its end. As long as the very first segment
   exists, the history reaches back to the beginning and no checkpoint is needed.
2. Apply the segments from its number on, in order. Up to the checkpoint's end, apply only writes that are newer than
   the loaded values. After it, apply commit by commit, so that history, authors and idempotency ids come back too.
3. Leave out a torn tail. Any other fault raises, and nothing was changed.

Only ``prepare_tail`` writes: it makes the recovered commits durable before the daemon serves any client.
"""

import gc
from collections.abc import Callable
from typing import Protocol

import msgspec

from kvd.journal import names
from kvd.journal.disk import Disk
from kvd.journal.errors import Damaged, Unfinished
from kvd.journal.records import Clock, Group, Header
from kvd.journal.segments import CheckpointReader, SegmentReader, TornTail

Progress = Callable[[int, int], None]  # bytes done, bytes in all
# Progress is reported each time this number of bytes more has been done.
_STEP_BYTES = 1024 * 1024


class Target(Protocol):
    """What receives the contents of a directory: ``kvd.engine.replay.Replay``, or a copy (``kvd/engine/copying.py``).

    First a checkpoint, if there is one: ``begin_load``, ``load`` for each of its pieces, ``end_of_load``. Then the
    segments.
    """

    def begin_load(self, header: Header) -> None:
        """Begin a checkpoint."""

    def load(
        self,
        keys: list[str],
        values: list[bytes],
        versions: list[int],
        deadlines: dict[str, int] | None,
        ephemeral: list[str] | None,
        wall: int | None,
    ) -> None:
        """Load a piece of the checkpoint."""

    def end_of_load(self, version: int, time: int) -> None:
        """End the checkpoint, which ended at ``version``: it may contain commits up to there that follow in the log."""

    def begin_segment(self, header: Header, *, is_first: bool) -> None:
        """Begin a segment, from which the next groups come."""

    def note_clock(self, record: Clock) -> None:
        """Note how the clock went when the segment was begun."""

    def replay(self, group: Group) -> None:
        """Apply the next commits. Raises ValueError if they cannot have been made after what came before."""

    def end_of_replay(self, version: int) -> None:
        """End the recovery; no later commit may get a version at or before ``version``."""


class Recovered(msgspec.Struct):
    """The result of a recovery.

    ``number`` is that of the newest segment, 0 without any, and ``salt`` its salt. Clients may have seen versions up to
    ``ceiling``.
    """

    store_id: bytes = b""
    number: int = 0
    salt: int = 0
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
    # Nothing that is made here is garbage, and repeated garbage collections take a fifth of the time.
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
    """Return where a recovery can begin, the most history first: the first segment, or checkpoints, by number."""
    segments, checkpoints = names.log_numbers(found), names.checkpoint_numbers(found)
    return checkpoints if checkpoints and 1 not in segments else sorted({1, *checkpoints})


def follow(disk: Disk, base: int, target: Target, progress: Progress = lambda done, size: None) -> Recovered:
    """Give ``target`` everything from ``base`` on, but not ``end_of_replay``. Raises Damaged, NewerFormat, OSError."""
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
        reader = SegmentReader(disk, number, is_last=number == needed[-1])
        _check_follows(reader, recovered)
        target.begin_segment(reader.header, is_first=number == base)
        _read_segment(reader, target, recovered, meter)
        _note(disk, reader, recovered, is_last=number == needed[-1])
        meter.end_file(reader.size)
    _check_reached(disk, recovered)
    return recovered


def _read_segment(reader: SegmentReader, target: Target, recovered: Recovered, meter: "_Meter") -> None:
    for record in reader:
        if isinstance(record, Clock):
            target.note_clock(record)
            continue
        try:
            target.replay(record)
        except ValueError as error:
            raise Damaged(reader.path, reader.end, f"version {record.version} cannot be right: {error}") from None
        recovered.version = record.version + record.commits - 1
        recovered.commits += record.commits
        if reader.end >= meter.due:
            meter.report(reader.end)


class _Meter:
    """Reports progress. ``due`` is the byte of the current file at which the next report is due."""

    def __init__(self, progress: Progress, size: int) -> None:
        self._progress = progress
        self._size = size
        self._before = 0
        self.due = _STEP_BYTES

    def report(self, at: int) -> None:
        """Report that the recovery is at this byte of the current file."""
        self.due = at + _STEP_BYTES
        self._progress(self._before + at, self._size)

    def end_file(self, size: int) -> None:
        """Report that the current file, of ``size`` bytes, is done."""
        self._before += size
        self.due = _STEP_BYTES
        self._progress(self._before, self._size)


def _check_complete(disk: Disk, base: int, needed: list[int], has_checkpoint: bool) -> None:
    """Check that no segment from the base on is missing."""
    if not needed:
        if has_checkpoint:
            raise Damaged(disk.path(names.log(base)), 0, "the file is missing")
        return
    for expected, number in enumerate(needed, base):
        if number != expected:
            raise Damaged(disk.path(names.log(expected)), 0, "the file is missing, but later segments exist")


def _load(reader: CheckpointReader, target: Target, recovered: Recovered, meter: _Meter) -> None:
    target.begin_load(reader.header)
    for piece in reader:
        target.load(piece.keys, piece.values, piece.versions, piece.deadlines, piece.ephemeral, piece.wall)
        if reader.at >= meter.due:
            meter.report(reader.at)
    meter.end_file(reader.size)
    assert reader.end is not None
    recovered.checkpoints[reader.header.number] = reader.end.version
    recovered.store_id = reader.header.store_id
    recovered.version = reader.header.version
    target.end_of_load(reader.end.version, reader.end.time)


def _check_other_checkpoints(disk: Disk, base: int, recovered: Recovered) -> None:
    """Check the checkpoints that this recovery does not need: they may be the base of a later one."""
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
    """Check that the log reaches the end of each checkpoint, as it did when the checkpoint got its name."""
    for number, version in recovered.checkpoints.items():
        if version > recovered.version:
            text = f"it ends at version {recovered.version}, but {names.checkpoint(number)} ends at {version}"
            raise Damaged(disk.path(names.log(recovered.number)), recovered.tail_end, text)


def _check_follows(reader: SegmentReader, recovered: Recovered) -> None:
    header = reader.header
    _check_store(reader, recovered)
    if recovered.number and header.watermark != recovered.version:
        text = f"it begins after version {header.watermark}, but the segment before it ends at {recovered.version}"
        raise Damaged(reader.path, 0, text)
    recovered.version = max(recovered.version, header.watermark)


def _note(disk: Disk, reader: SegmentReader, recovered: Recovered, *, is_last: bool) -> None:
    if reader.torn is not None and not is_last:
        raise Damaged(reader.torn.path, reader.torn.offset, "it is torn, but later segments exist")
    if is_last and reader.successor:
        text = f"the file is missing, but {names.log(reader.header.number)} says that it was begun"
        raise Damaged(disk.path(names.log(reader.successor)), 0, text)
    recovered.number, recovered.salt = reader.header.number, reader.header.salt
    # Each segment repeats which versions clients may have seen when it was begun.
    recovered.ceiling = reader.ceiling
    recovered.clean, recovered.torn, recovered.tail_end = reader.clean, reader.torn, reader.end
    recovered.log_bytes += reader.end


def prepare_tail(disk: Disk, recovered: Recovered) -> None:
    """Make the commits that were recovered from the newest segment durable, before serving clients. Raises OSError.

    After a crash the segment's pages in memory may hold data that never reached the disk, and after a failed sync they
    may even be lost later. So the segment is copied, synced, and replaced by the copy. Unfinished files are removed.
    """
    for name in disk.names():
        if names.is_unfinished(name):
            disk.remove(name)
    if not recovered.number or recovered.clean:
        return
    name = names.log(recovered.number)
    data = disk.read(name, recovered.tail_end)
    _give_back_unused(disk, name, recovered.tail_end)
    descriptor = disk.create(names.unfinished(name))
    try:
        disk.write(descriptor, data, 0)
        disk.sync(descriptor)
    finally:
        disk.close_file(descriptor)
    disk.rename(names.unfinished(name), name)
    disk.sync_directory()


def _give_back_unused(disk: Disk, name: str, end: int) -> None:
    """Cut a segment to its records, so that a full disk has space for its copy. Only a torn tail is beyond them."""
    descriptor = disk.reopen(name)
    try:
        disk.truncate(descriptor, end)
    finally:
        disk.close_file(descriptor)
