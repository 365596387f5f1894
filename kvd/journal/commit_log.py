"""The commit log: where every commit goes before anybody hears of it.

The event loop *adds* groups of commits; a worker thread *writes* whatever has been added meanwhile, in one write and
one sync. So one sync serves all commits that came while the last one ran (group commit):

        loop     add add ─ take ──── add add add ─── take ──── add …
        worker            write, sync ───────────────│ write, sync ──
                                     └▶ written, synced: replies may leave

Room is reserved before a commit is applied, so that a full disk refuses it and can never lose it: the next segment,
the *spare*, is allocated ahead, under an unfinished name. A segment that is full is synced before anything goes to the
next one, so only the last can have a torn tail.

After the first error of a write or a sync nobody knows what is on the disk: from then on every call raises.
"""

import errno
from collections.abc import Callable, Iterator
from functools import wraps
from threading import Lock
from time import perf_counter
from typing import Concatenate, ParamSpec, TypeVar

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
# A mark takes no more. Each segment keeps room for one at its end, the last word of a clean stop.
MARK_BYTES = 32
# What a new segment has beside commits: its header, the ceiling, the last mark.
_BESIDE_BYTES = HEADER_BYTES + 2 * MARK_BYTES

Params = ParamSpec("Params")
Result = TypeVar("Result")


class Segment(msgspec.Struct, eq=False):
    """The file that is written to; ``at`` is where the next record goes."""

    number: int
    descriptor: int
    codec: Codec
    at: int
    size: int

    @property
    def room(self) -> int:
        """How many bytes still fit, before the last mark."""
        return self.size - self.at - MARK_BYTES


class Batch(msgspec.Struct, eq=False):
    """What is written in one go. ``version`` is the newest in it; ``sizes`` is what was reserved for each group."""

    groups: list[Group]
    sizes: list[int]
    version: int


def _final(
    call: "Callable[Concatenate[CommitLog, Params], Result]",
) -> "Callable[Concatenate[CommitLog, Params], Result]":
    """Make an OSError of ``call`` the log's end: it is raised again by all that follow."""

    @wraps(call)
    def checked(self: "CommitLog", /, *args: Params.args, **kwargs: Params.kwargs) -> Result:
        if self.error is not None:
            raise OSError(self.error.errno, f"{self.error.strerror}, earlier")
        try:
            return call(self, *args, **kwargs)
        except OSError as error:
            self.error = error
            raise

    return checked


def _ignore(seconds: float) -> None:
    """Do nothing with how long a sync took."""


