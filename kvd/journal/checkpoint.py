"""Checkpoints: the current values in one file, written while writes go on.

A checkpoint is *fuzzy*. It begins with a new segment of the log, number n, and lists the keyspace part by part. A
change that is made meanwhile may be in the checkpoint or not, but it is always in the segments from n on. Recovery
loads the checkpoint and applies those segments, and skips writes of which the checkpoint has a newer version. No fork,
no pinned version, and no client waits:

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

# A record ends after this number of heads or of bytes of values: a slice of about a millisecond.
SLICE_KEYS = 250
SLICE_BYTES = 64 * 1024


class HeadsSource(Protocol):
    """Where the current values come from: ``kvd.engine.database.Database``."""

    def parts(self) -> list[dict[str, Head]]:
        """Return all current heads, in dicts that are small enough to be listed in one step."""

    def record_of_values(self, heads: list[Head]) -> Heads:
        """Return the record of these heads, none of which is a tombstone."""


def slices(source: HeadsSource, slice_keys: int = SLICE_KEYS) -> Iterator[Heads]:
    """Yield the current values in records of about a millisecond's work; ``source`` may change between two of them."""
    for part in source.parts():
        heads = list(part.values())
        begin = size = 0
        for number, head in enumerate(heads):
            size += len(_value_of(head) or b"")
            if number - begin + 1 >= slice_keys or size >= SLICE_BYTES:
                yield _record(source, heads[begin : number + 1])
                begin, size = number + 1, 0
        if begin < len(heads):
            yield _record(source, heads[begin:])


def _record(source: HeadsSource, heads: list[Head]) -> Heads:
    return source.record_of_values([head for head in heads if _value_of(head) is not None])


def _value_of(head: Head) -> bytes | None:
    """Return the head's value, or None. A forgotten one was superseded since the listing: the log has the newer one."""
    return None if head.value is FORGOTTEN else head.value


class CheckpointFile:
    """A checkpoint that is being written. Every method blocks, so call it in the worker thread; all raise OSError."""

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
        """Write one slice."""
        if record.keys:
            self.keys += len(record.keys)
            self._put(self._codec.encode(record))

    def finish(self, version: int, time: int) -> int:
        """Give the file its name; return its size. Sync the log through ``version``, its newest, before this call."""
        self._put(self._codec.encode(End(self.keys, version, time)))
        self._disk.sync(self._descriptor)
        self._close()
        self._disk.rename(names.unfinished(self._name), self._name)
        self._disk.sync_directory()
        return self._at

    def abandon(self) -> None:
        """Remove the file, unless it has its name already: then it is complete."""
        self._close()
        if names.unfinished(self._name) in self._disk.names():
            self._disk.remove(names.unfinished(self._name))

    def _close(self) -> None:
        if not self._is_closed:
            self._is_closed = True  # even if closing fails: another file may get the number at once
            self._disk.close_file(self._descriptor)

    def _put(self, data: bytes) -> None:
        self._disk.write(self._descriptor, data, self._at)
        self._at += len(data)


def remove_superseded(disk: Disk, ends: dict[int, int], oldest_readable: int) -> list[str]:
    """Remove the files that neither the current values nor the history need; return their names.

    ``ends`` has the version at which each checkpoint ended, by number. The newest checkpoint that ended at or before
    ``oldest_readable`` and everything after it are needed, because every version from its end on can be recovered from
    them. If there is no such checkpoint, all files are needed.
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
