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

**In steps.** A read set may have 65,536 keys, or a range of all keys. Then the validation is done in steps
(``kvd/store/steps.py``), with other commits between them, and in the step of the commit only what these have changed is
looked at. Of a range both ways are gone together, a step each, until the shorter one is at its end.

What it does *not* do: no transaction waits, and none is woken. A transaction that conflicts starts again from the
beginning, so under heavy contention on one key use `increment`, or a lock. After H. T. Kung and J. T. Robinson, *On
Optimistic Methods for Concurrency Control*, ACM TODS 6(2), 1981: backward validation, serial.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING

from kvd.store.errors import Change, Conflict, SnapshotGone
from kvd.store.following import Commits, Following
from kvd.store.heads import Head
from kvd.store.steps import STEP_KEYS, Steps, slices

if TYPE_CHECKING:
    from kvd.store.store import Store

Range = tuple[str, str | None]

# A conflict names at most this many keys, and at most this many characters of them.
MAX_CHANGES = 100
MAX_CHARACTERS = 4_096
# To find what was read of changed keys, at most this many links to older versions are followed.
MAX_LINKS = 32_768
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
        raise _conflict(store, list(changed), reads, snapshot)


class Validation:
    """As ``validate``, in steps. It is a context, in which the store notes its commits for it."""

    def __init__(self, store: "Store", reads: Mapping[str, int], ranges: list[Range], snapshot: int) -> None:
        self._store = store
        self._reads = reads
        self._ranges = ranges
        self._snapshot = snapshot
        self._merged: list[Range] = []
        self._starts: list[str] = []
        self._changed: dict[str, None] = {}  # in the ranges
        self._commits = Commits(store)
        self._following = Following[int](store, self._take, _versions_of)

    def __enter__(self) -> "Validation":
        self._commits.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._commits.__exit__()

    def run(self) -> Steps[None]:
        """Look at all that was read. Raises SnapshotGone, VersionAhead."""
        if self._ranges:
            self._store.check_readable(self._snapshot)
            yield from self._merge_ranges()
            ways = self._through_commits(), self._through_keys()
            while all(next(way, True) is None for way in ways):
                yield
        yield from self._following.find(self._reads)

    def check(self) -> None:
        """Return if nothing that was read has changed up to now. Raises Conflict, SnapshotGone."""
        store, reads = self._store, self._reads
        self._following.catch_up()
        versions = self._following.found
        changed = (
            {} if versions == reads else dict.fromkeys(key for key, seen in reads.items() if versions[key] != seen)
        )
        if self._ranges:
            store.check_readable(self._snapshot)
            changed |= self._changed
        if changed:
            raise _conflict(store, list(changed), reads, self._snapshot)

    def _take(self) -> Iterator[Head]:
        for head in self._commits.take():
            if self._merged:
                self._note(head)
            yield head

    def _note(self, head: Head) -> None:
        if head.version > self._snapshot and _within(head.key, self._merged, self._starts):
            self._changed[head.key] = None

    def _merge_ranges(self) -> Steps[None]:
        sorted_ = []
        for some in slices(self._ranges):
            sorted_.append(sorted(some, key=_start))
            yield
        ordered = merge(*sorted_, key=_start)
        merged: list[Range] = []
        while some := list(islice(ordered, STEP_KEYS)):
            merged = _merged_into(merged, some)
            yield
        self._merged, self._starts = merged, [start for start, _ in merged]

    def _through_commits(self) -> Iterator[None]:
        """Look at the commits since the snapshot that were made before, newest first."""
        window, visited = self._store.window, 0
        number = window.next_number - 1
        while (group := window.numbered(number)) is not None and group.heads[-1].version > self._snapshot:
            for some in slices(group.heads):
                for head in some:
                    self._note(head)
                if len(self._changed) >= MAX_CHANGES:
                    return
                visited += len(some)
                if visited >= STEP_KEYS:
                    visited = 0
                    yield
            number -= 1

    def _through_keys(self) -> Iterator[None]:
        """Look at the keys of the ranges. A key that comes meanwhile is noted by its commit."""
        store, visited = self._store, 0
        for start, end in self._merged:
            following: str | None = start
            while following is not None:
                keys = list(islice(store.keys_between(following, end), STEP_KEYS))
                for head in store.find_all(keys):
                    if head is not None and head.version > self._snapshot:
                        self._changed[head.key] = None
                if len(self._changed) >= MAX_CHANGES:
                    return
                following = keys[-1] + "\0" if len(keys) == STEP_KEYS else None
                visited += 8 + len(keys)
                if visited >= STEP_KEYS:
                    visited = 0
                    yield


def _start(range_: Range) -> str:
    return range_[0]


def _versions_of(heads: Sequence[Head | None]) -> list[int]:
    return list(map(version_of, heads))


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
    return _merged_into([], sorted(ranges, key=_start))


def _merged_into(merged: list[Range], ranges: Sequence[Range]) -> list[Range]:
    """Add ``ranges``, which are in order, to those that were merged before."""
    for start, end in ranges:
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


def _conflict(store: "Store", changed: list[str], reads: Mapping[str, int], snapshot: int) -> Conflict:
    links = iter(range(MAX_LINKS))
    return Conflict([_change(store, key, reads, snapshot, links) for key in _bounded(changed)])


def _change(store: "Store", key: str, reads: Mapping[str, int], snapshot: int, links: Iterator[int]) -> Change:
    head = store.find(key)
    group = None if head is None else store.window.group_of(head.version)
    found = version_of(head)
    expected = reads.get(key, found)
    if expected == found:  # the key as it was read is unchanged, but it changed within a range
        expected = _seen(store, head, snapshot, links)
    when, who = (None, None) if group is None else (group.time, group.author)
    return Change(key, expected, found, when, who)


def _seen(store: "Store", head: Head | None, snapshot: int, links: Iterator[int]) -> int:
    """The version that a reader at ``snapshot`` saw; the snapshot itself if there are no ``links`` left to find it."""
    try:
        store.check_readable(snapshot)
    except SnapshotGone:
        return 0
    while head is not None and head.version > snapshot:
        if next(links, None) is None:
            return snapshot
        head = head.previous
    return version_of(head)
