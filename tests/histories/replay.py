"""A second opinion on a history, by another way: run it again, one transaction after the other.

Every committed transaction says its version. In the order of versions, each must read exactly what those before it
have appended, those that only read at their snapshot; and versions must agree with real time.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from tests.histories.list_append import Txn


def differences(history: Sequence[Txn]) -> list[str]:
    """What does not fit; nothing for a strictly serializable history. None of it may have an unknown outcome."""
    found: list[str] = []
    done = [(number, txn) for number, txn in enumerate(history) if txn.ok]
    writers = sorted((txn.version, number) for number, txn in done if txn.version is not None)
    versions = [version for version, _ in writers]
    if len(set(versions)) < len(versions):
        found.append("two commits have the same version")
    readers = sorted((txn.snapshot, number) for number, txn in done if txn.version is None and txn.snapshot is not None)
    lists: dict[str, list[Any]] = defaultdict(list)
    at = 0
    for version, number in writers:
        while at < len(readers) and readers[at][0] < version:  # type: ignore[operator]
            _run(history[readers[at][1]], readers[at][1], lists, found)
            at += 1
        _run(history[number], number, lists, found)
    for _, number in readers[at:]:
        _run(history[number], number, lists, found)
    _compare_with_time(history, writers, found)
    return found


def _run(txn: Txn, number: int, lists: dict[str, list[Any]], found: list[str]) -> None:
    for kind, key, value in txn.ops:
        if kind == "append":
            lists[key].append(value)
        elif value != lists[key]:
            right = lists[key]
            found.append(f"{number} read {key} as …{value[-3:]} ({len(value)}), not …{right[-3:]} ({len(right)})")


def _compare_with_time(history: Sequence[Txn], writers: list[tuple[Any, int]], found: list[str]) -> None:
    """Nobody with a lower version began after one with a higher version had ended."""
    earliest_end: int | None = None
    for version, number in reversed(writers):
        txn = history[number]
        if earliest_end is not None and txn.start > earliest_end:
            found.append(f"{number} has version {version}, and began after a higher version was acknowledged")
        if txn.end is not None:
            earliest_end = txn.end if earliest_end is None else min(earliest_end, txn.end)
