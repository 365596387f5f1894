"""The commit rule: strict serializability, by optimistic validation.

**The rule.** A transaction reads at one version, its snapshot, and buffers its writes. Its commit request carries its
read set: each key with the version that was read (0 for an absent key), each range with the snapshot. The commit
succeeds if every key still has that version and nothing in the ranges has changed since the snapshot. Then all writes
take the next version at once. Otherwise nothing happens, and the conflict names what changed.

        version      5        6         7          8
        A        snapshot 5 ─ reads x@3 ─────────── commit {y}, read {x: 3}
        B                 commit {z} ─ commit {x}
                                          ╰── x is at 7 now, not at 3: A conflicts and reads again

**Why that is serializable.** Commits run one at a time, in the order of their versions. When a transaction commits,
everything in its read set is unchanged, so it might as well have read all of it at that moment. Hence the order of
versions is a serial order with the same outcome. A transaction that writes nothing is serialized at its snapshot.
Validating the *read* set, and not only the write set, forbids write skew: two doctors each see the other on call and
sign off, each writing one key. Both have read both keys, so the second commit conflicts. A blind write has read nothing
and never conflicts.

**Why it is strict.** A commit takes its version between its request and its reply, and a snapshot is the newest version
at the time of `begin`. So a transaction that starts after another one's reply sees that commit.

**Ranges and phantoms.** A key that was added to a range, changed in it or deleted from it has a head newer than the
snapshot, because tombstones stay until no readable version is older than they are. Validation finds such a head in one
of two ways, and takes the shorter one: it visits the commits since the snapshot, of which there are few for most
transactions, or the keys of the range. A range that was read at a snapshot that has left the history cannot be
validated: SnapshotGone.

**A key that was absent, was set, and is deleted again** is no conflict if it was read by itself: it was read as 0, and
is 0 at the commit. For a key that exists, the version decides, not the value. In a range the same key is a conflict:
there the heads decide, and one of them is newer than the snapshot.

What it does *not* do: no transaction waits, and none is woken. A transaction that conflicts starts again from the
beginning, so under heavy contention on one key use `increment`, or a lock. After H. T. Kung and J. T. Robinson, *On
Optimistic Methods for Concurrency Control*, ACM TODS 6(2), 1981: backward validation, serial.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING

from kvd.store.errors import Change, Conflict, SnapshotGone
from kvd.store.heads import Head

if TYPE_CHECKING:
    from kvd.store.store import Store

Range = tuple[str, str | None]

# A conflict names at most this many keys, and at most this many characters of them.
MAX_CHANGES = 100
MAX_CHARACTERS = 4_096
# Validation visits the commits since the snapshot if they wrote fewer keys than this; otherwise the keys of the ranges.
COMMITTED_KEYS = 4_096


def validate(store: "Store", reads: Mapping[str, int], ranges: list[Range], snapshot: int) -> None:
    """Return if nothing that was read has changed. Raises Conflict, SnapshotGone, VersionAhead."""
    changed = dict.fromkeys(key for key, seen in reads.items() if version_of(store.find(key)) != seen)
    if ranges:
        store.check_readable(snapshot)
        # Including keys that were read by themselves at their current version: it is newer than the range's snapshot.
        changed |= dict.fromkeys(head.key for head in _changed_in(store, ranges, snapshot))
    if changed:
        raise Conflict([_change(store, key, reads, snapshot) for key in _bounded(list(changed))])


def version_of(head: Head | None) -> int:
    """Return the version that a reader of ``head`` sees: 0 for an absent key."""
    return 0 if head is None or head.value is None else head.version


def _changed_in(store: "Store", ranges: list[Range], snapshot: int) -> Iterator[Head]:
    """Yield current heads newer than ``snapshot`` within ``ranges``: at least one, if there is any."""
    ranges = _merged(ranges)
    starts = [start for start, _ in ranges]
    committed = list(islice(_committed_since(store, snapshot), COMMITTED_KEYS))
    if len(committed) < COMMITTED_KEYS:
        heads: Iterable[Head] = {head.key: head for head in committed}.values()
        return (head for head in heads if _within(head.key, ranges, starts))
    found = (store.find(key) for start, end in ranges for key in store.keys_between(start, end))
    return islice((head for head in found if head is not None and head.version > snapshot), MAX_CHANGES)


def _committed_since(store: "Store", snapshot: int) -> Iterator[Head]:
    for group in store.window.newest():
        if group.heads[-1].version <= snapshot:
            return
        yield from (head for head in group.heads if head.version > snapshot)


def _merged(ranges: list[Range]) -> list[Range]:
    """Return ranges of the same keys that do not overlap, in order, so that no key is visited twice."""
    merged: list[Range] = []
    for start, end in sorted(ranges, key=lambda range_: range_[0]):
        if merged and (last := merged[-1][1]) is None:
            break  # the last range has no end
        if merged and last is not None and start <= last:
            if end is None or end > last:
                merged[-1] = merged[-1][0], end
        else:
            merged.append((start, end))
    return merged


def _within(key: str, merged: list[Range], starts: list[str]) -> bool:
    place = bisect_right(starts, key) - 1
    if place < 0:
        return False
    end = merged[place][1]
    return end is None or key < end


def _bounded(keys: list[str]) -> Iterator[str]:
    remaining = MAX_CHARACTERS
    for key in keys[:MAX_CHANGES]:
        yield key
        remaining -= len(key)
        if remaining <= 0:
            return


def _change(store: "Store", key: str, reads: Mapping[str, int], snapshot: int) -> Change:
    head = store.find(key)
    group = None if head is None else store.window.group_of(head.version)
    found = version_of(head)
    expected = reads.get(key, found)
    if expected == found:  # the key as it was read is unchanged, but it changed within a range
        expected = _seen(store, head, snapshot)
    when, who = (None, None) if group is None else (group.time, group.author)
    return Change(key, expected, found, when, who)


def _seen(store: "Store", head: Head | None, snapshot: int) -> int:
    try:
        store.check_readable(snapshot)
    except SnapshotGone:
        return 0
    return version_of(None if head is None else head.at(snapshot))
