"""Histories of client processes over the real socket, with ranges and deletions. The replay must find no error.

These complement the list-append histories (`tests/histories`), whose checker does not cover ranges. Here the order of
commits is taken from the versions, so nothing must be inferred: see `replay.py`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from tests.harness.scale import TIMES
from tests.isolation.records import Txn, all_txns
from tests.isolation.replay import acknowledged, compare_conflicts, compare_outcomes, replay
from tests.isolation.worker import Plan

if TYPE_CHECKING:
    from tests.isolation.conftest import RecordedDaemon
    from tests.isolation.records import Recorded

Start = Callable[..., "RecordedDaemon"]
PROCESSES = 8
# Four workloads: 50,000 transactions in all, and at scale 4 the same number in each.
TRANSACTIONS = 12_504 * TIMES
MIN_OVERLAPPING = 0.3

# Keys, and the share of transactions that only read.
WORKLOADS = {
    "three hot keys": (3, 0.25),
    "ten keys": (10, 0.25),
    "a hundred keys": (100, 0.25),
    "mostly reads": (10, 0.7),
}


def run_workers(daemon: "RecordedDaemon", count: int, processes: int = PROCESSES, **plan: object) -> "list[Recorded]":
    """Run ``count`` transactions, shared by all processes; return what they recorded."""
    plans = [Plan(number, count // processes, **plan) for number in range(1, processes + 1)]  # type: ignore[arg-type]
    running = [daemon.spawn("worker", f"worker-{each.number}", each) for each in plans]
    return [daemon.recorded(f"worker-{number}", process) for number, process in enumerate(running, 1)]


def share_overlapping(history: Sequence[Txn]) -> float:
    """Return the share of transactions that overlap in time with another one on the same key."""
    last: dict[str, Txn] = {}
    overlaps = set()
    for txn in sorted((txn for txn in history if txn.end is not None), key=lambda txn: txn.start):
        for key in txn.keys:
            other = last.get(key)
            if other is not None and other.end > txn.start:  # type: ignore[operator]
                overlaps |= {txn.identity, other.identity}
            if other is None or other.end < txn.end:  # type: ignore[operator]
                last[key] = txn
    return len(overlaps) / len(history)


@pytest.mark.parametrize("name", WORKLOADS)
def test_transactions_with_ranges_are_strictly_serializable(start: Start, name: str) -> None:
    daemon = start()
    keys, read_only = WORKLOADS[name]
    recorded = run_workers(daemon, TRANSACTIONS, keys=keys, read_only=read_only)
    history, pids = all_txns(recorded), {each.txns[0].process: each.pid for each in recorded}
    conflicts = sum(txn.ok is False for txn in history) / len(history)
    overlapping = share_overlapping(history)
    wrong_reasons, reasons = compare_conflicts(history, acknowledged(history), pids)
    ranges = sum(bool(txn.ranges) for txn in history)
    print(
        f"{name}: {len(history)} transactions, {ranges} of them with ranges, {conflicts:.1%} conflicts "
        f"for {reasons} reasons, {overlapping:.0%} overlap another on a key"
    )
    assert replay(history, acknowledged(history)) == []
    assert wrong_reasons == []
    assert compare_outcomes(history, daemon.committed_versions(PROCESSES)) == []
    assert all(txn.ok is not None for txn in history), "no outcome is unknown without faults"
    assert len(history) >= TRANSACTIONS // PROCESSES * PROCESSES
    assert ranges >= len(history) * 0.2
    assert 0.05 <= conflicts <= 0.6
    assert reasons >= conflicts * len(history)
    assert overlapping >= MIN_OVERLAPPING
