"""Reads of the past: the versions of a key, and the commits, as far back as the history window reaches."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from kvd.store.authors import Author
from kvd.store.heads import FORGOTTEN, Head, head_at
from kvd.store.steps import Steps, run_to_end

if TYPE_CHECKING:
    from kvd.store.store import Store
    from kvd.store.window import Group

# What a version counts in addition to its value, so that a page of tombstones ends too.
_VERSION_BYTES = 64
# One page of the log names at most this many keys, unless a single commit has more.
LOG_KEYS = 65_536


class Version(msgspec.Struct, array_like=True, frozen=True):
    """One version of a key; ``value`` is None where it was deleted. Time in µs since the epoch.

    Time and author are None where the commit has left the history.
    """

    version: int
    value: bytes | None
    time: int | None
    author: Author | None


class Commit(msgspec.Struct, array_like=True, frozen=True):
    """One commit, with the keys that it wrote or deleted."""

    version: int
    time: int
    author: Author
    keys: list[str]


def versions(store: "Store", key: str, limit: int, before: int | None, max_bytes: int) -> list[Version]:
    """As ``versions_in_steps``, at once."""
    return run_to_end(versions_in_steps(store, key, limit, before, max_bytes))


def versions_in_steps(store: "Store", key: str, limit: int, before: int | None, max_bytes: int) -> Steps[list[Version]]:
    """Return the versions of ``key`` below ``before`` (None: all), newest first, up to about ``max_bytes`` of them.

    The list ends before the first version whose value is no longer known.
    """
    head = store.find(key)
    if before is not None and head is not None:
        head = yield from head_at(head, before - 1)
    found: list[Version] = []
    while head is not None and head.value is not FORGOTTEN and len(found) < limit and max_bytes > 0:
        group = store.window.group_of(head.version)
        when, who = (None, None) if group is None else (group.time, group.author)
        found.append(Version(head.version, head.value, when, who))
        max_bytes -= len(head.value or b"") + _VERSION_BYTES
        head = head.previous
    return found


def commits_from(store: "Store", version: int, limit: int, max_bytes: int) -> list[Commit]:
    """Return the commits from ``version`` on, oldest first. Raises SnapshotGone if one of them has left the history."""
    commits = (commit for commit in _commits_since(store, version - 1) if commit[1] >= version)
    return _page(commits, limit, max_bytes)


def newest_commits(store: "Store", limit: int, max_bytes: int, before: int | None = None) -> list[Commit]:
    """Return the newest commits below version ``before`` (None: of all), the oldest of them first."""
    below = before if before is not None else store.version + 1
    commits = (
        (group, version, heads)
        for group in store.window.newest(below)
        for version, heads in reversed(list(group.each()))
        if version < below
    )
    return _page(commits, limit, max_bytes)[::-1]


def _commits_since(store: "Store", version: int) -> "Iterator[tuple[Group, int, tuple[Head, ...]]]":
    for group in store.window.since(max(version, 0)):
        for commit in group.each():
            yield group, *commit


def _page(commits: "Iterator[tuple[Group, int, tuple[Head, ...]]]", limit: int, max_bytes: int) -> list[Commit]:
    page: list[Commit] = []
    remaining_keys = LOG_KEYS
    for group, version, heads in islice(commits, limit):
        if page and (len(heads) > remaining_keys or max_bytes <= 0):
            break
        keys = [head.key for head in heads]
        page.append(Commit(version, group.time, group.author, keys))
        remaining_keys -= len(keys)
        max_bytes -= sum(map(len, keys)) + _VERSION_BYTES
    return page