class CommitLog:
    """One log, open for writing. ``salt`` gives a random number of 64 bits; ``on_sync`` gets the seconds a sync took.

    ``header`` says which segment is the first, and which versions are behind it: the last one in the log, and the last
    one that may have been given away. Raises OSError.
    """

    def __init__(
        self,
        disk: Disk,
        header: Header,
        segment_bytes: int,
        salt: Callable[[], int],
        on_sync: Callable[[float], None] = _ignore,
    ) -> None:
        self._disk = disk
        self._store_id = header.store_id
        self._segment_bytes = segment_bytes
        self._salt = salt
        self._lock = Lock()  # over the spare and its number
        self._spare: tuple[int, int] | None = None  # descriptor and size
        self._spare_number = header.number
        self._pending: list[Group] = []
        self._sizes: list[int] = []
        self._outstanding_bytes = 0  # reserved and not yet written
        self.added = self.written = self.synced = header.watermark
        self._given_before = header.version
        self.bytes = 0  # written since it was opened
        # Versions up to here may be given away before they are on the disk: after a crash the next goes behind it.
        self.ceiling = 0
        self.error: OSError | None = None
        self._on_sync = on_sync
        self._spare = self._new_spare(segment_bytes)
        self._segment = self._begin()
        self._make_spare_if_possible()

    @property
    def number(self) -> int:
        """The segment that is written to."""
        return self._segment.number

    # ------------------------------------------------------------------ in the loop

    def reserve(self, size: int) -> None:
        """Make sure that a record of up to ``size`` bytes fits. Raises NoSpace."""
        wanted = self._outstanding_bytes + size
        if wanted > self._segment.room and wanted > self._spare_bytes():
            with self._lock:  # in the loop: more waits than a segment holds, or space may have come back
                self._grow_spare(max(self._segment_bytes, wanted + _BESIDE_BYTES))

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
    def outstanding_bytes(self) -> int:
        """The most that what has been added and not written yet takes."""
        return self._outstanding_bytes

    def group_of(self, version: int) -> Group:
        """The group that has this version, which was added last or nearly so; an id may still be put into it."""
        return next(group for group in reversed(self._pending) if group.version <= version)

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

    @_final
    def write(self, batch: Batch, *, sync: bool) -> None:
        """Write a batch, and wait for the disk if ``sync``.

        Raises OSError: then nothing may be acknowledged any more.
        """
        if sum(batch.sizes) <= COMMITS_BYTES:
            self._write_record(batch.groups)
        else:
            for groups in _in_records(batch):
                self._write_record(groups)
        if sync:
            self.sync()

    def _write_record(self, groups: list[Group]) -> None:
        if groups:
            record = Commits(self.synced, groups)
            try:
                self._put(record)
            except NoSpace:  # it was not reserved for; so it has to fit behind what was
                self._append(self._segment.codec.encode(record))
            self.written = groups[-1].version + groups[-1].commits - 1

    def _put(self, record: Record) -> None:
        encoded = self._segment.codec.encode(record)
        if len(encoded) > self._segment.room:
            self.rotate()
            encoded = self._segment.codec.encode(record)
        self._append(encoded)

    def _append(self, encoded: bytes) -> None:
        self._disk.write(self._segment.descriptor, encoded, self._segment.at)
        self._segment.at += len(encoded)
        self.bytes += len(encoded)

    @_final
    def sync(self) -> None:
        """Wait until all that was written is on the disk. Raises OSError."""
        written = self.written
        self._sync_file(self._segment.descriptor)
        self.synced = written

    def _sync_file(self, descriptor: int) -> None:
        began = perf_counter()
        self._disk.sync(descriptor)
        self._on_sync(perf_counter() - began)

    @_final
    def raise_ceiling(self, version: int) -> None:
        """Allow versions up to this one to be given away before they are on the disk. Raises NoSpace, OSError."""
        self._put(Mark(self.synced, version, False))
        self.sync()
        self.ceiling = version

    @_final
    def mark(self) -> None:
        """Vouch for what is on the disk, so that its loss would be noticed; if there is room. Raises OSError."""
        if self._segment.room >= MARK_BYTES:
            self._put(Mark(self.synced, self.ceiling, False))
            self.sync()

    @_final
    def rotate(self) -> int:
        """Go on in a new segment, the old one synced and cut to its size; the new one's number.

        Raises NoSpace, with nothing changed, and OSError.
        """
        with self._lock:
            self._grow_spare(self._segment_bytes)
        old = self._segment
        self._disk.truncate(old.descriptor, old.at)
        self._sync_file(old.descriptor)
        self.synced = self.written
        self._segment = self._begin()
        self._disk.close_file(old.descriptor)
        self._make_spare_if_possible()
        return self._segment.number

    @_final
    def close(self) -> None:
        """The last word: all is on the disk, and nothing follows. Raises OSError."""
        self.sync()  # before anybody can read the mark that says so
        self._append(self._segment.codec.encode(Mark(self.written, self.written, True)))
        self._disk.truncate(self._segment.descriptor, self._segment.at)
        self.sync()
        self._disk.close_file(self._segment.descriptor)
        if self._spare is not None:
            self._disk.close_file(self._spare[0])
            self._disk.remove(names.unfinished(names.log(self._spare_number)))

    # ------------------------------------------------------------------ segments

    def _begin(self) -> Segment:
        """Make the spare the segment: it gets its name only when all it has to begin with is on the disk."""
        with self._lock:
            assert self._spare is not None
            (descriptor, size), number = self._spare, self._spare_number
            self._spare, self._spare_number = None, number + 1
        header = Header(self._salt(), number, max(self._given_before, self.written), self.written, self._store_id)
        codec = Codec(header.salt)
        ceiling = codec.encode(Mark(self.synced, self.ceiling, False)) if self.ceiling else b""
        self._disk.write(descriptor, header.encode(LOG_MAGIC) + ceiling, 0)
        self._sync_file(descriptor)
        self._disk.rename(names.unfinished(names.log(number)), names.log(number))
        self._disk.sync_directory()
        return Segment(number, descriptor, codec, HEADER_BYTES + len(ceiling), size)

    def _make_spare_if_possible(self) -> None:
        """Without one, commits are refused when the segment is full; each of them tries again."""
        with self._lock:
            try:
                self._grow_spare(self._segment_bytes)
            except NoSpace:
                pass

    def _grow_spare(self, size: int) -> None:
        """See that the spare has at least ``size`` bytes; whoever calls holds the lock. Raises NoSpace."""
        try:
            if self._spare is None:
                self._spare = self._new_spare(size)
            elif self._spare[1] < size:
                self._disk.allocate(self._spare[0], size)
                self._spare = self._spare[0], size
        except OSError as error:
            why = "no space left in" if error.errno in _FULL else f"{error.strerror}: no room can be made in"
            raise NoSpace(f"{why} {self._disk.directory}; nothing was written") from error

    def _new_spare(self, size: int) -> tuple[int, int]:
        name = names.unfinished(names.log(self._spare_number))
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
        return 0 if spare is None else spare[1] - _BESIDE_BYTES


def _in_records(batch: Batch) -> Iterator[list[Group]]:
    """The groups of a batch, as many together as share a record; those reserved for together always do."""
    groups: list[Group] = []
    size = 0
    for group, group_size in zip(batch.groups, batch.sizes, strict=True):
        if groups and group_size and size + group_size > COMMITS_BYTES:
            yield groups
            groups, size = [], 0
        groups.append(group)
        size += group_size
    yield groups
