"""What a data directory holds, and how much of a damaged one can be saved. Nothing here writes.

Data after the damage is not lost: a later checkpoint may have been written before the damage, and the log goes on from
there. So the extent of what can be saved is measured from each base, which is a place where a recovery may begin:

        base 1        ─ 1.log ─ 2.log ─ ✗            reaches the damage, with all history
        base 3        3.checkpoint ─ 3.log ─ 4.log   reaches the end: all values are there, history from here on

The base that reaches the latest version is the best. Of several such bases, the one with the most history is.
"""

import msgspec

from kvd.engine.replay import Replay
from kvd.journal import names
from kvd.journal.disk import Disk
from kvd.journal.errors import Damaged
from kvd.journal.records import Clock, Group, Header
from kvd.journal.recovery import Progress, Recovered, bases, follow, recover
from kvd.journal.segments import CheckpointReader, SegmentReader


class Extent(msgspec.Struct):
    """How far a recovery from ``base`` gets: from version ``first``, which it has completely, to ``version``.

    Times are µs since the epoch, 0 if no commit has one. ``began`` is the first commit after ``first``, as version and
    time. ``clock_set``: the newest version after which the clock was set, and the time that it was set to. ``damage``
    is what ends it; None at the end of the log.
    """

    base: int
    first: int = 0
    first_time: int = 0
    version: int = 0
    time: int = 0
    began: tuple[int, int] = (0, 0)
    clock_set: tuple[int, int] = (0, 0)
    damage: Damaged | None = None
    usable: bool = False


class CheckReport(msgspec.Struct):
    """What a directory holds. ``damages``: the first of each damaged file; empty if a daemon would start on it.

    ``newest_known`` is the newest version that any file mentions, ``saved`` what salvage would keep.
    """

    recovered: Recovered | None
    keys: int
    time: int
    damages: list[Damaged]
    newest_known: int
    saved: Extent | None


class _ExtentProbe:
    """Takes in a directory (as ``recovery.Target``), and notes in ``extent`` only how far that goes."""

    def __init__(self, extent: Extent) -> None:
        self._extent = extent

    def begin_load(self, header: Header) -> None:
        """Note nothing."""

    def load(self, *piece: object) -> None:
        """Note nothing."""

    def end_of_load(self, version: int, time: int) -> None:
        self._extent.first, self._extent.first_time = version, time

    def begin_segment(self, header: Header, *, is_first: bool) -> None:
        self._note(header.watermark, 0)

    def note_clock(self, record: Clock) -> None:
        for version, time, _ in record.steps:
            self._note_step(version, time)

    def replay(self, group: Group) -> None:
        extent = self._extent
        if group.step is not None:
            self._note_step(group.version - 1, group.time)
        if not extent.began[0] and group.version > extent.first:
            extent.began = group.version, group.time
        self._note(group.version + group.commits - 1, group.time)

    def _note_step(self, version: int, time: int) -> None:
        if version > self._extent.clock_set[0]:
            self._extent.clock_set = version, time
            self._extent.time = 0

    def _note(self, version: int, time: int) -> None:
        extent = self._extent
        extent.version = max(extent.version, version)
        extent.time = max(extent.time, time)
        extent.usable = version >= extent.first  # before that, some of the checkpoint is newer than the log

    def end_of_replay(self, version: int) -> None:
        """Note nothing."""


def measure_extent(disk: Disk, base: int) -> Extent:
    """Return how far a recovery from ``base`` gets. Raises NewerFormat, OSError."""
    extent = Extent(base)
    try:
        follow(disk, base, _ExtentProbe(extent))
    except Damaged as error:
        extent.damage = error
    if extent.version <= extent.first:
        extent.time = max(extent.time, extent.first_time)
    return extent


def usable_extents(disk: Disk) -> list[Extent]:
    """Return how far a recovery gets from each base that is of any use. Raises NewerFormat, OSError."""
    return [extent for base in bases(disk.names()) if (extent := measure_extent(disk, base)).usable]


def best_extent(extents: list[Extent]) -> Extent | None:
    """Return the extent with the latest version, and of several such ones the one with the most history."""
    return max(extents, key=lambda extent: (extent.version, -extent.base), default=None)


def examine(disk: Disk, progress: Progress = lambda done, size: None) -> CheckReport:
    """Read and check everything. Raises NewerFormat, Unfinished, OSError."""
    contents = Replay()
    try:
        recovered = recover(disk, contents, progress)
    except Damaged as error:
        damages, newest_known = _survey(disk)
        damages = [error, *(each for each in damages if each.path != error.path)]
        return CheckReport(None, 0, 0, damages, newest_known, best_extent(usable_extents(disk)))
    return CheckReport(recovered, contents.count_lasting_keys(), contents.store.time, [], recovered.version, None)


def _survey(disk: Disk) -> tuple[list[Damaged], int]:
    """Return the first damage within each file by itself, and the newest version that any file mentions."""
    damages: list[Damaged] = []
    newest = 0
    for name in disk.names():
        try:
            newest = max(newest, _newest_in(disk, name, damages))
        except Damaged as error:
            damages.append(error)
    return damages, newest


def _newest_in(disk: Disk, name: str, damages: list[Damaged]) -> int:
    for number in names.checkpoint_numbers([name]):
        checkpoint = CheckpointReader(disk, number)
        for _ in checkpoint:
            pass
        return 0 if checkpoint.end is None else checkpoint.end.version
    for number in names.log_numbers([name]):
        segment = SegmentReader(disk, number, is_last=number == max(names.log_numbers(disk.names())))
        try:
            for _ in segment:
                pass
        except Damaged as error:
            damages.append(error)
        return segment.newest_known()
    return 0
