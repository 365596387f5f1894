"""The commit log: every commit is in it before any client learns of the commit.

The event loop *adds* groups of commits. A worker thread *writes* all groups that were added meanwhile, in one write and
one sync. So one sync serves all commits that were made during the last one (group commit):

        loop     add add ─ take ──── add add add ─── take ──── add …
        worker            write, sync ───────────────│ write, sync ──
                                     └▶ written, synced: replies may leave

Space is reserved before a commit is applied, so that a full disk refuses the commit and can never lose it. The next
segment, the *spare*, is allocated in advance, under an unfinished name. A full segment is synced before the next one is
written to, so only the last segment can have a torn tail. Once the next one is on the disk, the full one ends with its
number, so that a start notices if it is missing:

        sync the old one ─▶ begin the new one, with its name ─▶ note its number in the old one ─▶ write to the new one

On a full disk the log opens without any segment. Then every commit is refused until a spare can be allocated.

After the first error of a write or a sync it is unknown what is on the disk: from then on every call raises.
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
from kvd.journal.records import (
    HEADER_BYTES,
    LOG_MAGIC,
    Clock,
    Codec,
    Commits,
    Group,
    Header,
    Mark,
    Record,
    Successor,
)

_FULL = (errno.ENOSPC, errno.EDQUOT)
# The most that a group takes in addition to its keys and values, with a record of its own; and each key, and each id.
GROUP_BYTES = 320
# Groups share a record of up to about this size.
COMMITS_BYTES = 256 * 1024
KEY_BYTES = 48
ID_BYTES = 128
# The most that a mark takes, or the note of a successor. Each segment keeps space for one of them at its end.
MARK_BYTES = 32
# The most that the record of the clock takes.
CLOCK_BYTES = 320
# What a new segment holds in addition to commits: its header, the ceiling, the last mark.
_BESIDE_BYTES = HEADER_BYTES + 2 * MARK_BYTES
# No file: the log has no segment yet.
_NO_FILE = -1

Params = ParamSpec("Params")
Result = TypeVar("Result")


class Segment(msgspec.Struct, eq=False):
    """The file that is being written; ``at`` is the offset of the next record. ``descriptor`` may be _NO_FILE."""

    number: int
    descriptor: int
    codec: Codec
    at: int
    size: int

    @property
    def free_bytes(self) -> int:
        """The number of bytes that still fit before the last mark."""
        return self.size - self.at - MARK_BYTES


class Tail(msgspec.Struct, frozen=True):
    """The newest segment of an earlier run: its number, its salt, and its end."""

    number: int
    salt: int
    end: int


class Batch(msgspec.Struct, eq=False):
    """The groups of one write. ``version`` is the newest of them; ``sizes`` is what was reserved for each group."""

    groups: list[Group]
    sizes: list[int]
    version: int


def _final(
    call: "Callable[Concatenate[CommitLog, Params], Result]",
) -> "Callable[Concatenate[CommitLog, Params], Result]":
    """Make an OSError of ``call`` final: all later calls raise it again."""

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
    """Ignore how long a sync took."""


class CommitLog:
    """One log, open for writing. ``salt`` returns a random number of 64 bits; ``on_sync`` gets the seconds a sync took.

    ``header`` gives the number of the first segment and two versions: the last one in the log so far, and the last one
    that clients may have seen. ``tail`` is the segment before it, and ``clock`` returns what each segment keeps of the
    clock, if these are wanted. Raises OSError.
    """

    def __init__(
        self,
        disk: Disk,
        header: Header,
        segment_bytes: int,
        salt: Callable[[], int],
        on_sync: Callable[[float], None] = _ignore,
        *,
        tail: Tail | None = None,
        clock: Callable[[], Clock] | None = None,
    ) -> None:
        self._disk = disk
        self._store_id = header.store_id
        self._segment_bytes = segment_bytes
        self._salt = salt
        self._lock = Lock()  # over the spare and its number
        self._spare: tuple[int, int] | None = None  # descriptor and size
        self._spare_number = header.number
        self._pending: list[Group] = []
        self.pending = 0  # how many groups have been added and not taken
        self._sizes: list[int] = []
        self._outstanding_bytes = 0  # reserved and not yet written
        self.added = self.written = self.synced = header.watermark
        self._seen_before = header.version
        self.bytes = 0  # written since it was opened
        # Clients may see versions up to here before they are on the disk. After a crash the next version is above it.
        self.ceiling = 0
        self.error: OSError | None = None
        self._on_sync = on_sync
        self._clock = clock
        self._beside_bytes = _BESIDE_BYTES + (0 if clock is None else CLOCK_BYTES)
        self._segment = Segment(header.number - 1, _NO_FILE, Codec(0), 0, 0)
        self._tail = tail
        self._make_spare_if_possible()
        if self._spare is not None:
            self._segment = self._begin()
            self._note_successor_of_tail()
            self._make_spare_if_possible()

    @property
    def number(self) -> int:
        """The number of the segment that is being written."""
        return self._segment.number

    @property
    def has_segment(self) -> bool:
        """Whether there is a segment to write to; on a full disk there is none until the first commit finds space."""
        return self._segment.descriptor != _NO_FILE

    def is_in_place(self) -> bool:
        """Return whether the segment that is written is still in the directory. Only while the worker does nothing."""
        segment = self._segment
        return not self.has_segment or self._disk.is_named(segment.descriptor, names.log(segment.number))

    # ------------------------------------------------------------------ in the loop

    def reserve(self, size: int) -> None:
        """Make sure that another record of up to ``size`` bytes fits. Raises NoSpace."""
        wanted, segment = self._outstanding_bytes + size, self._segment
        if wanted > segment.size - segment.at - MARK_BYTES and wanted > self._spare_bytes():
            with self._lock:  # in the loop: more is waiting than a segment holds, or the disk may have space again
                self._grow_spare(max(self._segment_bytes, wanted + self._beside_bytes))

    def add(self, group: Group, size: int) -> None:
        """Add a group, for which ``size`` bytes were reserved."""
        self._pending.append(group)
        self.pending += 1
        self._sizes.append(size)
        self._outstanding_bytes += size
        self.added = group.version + group.commits - 1

    @property
    def outstanding_bytes(self) -> int:
        """The most bytes that the groups take that were added and not written yet."""
        return self._outstanding_bytes

    def group_of(self, version: int) -> Group:
        """Return the group that has this version, one of the last to be added; an id may still be put into it."""
        return next(group for group in reversed(self._pending) if group.version <= version)

    def take(self) -> Batch | None:
        """Take the groups that were added since the last call; None if there are none."""
        if not self._pending:
            return None
        batch = Batch(self._pending, self._sizes, self.added)
        self._pending, self._sizes, self.pending = [], [], 0
        return batch

    def fits_now(self) -> bool:
        """Whether all added groups fit into the segment that is being written."""
        return self._outstanding_bytes <= self._segment.free_bytes

    def release(self, batch: Batch) -> None:
        """Release what was reserved for a batch, after it was written."""
        self._outstanding_bytes -= sum(batch.sizes)

    # ------------------------------------------------------------------ in the worker, one call at a time

    @_final
    def write(self, batch: Batch, *, sync: bool) -> None:
        """Write a batch, and wait for the disk if ``sync``.

        Raises OSError: then no commit may be acknowledged from now on.
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
            except NoSpace:  # nothing was reserved for this record, so it must fit after those with a reservation
                self._append(self._segment.codec.encode(record))
            self.written = groups[-1].version + groups[-1].commits - 1

    def _put(self, record: Record) -> None:
        segment = self._segment
        encoded = segment.codec.encode(record)
        if len(encoded) > segment.size - segment.at - MARK_BYTES:
            self.rotate()
            encoded = self._segment.codec.encode(record)
        self._append(encoded)

    def _append(self, encoded: bytes) -> None:
        self._disk.write(self._segment.descriptor, encoded, self._segment.at)
        self._segment.at += len(encoded)
        self.bytes += len(encoded)

    @_final
    def sync(self) -> None:
        """Wait until everything that was written is on the disk. Raises OSError."""
        written = self.written
        if self._segment.descriptor != _NO_FILE:
            self._sync_file(self._segment.descriptor)
        self.synced = written

    def _sync_file(self, descriptor: int) -> None:
        began = perf_counter()
        self._disk.sync(descriptor)
        self._on_sync(perf_counter() - began)

    @_final
    def raise_ceiling(self, version: int) -> None:
        """Allow clients to see versions up to this one before they are on the disk. Raises NoSpace, OSError."""
        self._put(Mark(self.synced, version, False))
        self.sync()
        self.ceiling = version

    @_final
    def mark(self) -> None:
        """Vouch for what is on the disk, if there is space, so that its loss would be noticed. Raises OSError."""
        if self._segment.free_bytes >= MARK_BYTES:
            self._put(Mark(self.synced, self.ceiling, False))
            self.sync()

    @_final
    def rotate(self) -> int:
        """Begin a new segment, after syncing the old one and cutting it to its size; return the new number.

        Raises NoSpace, with nothing changed, and OSError.
        """
        with self._lock:
            self._grow_spare(self._segment_bytes)
        self.sync()
        old, self._segment = self._segment, self._begin()
        if old.descriptor == _NO_FILE:
            self._note_successor_of_tail()
        else:
            self._note_successor(old)
        self._make_spare_if_possible()
        return self._segment.number

    def _note_successor(self, old: Segment) -> None:
        """End ``old`` with the number of the segment that is being written, and close it."""
        note = old.codec.encode(Successor(self.synced, self._segment.number))
        self._disk.write(old.descriptor, note, old.at)
        old.at += len(note)
        self._end(old)

    def _end(self, old: Segment) -> None:
        """Cut ``old`` to its records, sync and close it."""
        self._disk.truncate(old.descriptor, old.at)
        self._sync_file(old.descriptor)
        self._disk.close_file(old.descriptor)

    def _note_successor_of_tail(self) -> None:
        """Note the first segment in the one before it, of an earlier run. On a full disk it may have no such note."""
        tail, self._tail = self._tail, None
        if tail is None:
            return
        descriptor = self._disk.reopen(names.log(tail.number))
        old = Segment(tail.number, descriptor, Codec(tail.salt), tail.end, tail.end)
        try:
            self._disk.allocate(descriptor, old.at + MARK_BYTES)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._end(old)
        else:
            self._note_successor(old)

    @_final
    def close(self) -> None:
        """Sync everything, and end the log with a clean mark. Raises OSError."""
        self.sync()  # before the mark that says so can be read
        if self._segment.descriptor != _NO_FILE:
            self._append(self._segment.codec.encode(Mark(self.written, self.written, True)))
            self._disk.truncate(self._segment.descriptor, self._segment.at)
            self.sync()
            self._disk.close_file(self._segment.descriptor)
        if self._spare is not None:
            self._disk.close_file(self._spare[0])
            self._disk.remove(names.unfinished(names.log(self._spare_number)))

    # ------------------------------------------------------------------ segments

    def _begin(self) -> Segment:
        """Make the spare the segment: it gets its name only when its header and ceiling are on the disk."""
        with self._lock:
            assert self._spare is not None
            (descriptor, size), number = self._spare, self._spare_number
            self._spare, self._spare_number = None, number + 1
        header = Header(self._salt(), number, max(self._seen_before, self.written), self.written, self._store_id)
        codec = Codec(header.salt)
        ceiling = codec.encode(Mark(self.synced, self.ceiling, False)) if self.ceiling else b""
        clock = codec.encode(self._clock()) if self._clock is not None else b""
        self._disk.write(descriptor, header.encode(LOG_MAGIC) + ceiling + clock, 0)
        self._sync_file(descriptor)
        self._disk.rename(names.unfinished(names.log(number)), names.log(number))
        self._disk.sync_directory()
        return Segment(number, descriptor, codec, HEADER_BYTES + len(ceiling) + len(clock), size)

    def _make_spare_if_possible(self) -> None:
        """Make a spare, unless the disk is full: then a full segment refuses commits, and each of them tries again."""
        with self._lock:
            try:
                self._grow_spare(self._segment_bytes)
            except NoSpace:
                pass

    def _grow_spare(self, size: int) -> None:
        """Make sure that the spare has at least ``size`` bytes; the caller holds the lock. Raises NoSpace."""
        try:
            if self._spare is None:
                self._spare = self._new_spare(size)
            elif self._spare[1] < size:
                self._disk.allocate(self._spare[0], size)
                self._spare = self._spare[0], size
        except OSError as error:
            why = "no space left in" if error.errno in _FULL else f"{error.strerror}: cannot allocate space in"
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
        return 0 if spare is None else spare[1] - self._beside_bytes


def _in_records(batch: Batch) -> Iterator[list[Group]]:
    """Yield the groups of a batch that share a record; groups with one reservation always do."""
    groups: list[Group] = []
    size = 0
    for group, group_size in zip(batch.groups, batch.sizes, strict=True):
        if groups and group_size and size + group_size > COMMITS_BYTES:
            yield groups
            groups, size = [], 0
        groups.append(group)
        size += group_size
    yield groups
