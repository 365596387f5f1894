"""Checkpoints: the current values in one file, written while writes go on.

A checkpoint is *fuzzy*. It begins with a new segment of the log, number n, and lists the keyspace part by part; what
changes meanwhile may be in it or not, but it is in the segments from n on in any case. Whoever loads it applies those
segments, passing over what the checkpoint already has newer. No fork, no pinned version, nobody waits:

        segment   … n-1 │ n ─────────── writes ─────────────▶
        checkpoint      ├─ part 0 ─ part 1 ─ … ─ part 64 ─┤ sync the log through here, sync, rename
                      begin                               end

It gets its name only when it and the log through its end are on the disk. (The idea of fuzzy checkpoints is that of
ARIES: C. Mohan et al., ACM TODS 17(1), 1992, with values in place of pages.)
"""

from collections.abc import Iterator
from typing import Protocol

from kvd.journal import names
from kvd.journal.disk import Disk
from kvd.journal.records import CHECKPOINT_MAGIC, Codec, End, Header, Heads
from kvd.store.heads import FORGOTTEN, Head

# Heads in one record, or bytes of keys and values if that is less: a slice of about a millisecond.
SLICE_KEYS = 250
SLICE_BYTES = 64 * 1024


class HeadsSource(Protocol):
    """What holds the current values: ``kvd.engine.database.Database``."""

    def parts(self) -> list[dict[str, Head]]:
        """All current heads, in dicts that are small enough to be listed in one step."""

    def record_of_values(self, heads: list[Head]) -> Heads:
        """The record of these heads, none of which is a tombstone."""


def slices(source: HeadsSource, slice_keys: int = SLICE_KEYS) -> Iterator[Heads]:
    """The current values in records of about a millisecond's work; ``source`` may change between two of them."""
    for part in source.parts():
        heads = list(part.values())
        begin = size = 0
        for number, head in enumerate(heads):
            size += len(_told(head) or b"")
            if number - begin + 1 >= slice_keys or size >= SLICE_BYTES:
                yield _record(source, heads[begin : number + 1])
                begin, size = number + 1, 0
        if begin < len(heads):
            yield _record(source, heads[begin:])


def _record(source: HeadsSource, heads: list[Head]) -> Heads:
    return source.record_of_values([head for head in heads if _told(head) is not None])


def _told(head: Head) -> bytes | None:
    """Its value, if there is one: what is forgotten was superseded since the listing, so the log has what came then."""
    return None if head.value is FORGOTTEN else head.value


class CheckpointFile:
    """A checkpoint that is being written; every method blocks and belongs into the worker. All raise OSError."""

    def __init__(self, disk: Disk, header: Header) -> None:
        self._disk = disk
        self._codec = Codec(header.salt)
        self._name = names.checkpoint(header.number)
        self._descriptor = disk.create(names.unfinished(self._name))
        self._at = 0
        self.keys = 0
        self._is_closed = False
        try:
            self._put(header.encode(CHECKPOINT_MAGIC))
        except OSError:
            self._close()
            raise

    def write(self, record: Heads) -> None:
        """One slice."""
        if record.keys:
            self.keys += len(record.keys)
            self._put(self._codec.encode(record))

    def finish(self, version: int, time: int) -> int:
        """Give it its name; its size. The log through ``version``, its newest, must be on the disk by now."""
        self._put(self._codec.encode(End(self.keys, version, time)))
        self._disk.sync(self._descriptor)
        self._close()
        self._disk.rename(names.unfinished(self._name), self._name)
        self._disk.sync_directory()
        return self._at

    def abandon(self) -> None:
        """Leave nothing of it, unless it has its name already: then it is whole."""
        self._close()
        if names.unfinished(self._name) in self._disk.names():
            self._disk.remove(names.unfinished(self._name))

    def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True  # whatever comes of it: the number may be another file's at once
            self._disk.close_file(self._descriptor)

    def _put(self, data: bytes) -> None:
        self._disk.write(self._descriptor, data, self._at)
        self._at += len(data)


def remove_superseded(disk: Disk, ends: dict[int, int], oldest_readable: int) -> list[str]:
    """Remove the files that neither the current values nor the history need; the names of those removed.

    ``ends`` has the version at which each checkpoint ended, by number. What is needed begins with the newest one that
    ended at or before ``oldest_readable``, since from its end on every version can be made again; if there is none,
    everything is needed.
    """
    enough = [number for number, version in ends.items() if version <= oldest_readable]
    if not enough:
        return []
    base = max(enough)
    found = disk.names()
    doomed = [names.checkpoint(number) for number in names.checkpoint_numbers(found) if number < base]
    doomed += [names.log(number) for number in names.log_numbers(found) if number < base]
    for name in doomed:
        # One by one, the checkpoints first: a crash must not leave a hole, which would look like a loss.
        disk.remove(name)
        disk.sync_directory()
    return doomed
