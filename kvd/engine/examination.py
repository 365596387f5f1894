"""What is in a data directory, and what could be saved of a damaged one. Nothing here writes.

Damage is not the end of everything behind it: a later checkpoint may have been written when all was well, and the log
goes on from there. So what can be saved is looked for from each place where one may begin:

        base 1        ─ 1.log ─ 2.log ─ ✗            reaches the damage, with all history
        base 3        3.checkpoint ─ 3.log ─ 4.log   reaches the end: the values are all there, history from here on

The base that reaches the latest version is the one to save, of several the one with the most history.
"""

import msgspec

from kvd.engine.replay import Replay
from kvd.journal import names
from kvd.journal.disk import Disk
from kvd.journal.errors import Damaged
from kvd.journal.records import Group, Header
from kvd.journal.recovery import Progress, Recovered, bases, follow, recover
from kvd.journal.segments import CheckpointReader, SegmentReader


class Extent(msgspec.Struct):
    """How far one gets from ``base``: from version ``first`` (all of it can be made again) to ``version``.

    Times in µs since the epoch, 0 where no commit tells one. ``damage`` is what ends it; None at the end of the log.
    """

    base: int
    first: int = 0
    first_time: int = 0
    version: int = 0
    time: int = 0
    damage: Damaged | None = None
    usable: bool = False


class CheckReport(msgspec.Struct):
    """What a directory holds. ``damages``: the first of each damaged file; empty if a daemon would start on it.

    ``newest_known`` is the newest version that anything in it speaks of, ``saved`` what salvage would keep.
    """

    recovered: Recovered | None
    keys: int
    time: int
    damages: list[Damaged]
    newest_known: int
    saved: Extent | None


class _Measure:
    """Is told what a directory holds (``recovery.Target``), and only notes how far that goes."""

    def __init__(self, reach: Extent) -> None:
        self._reach = reach

    def begin_load(self, header: Header) -> None:
        """Nothing to note."""

    def load(self, *piece: object) -> None:
        """Nothing to note."""

    def end_of_load(self, version: int, time: int) -> None:
        self._reach.first, self._reach.first_time = version, time

    def begin_segment(self, header: Header, *, is_first: bool) -> None:
        self._note(header.watermark, 0)

    def replay(self, group: Group) -> None:
        self._note(group.version + group.commits - 1, group.time)

    def _note(self, version: int, time: int) -> None:
        reach = self._reach
        reach.version = max(reach.version, version)
        reach.time = max(reach.time, time)
        reach.usable = version >= reach.first  # before that, the checkpoint has some of what is missing here

    def end_of_replay(self, version: int) -> None:
        """Nothing to note."""


def measure(disk: Disk, base: int) -> Extent:
    """How far one gets from ``base``. Raises NewerFormat, OSError."""
    reach = Extent(base)
    try:
        follow(disk, base, _Measure(reach))
    except Damaged as error:
        reach.damage = error
    reach.time = max(reach.time, reach.first_time)
    return reach


def reaches(disk: Disk) -> list[Extent]:
    """How far one gets from each base that is of any use. Raises NewerFormat, OSError."""
    return [reach for base in bases(disk.names()) if (reach := measure(disk, base)).usable]


def furthest(found: list[Extent]) -> Extent | None:
    """The one with the latest version, of several the one with the most history."""
    return max(found, key=lambda reach: (reach.version, -reach.base), default=None)


def examine(disk: Disk, progress: Progress = lambda done, size: None) -> CheckReport:
    """Look at everything. Raises NewerFormat, Unfinished, OSError."""
    contents = Replay()
    try:
        recovered = recover(disk, contents, progress)
    except Damaged as error:
        damages, newest_known = _survey(disk)
        damages = [error, *(each for each in damages if each.path != error.path)]
        return CheckReport(None, 0, 0, damages, newest_known, furthest(reaches(disk)))
    return CheckReport(recovered, contents.count_keys(), contents.store.time, [], recovered.version, None)


def _survey(disk: Disk) -> tuple[list[Damaged], int]:
    """The first damage within each file by itself, and the newest version that any of them speaks of."""
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
        segment = SegmentReader(disk, number)
        try:
            for _ in segment:
                pass
        except Damaged as error:
            damages.append(error)
        return segment.newest_known()
    return 0
