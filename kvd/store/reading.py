"""Reads of many keys, and of keys with very many versions, in steps (``steps.py``).

What is read now is exact at the end (``following.py``); what is read at a version is the same in each step, as long as
the version can be read. A chain of versions is walked LINKS at a time.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from kvd.store.errors import SnapshotGone
from kvd.store.following import Commits, Following
from kvd.store.heads import FORGOTTEN, Head, head_at
from kvd.store.steps import Steps, chunks

if TYPE_CHECKING:
    from kvd.store.store import Store

Found = TypeVar("Found")
# Value, version and deadline, as ``Store.fetch`` gives them.
Row = tuple[bytes | None, int, int | None]
ABSENT: Row = None, 0, None


def values(store: "Store", keys: list[str], at: int | None) -> Steps[list[bytes | None]]:
    """Return the values of ``keys`` as ``Store.get_many`` does. Raises SnapshotGone, VersionAhead."""
    return _read(store, keys, at, _values)


def rows(store: "Store", keys: list[str], at: int | None) -> Steps[list[Row]]:
    """Return the rows of ``keys`` as ``Store.fetch`` does. Raises SnapshotGone, VersionAhead."""
    lifetimes = store.lifetimes

    def pick(heads: Sequence[Head | None]) -> list[Row]:
        deadlines: list[int | None] = [None] * len(heads)
        if at is None:
            deadlines = lifetimes.deadlines_of(["" if head is None else head.key for head in heads])
        return [
            ABSENT if head is None or head.value is None else (head.value, head.version, deadline)
            for head, deadline in zip(heads, deadlines, strict=True)
        ]

    return _read(store, keys, at, pick)


def _read(
    store: "Store", keys: list[str], at: int | None, pick: Callable[[Sequence[Head | None]], list[Found]]
) -> Steps[list[Found]]:
    distinct = dict.fromkeys(keys)
    if at is not None:
        found = yield from _read_at(store, distinct, at, pick)
    else:
        with Commits(store) as commits:
            following = Following[Found](store, commits.take, pick)
            yield from following.find(distinct)
            found = following.found
    return list(map(found.__getitem__, keys))


def _read_at(
    store: "Store", keys: Iterable[str], at: int, pick: Callable[[Sequence[Head | None]], list[Found]]
) -> Steps[dict[str, Found]]:
    found: dict[str, Found] = {}
    for chunk in chunks(keys):
        store.check_readable(at)
        heads: list[Head | None] = []
        for newest in store.find_all(chunk):
            head = yield from head_at(newest, at)
            if newest is not None and head is not None and head.value is FORGOTTEN:
                raise SnapshotGone(at, newest.known_since(), newest.key)
            heads.append(head)
        store.check_readable(at)
        found.update(zip(chunk, pick(heads), strict=True))
        yield
    return found


def _values(heads: Sequence[Head | None]) -> list[bytes | None]:
    return [None if head is None else head.value for head in heads]
