"""What strict serializability says, taken at its word: is there an order in which it could all have happened?

Tries every order of a small history, so it is right by inspection, and useless for large ones: the judge of the
checkers that are quick (`test_search.py`).
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from tests.histories.list_append import Txn

Lists = dict[str, list[Any]]


def is_strictly_serializable(history: Sequence[Txn]) -> bool:
    """Whether all that committed, and some of what may have, could have run one by one in an order real time allows."""
    committed = [txn for txn in history if txn.ok is True]
    unknown = [txn for txn in history if txn.ok is None]
    chosen = (some for count in range(len(unknown) + 1) for some in combinations(unknown, count))
    return any(_has_order([*committed, *some], {}) for some in chosen)


def _has_order(left: list[Txn], lists: Lists) -> bool:
    if not left:
        return True
    for at, txn in enumerate(left):
        if any(_ended_before(other, txn) for other in left):
            continue
        after = _run(txn, lists)
        if after is not None and _has_order(left[:at] + left[at + 1 :], after):
            return True
    return False


def _ended_before(other: Txn, txn: Txn) -> bool:
    return other.ok is True and other.end is not None and other.end < txn.start


def _run(txn: Txn, lists: Lists) -> Lists | None:
    """The lists after ``txn``; None if it read something else. What one of unknown outcome read is not trusted."""
    after = {key: list(values) for key, values in lists.items()}
    for kind, key, value in txn.ops:
        if kind == "append":
            after.setdefault(key, []).append(value)
        elif txn.ok and value != after.get(key, []):
            return None
    return after


def reads_of(history: Sequence[Txn]) -> Iterator[tuple[int, int]]:
    """(transaction, place) of each read of a committed transaction."""
    for number, txn in enumerate(history):
        yield from ((number, at) for at, op in enumerate(txn.ops) if op[0] == "r" and txn.ok is True)
