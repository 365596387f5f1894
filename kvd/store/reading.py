"""Reads of many keys, and of keys with very many versions, in steps (``steps.py``).

What is read now is exact at the end (``following.py``); what is read at a version is the same in each step, as long as
the version can be read. A chain of versions is walked LINKS at a time.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from kvd.store.errors import SnapshotGone
from kvd.store.following import Commits, Following
from kvd.store.heads import FORGOTTEN, Head, head_at
from kvd.store.steps import Steps, chunks

if TYPE_CHECKING:
    from kvd.store.store import Store

# Value, version and deadline, as ``Store.fetch`` gives them.
Row = tuple[bytes | None, int, int | None]
ABSENT: Row = None, 0, None


def values(store: "Store", keys: list[str], at: int | None) -> Steps[list[bytes | None]]:
    """Return the values of ``keys`` as ``Store.get_many`` does. Raises SnapshotGone, VersionAhead."""
    if at is not None:
        heads = yield from heads_at(store, keys, at)
        found = {key: None if head is None else head.value for key, head in heads.items()}
    else:
        with Commits(store) as commits:
            following = Following[bytes | None](store, commits.take, _values)
            yield from following.find(dict.fromkeys(keys))
            found = following.found
    return list(map(found.__getitem__, keys))


def rows(store: "Store", keys: list[str], at: int | None) -> Steps[list[Row]]:
    """Return the rows of ``keys`` as ``Store.fetch`` does. Raises SnapshotGone, VersionAhead."""
    if at is not None:
        heads = yield from heads_at(store, keys, at)
        found = {
            key: ABSENT if head is None or head.value is None else (head.value, head.version, None)
            for key, head in heads.items()
        }
    else:
        lifetimes = store.lifetimes

        def pick(heads: Sequence[Head | None]) -> list[Row]:
            deadlines = lifetimes.deadlines_of(["" if head is None else head.key for head in heads])
            return [
                ABSENT if head is None or head.value is None else (head.value, head.version, deadline)
                for head, deadline in zip(heads, deadlines, strict=True)
            ]

        with Commits(store) as commits:
            following = Following[Row](store, commits.take, pick)
            yield from following.find(dict.fromkeys(keys))
            found = following.found
    return list(map(found.__getitem__, keys))


def heads_at(store: "Store", keys: Iterable[str], at: int) -> Steps[dict[str, Head | None]]:
    """Return each key's head of version ``at``, whose value is known. Raises SnapshotGone, VersionAhead."""
    found: dict[str, Head | None] = {}
    for chunk in chunks(dict.fromkeys(keys)):
        store.check_readable(at)
        for key, newest in zip(chunk, store.find_all(chunk), strict=True):
            found[key] = yield from head_at(newest, at)
        yield
    store.check_readable(at)
    for key, head in found.items():
        if head is not None and head.value is FORGOTTEN:
            newest = store.find(key)
            raise SnapshotGone(at, store.version if newest is None else newest.known_since(), key)
    return found


def _values(heads: Sequence[Head | None]) -> list[bytes | None]:
    return [None if head is None else head.value for head in heads]
