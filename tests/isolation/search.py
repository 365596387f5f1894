"""Strict serializability by its definition: is there an order in which all transactions could have run?

The search tries every order of a small history. So it is evidently correct, but useless for large histories. It serves
to judge the fast checkers (`test_search.py`).
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from tests.histories.list_append import Txn

Lists = dict[str, list[Any]]


def is_strictly_serializable(history: Sequence[Txn]) -> bool:
    """Whether all committed transactions, and some of unknown outcome, fit one serial order that real time allows."""
    committed = [txn for txn in history if txn.ok is True]
    unknown = [txn for txn in history if txn.ok is None]
    subsets = (some for count in range(len(unknown) + 1) for some in combinations(unknown, count))
    return any(_has_order([*committed, *some], {}) for some in subsets)


def _has_order(remaining: list[Txn], lists: Lists) -> bool:
    if not remaining:
        return True
    for at, txn in enumerate(remaining):
        if any(_ended_before(other, txn) for other in remaining):
            continue
        after = _run(txn, lists)
        if after is not None and _has_order(remaining[:at] + remaining[at + 1 :], after):
            return True
    return False


def _ended_before(other: Txn, txn: Txn) -> bool:
    return other.ok is True and other.end is not None and other.end < txn.start


def _run(txn: Txn, lists: Lists) -> Lists | None:
    """Return the lists after ``txn``; None if it read other lists. Reads of an unknown outcome are not checked."""
    after = {key: list(values) for key, values in lists.items()}
    for kind, key, value in txn.ops:
        if kind == "append":
            after.setdefault(key, []).append(value)
        elif txn.ok and value != after.get(key, []):
            return None
    return after


def reads_of(history: Sequence[Txn]) -> Iterator[tuple[int, int]]:
    """Yield (transaction, index of the operation) for each read of a committed transaction."""
    for number, txn in enumerate(history):
        yield from ((number, at) for at, op in enumerate(txn.ops) if op[0] == "r" and txn.ok is True)
