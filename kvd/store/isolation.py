"""The commit rule: strict serializability, by optimistic validation.

**The rule.** A transaction reads at one version, its snapshot, and keeps its writes to itself. Its commit brings what
it read: each key with the version it saw (0 for a key that was not there), each range with the snapshot. The commit
happens if every key still has that version and nothing in the ranges has changed since the snapshot. Then it takes
the next version, all at once; otherwise nothing happens and the conflict names what changed.

        version      5        6         7          8
        A        snapshot 5 ─ reads x@3 ─────────── commit {y}, read {x: 3}
        B                 commit {z} ─ commit {x}
                                          ╰── x is at 7 now, not at 3: A conflicts and reads again

**Why that is serializable.** Commits run one at a time, in the order of their versions. At the moment of its commit
all that a transaction has read is still as it read it, so it is as if it had done all its reading at that moment too:
the order of versions is a serial order with the same outcome. A transaction that writes nothing is serialized at its
snapshot. Validating what was *read*, and not only what was written, is what forbids write skew: two doctors who each
see the other on call and sign off, one key each, both read both keys, so the second commit conflicts. A blind write
has read nothing and never conflicts.

**Why it is strict.** A version is taken between the commit's request and its reply, and a snapshot is the newest
version at the time of `begin`. So whoever starts after another's reply sees that commit.

**Ranges and phantoms.** A key that appeared in a range read, changed in it or was deleted from it has a head newer
than the snapshot, for tombstones stay until no readable version is older than they are. There are two ways to find
such a head, and the shorter one is gone: through the commits since the snapshot, which few transactions outlive by
many, or through the keys of the range. A range read at a snapshot that has left the history cannot be judged:
SnapshotGone.

**A key gone and come back** as absent (read as 0, set and deleted meanwhile) is no conflict: the value read is the
value at commit. For a key that is there, the version tells, not the value. In a range it is a conflict: what changed
in one is told by its heads, and one of them is newer than the snapshot.

What it does *not* do: nobody waits and nobody is woken; a transaction that loses tries again from its beginning, so
under heavy contention on one key use `increment`, or a lock. After H. T. Kung and J. T. Robinson, *On Optimistic
Methods for Concurrency Control*, ACM TODS 6(2), 1981: backward validation, serial.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from kvd.store.errors import Conflict, SnapshotGone
from kvd.store.heads import Head

if TYPE_CHECKING:
    from kvd.store.authors import Author
    from kvd.store.store import Store

Range = tuple[str, str | None]

# A conflict names no more keys than this, nor more characters of them.
MAX_CHANGES = 100
MAX_CHARACTERS = 4_096
# Commits since the snapshot are looked through up to so many keys; then the keys of the range are.
COMMITTED_KEYS = 4_096


class Change(msgspec.Struct, array_like=True, frozen=True):
    """One reason for a conflict: the version that was read and the one there is now, 0 for absent.

    ``time`` (µs since the epoch) and ``author`` are those of the key's last change, None where it has left the history.
    """

    key: str
    expected: int
    found: int
    time: int | None
    author: "Author | None"


def validate(store: "Store", reads: Mapping[str, int], ranges: list[Range], snapshot: int) -> None:
    """Return if nothing of what was read has changed. Raises Conflict, SnapshotGone, VersionAhead."""
    changed = dict.fromkeys(key for key, seen in reads.items() if version_of(store.find(key)) != seen)
    if ranges:
        store.check_readable(snapshot)
        # Also keys that were read by themselves as they are now: a range has one snapshot, and they are newer.
        changed |= dict.fromkeys(head.key for head in _changed_in(store, ranges, snapshot))
    if changed:
        raise Conflict([_change(store, key, reads, snapshot) for key in _bounded(list(changed))])


def version_of(head: Head | None) -> int:
    """The version that a reader of ``head`` sees: 0 for what is not there."""
    return 0 if head is None or head.value is None else head.version


def _changed_in(store: "Store", ranges: list[Range], snapshot: int) -> Iterator[Head]:
    """Current heads newer than ``snapshot`` within ``ranges``: none if there are none, else at least one."""
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
    """The same keys in ranges that do not meet, in order: however many a commit brings, no key is looked at twice."""
    merged: list[Range] = []
    for start, end in sorted(ranges, key=lambda range_: range_[0]):
        if merged and (last := merged[-1][1]) is None:
            break  # it goes on to the end
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
    room = MAX_CHARACTERS
    for key in keys[:MAX_CHANGES]:
        yield key
        room -= len(key)
        if room <= 0:
            return


def _change(store: "Store", key: str, reads: Mapping[str, int], snapshot: int) -> Change:
    head = store.find(key)
    group = None if head is None else store.window.group_of(head.version)
    found = version_of(head)
    expected = reads.get(key, found)
    if expected == found:  # not what was read of the key, but its range has changed
        expected = _seen(store, head, snapshot)
    when, who = (None, None) if group is None else (group.time, group.author)
    return Change(key, expected, found, when, who)


def _seen(store: "Store", head: Head | None, snapshot: int) -> int:
    try:
        store.check_readable(snapshot)
    except SnapshotGone:
        return 0
    return version_of(None if head is None else head.at(snapshot))
