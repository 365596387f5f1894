"""A second checker, which works in another way: it runs a history again, one transaction after the other.

Every committed transaction has a version. In the order of versions, each must read exactly what earlier transactions
have appended. A transaction that only reads has the place of its snapshot. And versions must agree with real time.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from tests.histories.list_append import Txn


def differences(history: Sequence[Txn]) -> list[str]:
    """Return what does not fit: nothing for a strictly serializable history. All outcomes must be known."""
    texts: list[str] = []
    committed = [(number, txn) for number, txn in enumerate(history) if txn.ok]
    writers = sorted((txn.version, number) for number, txn in committed if txn.version is not None)
    versions = [version for version, _ in writers]
    if len(set(versions)) < len(versions):
        texts.append("two commits have the same version")
    readers = sorted(
        (txn.snapshot, number) for number, txn in committed if txn.version is None and txn.snapshot is not None
    )
    lists: dict[str, list[Any]] = defaultdict(list)
    at = 0
    for version, number in writers:
        while at < len(readers) and readers[at][0] < version:  # type: ignore[operator]
            _run(history[readers[at][1]], readers[at][1], lists, texts)
            at += 1
        _run(history[number], number, lists, texts)
    for _, number in readers[at:]:
        _run(history[number], number, lists, texts)
    _compare_with_time(history, writers, texts)
    return texts


def _run(txn: Txn, number: int, lists: dict[str, list[Any]], texts: list[str]) -> None:
    for kind, key, value in txn.ops:
        if kind == "append":
            lists[key].append(value)
        elif value != lists[key]:
            expected, counts = lists[key], f"{len(value)} values, not {len(lists[key])}"
            texts.append(f"{number} read {key} as …{value[-3:]}, not …{expected[-3:]} ({counts})")


def _compare_with_time(history: Sequence[Txn], writers: list[tuple[Any, int]], texts: list[str]) -> None:
    """Check that no transaction began after one with a higher version had ended."""
    earliest_end: int | None = None
    for version, number in reversed(writers):
        txn = history[number]
        if earliest_end is not None and txn.start > earliest_end:
            texts.append(f"{number} has version {version}, and began after a higher version was acknowledged")
        if txn.end is not None:
            earliest_end = txn.end if earliest_end is None else min(earliest_end, txn.end)
