"""Histories of concurrent client processes over the real socket. Two checkers must find them strictly serializable.

Every run prints how much it did, and fails if that was too little, or if the clients hardly overlapped.
"""

import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.harness.scale import TIMES
from tests.histories.list_append import Txn, check
from tests.histories.replay import differences

if TYPE_CHECKING:
    from tests.histories.conftest import HistoryDaemon

PROCESSES = 8
# Four workloads: 50,000 transactions in all, and at scale 4 the same number in each.
TRANSACTIONS = 12_504 * TIMES


@dataclass(frozen=True)
class Workload:
    keys: int
    reads: float
    min_conflicts: float


WORKLOADS = {
    "three hot lists": Workload(3, 0.5, 0.05),
    "ten lists": Workload(10, 0.5, 0.05),
    "a hundred lists": Workload(100, 0.5, 0.002),
    "mostly reads": Workload(10, 0.9, 0.005),
}


def overlapping_share(history: list[Txn]) -> float:
    """Return the share of transactions that overlap in time with another one on the same key."""
    last_end: dict[str, int] = {}
    overlaps = set()
    owner: dict[str, int] = {}
    order = sorted((txn for txn in history if txn.end is not None), key=lambda txn: txn.start)
    for number, txn in enumerate(order):
        for key in {op[1] for op in txn.ops}:
            if last_end.get(key, 0) > txn.start:
                overlaps |= {number, owner[key]}
            if txn.end is not None and txn.end > last_end.get(key, 0):
                last_end[key], owner[key] = txn.end, number
    return len(overlaps) / len(history)


@pytest.mark.parametrize("name", WORKLOADS)
def test_concurrent_transactions_are_strictly_serializable(daemon: "HistoryDaemon", name: str) -> None:
    workload = WORKLOADS[name]
    history = daemon.history(daemon.record(PROCESSES, TRANSACTIONS, workload.keys, workload.reads))
    conflicts = sum(txn.ok is False for txn in history) / len(history)
    overlap = overlapping_share(history)
    print(f"{name}: {len(history)} transactions, {conflicts:.1%} conflicts, {overlap:.0%} overlap another on a key")
    assert len(history) >= TRANSACTIONS // PROCESSES * PROCESSES
    assert all(txn.ok is not None for txn in history), "no outcome is unknown without faults"
    assert workload.min_conflicts <= conflicts <= 0.6
    assert overlap >= (0.3 if workload.keys <= 10 else 0.02)
    assert check(history).anomalies == []
    assert differences(history)[:5] == []


def test_the_checkers_find_commits_without_read_sets(daemon: "HistoryDaemon") -> None:
    """The same clients with a planted bug: they commit without their read sets."""
    history = daemon.history(daemon.record(PROCESSES, 4_000, 3, 0.5, "blind"))
    report = check(history)
    print(sorted(report.names))
    assert "lost-update" in report.names or "incompatible-order" in report.names
    assert differences(history)


def test_histories_stay_serializable_while_server_and_clients_stall(daemon: "HistoryDaemon") -> None:
    """The server and the clients get SIGSTOP and SIGCONT while they run."""
    clients = daemon.record(PROCESSES, 6_000 * TIMES, 5, 0.5)
    stalls = 0
    while clients[-1].poll() is None and stalls < 40 * TIMES:
        victim = daemon.process.pid if stalls % 2 else clients[stalls // 2 % len(clients)].pid
        try:
            os.kill(victim, signal.SIGSTOP)
            time.sleep(0.03)  # the fault itself, not a wait for anything
            os.kill(victim, signal.SIGCONT)
        except ProcessLookupError:
            break
        stalls += 1
    history = daemon.history(clients)
    print(f"{len(history)} transactions, {stalls} stalls")
    assert stalls >= 10
    assert check(history).anomalies == []
    assert differences(history)[:5] == []
