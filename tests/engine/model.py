"""A plain model, with which the database must agree: a dict for each version, and a list of commits."""

from collections import Counter
from typing import NamedTuple

from kvd.store.authors import EXPIRED, NO_AUTHOR, Author
from kvd.store.errors import Change
from kvd.store.isolation import Range

# What one version looked like: key → (value, version that wrote it).
Snapshot = dict[str, tuple[bytes, int]]
Writes = dict[str, bytes | None]


class Committed(NamedTuple):
    time: int
    author: Author
    writes: Writes


class Gone(Exception):
    """The version has left the history."""


class Unknown(Exception):
    """The id may have been forgotten."""


def within(key: str, range_: Range) -> bool:
    return range_[0] <= key and (range_[1] is None or key < range_[1])


class Model:
    """A database that forgets nothing; ``oldest`` says what the real one may have forgotten."""

    def __init__(self, remembered_writes: int) -> None:
        self.snapshots: list[Snapshot] = [{}]
        self.commits = [Committed(0, NO_AUTHOR, {})]
        self.deadlines: dict[str, int] = {}
        self.owners: dict[str, str] = {}
        self.remembered_writes = remembered_writes
        self.outcomes: list[tuple[int, tuple[object, bytes], object]] = []
        self.forgotten = 0
        self.time = 0
        self.oldest = 0
        self.forgotten_values: set[tuple[str, int]] = set()  # key, and the version that wrote it
        self.counts: Counter[str] = Counter()

    @property
    def version(self) -> int:
        return len(self.snapshots) - 1

    @property
    def live(self) -> Snapshot:
        return self.snapshots[-1]

    # ------------------------------------------------------------------ writing

    def advance(self, wall_us: int) -> None:
        self.time = max(self.time, wall_us)

    def commit(self, writes: Writes, author: Author) -> int:
        """Apply a commit to the values; return its version."""
        if writes:
            version = self.version + 1
            after = {key: item for key, item in self.live.items() if key not in writes}
            after |= {key: (value, version) for key, value in writes.items() if value is not None}
            self.snapshots.append(after)
            self.commits.append(Committed(self.time, author, dict(writes)))
            stored = sum(value is not None for value in writes.values())
            self.counts["set"] += stored
            self.counts["delete"] += (len(writes) - stored) * (author is not EXPIRED)
        return self.version

    def write(self, writes: Writes, author: Author, deadline: int | None, keep: bool, owner: str | None) -> int:
        """Apply a commit that ignores missing keys to the values and to the expiries; return its version."""
        for key, value in writes.items():
            kept = value is not None and keep and key in self.live
            if not kept:
                self.end(key)
                if value is not None and deadline is not None:
                    self.deadlines[key] = deadline
            if value is not None and owner is not None:
                self.owners[key] = owner
        return self.commit({key: v for key, v in writes.items() if v is not None or key in self.live}, author)

    def touch(self, keys: list[str], deadline: int | None, author: Author) -> list[bool]:
        found = {key: self.live[key][0] for key in keys if key in self.live}
        for key in found:
            self.deadlines.pop(key, None)
            if deadline is not None:
                self.deadlines[key] = deadline
        self.commit(dict(found), author)
        return [key in found for key in keys]

    def end(self, key: str) -> None:
        self.deadlines.pop(key, None)
        self.owners.pop(key, None)

    # ------------------------------------------------------------------ exactly once

    def find(self, who: tuple[object, bytes], since: int | None) -> object | None:
        """Return the answer of the write with this id; None if the write may be done. Raises Unknown."""
        for _, known, answer in self.outcomes:
            if known == who:
                return answer
        if since is not None and not self.forgotten <= since <= self.version:
            raise Unknown
        return None

    def remember(self, who: tuple[object, bytes], version: int, answer: object) -> None:
        self.outcomes.append((version, who, answer))
        if len(self.outcomes) > self.remembered_writes:
            self.forgotten = self.outcomes.pop(0)[0]

    # ------------------------------------------------------------------ looking back

    def seen(self, key: str, version: int) -> int:
        """Return the version of ``key`` that a read at ``version`` sees: 0 if it is absent."""
        return self.snapshots[version].get(key, (b"", 0))[1]

    def is_forgotten(self, key: str, version: int) -> bool:
        """Whether the value that a read at ``version`` would see has been forgotten."""
        return (key, self.seen(key, version)) in self.forgotten_values

    def superseded(self, key: str, version: int) -> int:
        """Return the version that replaced what ``version`` wrote under ``key``."""
        return min(later for later in self.changed(key) if later > version)

    def changed(self, key: str) -> list[int]:
        """Return the versions that wrote or deleted ``key``, newest first."""
        return [version for version in range(self.version, 0, -1) if key in self.commits[version].writes]

    def origin(self, version: int) -> tuple[int | None, Author | None]:
        """Return time and author of a commit; None, None if it has left the history."""
        commit = self.commits[version]
        return (commit.time, commit.author) if version > self.oldest else (None, None)

    def version_at(self, time: int) -> int:
        if time < self.commits[self.oldest].time:
            raise Gone
        return max(v for v in range(self.oldest, self.version + 1) if self.commits[v].time <= time or v == self.oldest)

    # ------------------------------------------------------------------ the commit rule, by brute force

    def conflicts(self, reads: dict[str, int], ranges: list[Range], snapshot: int) -> dict[str, Change]:
        """Return the changes that refuse a commit with these reads. Raises Gone."""
        keys = [key for key, seen in reads.items() if self.seen(key, self.version) != seen]
        if ranges:
            if snapshot < self.oldest:
                raise Gone
            written = {key for commit in self.commits[snapshot + 1 :] for key in commit.writes}
            keys += [key for key in written if any(within(key, range_) for range_ in ranges)]
        return {key: self._change(key, reads, snapshot) for key in keys}

    def _change(self, key: str, reads: dict[str, int], snapshot: int) -> Change:
        found = self.seen(key, self.version)
        expected = reads.get(key, found)
        if expected == found:
            expected = self.seen(key, snapshot)
        changed = self.changed(key)
        when, who = self.origin(changed[0]) if changed else (None, None)
        return Change(key, expected, found, when, who)
