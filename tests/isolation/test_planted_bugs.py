"""Tests of the replay: it must find the planted bug of each broken daemon and each broken client."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.isolation.records import all_txns
from tests.isolation.replay import Findings, compare_conflicts, compare_outcomes, replay
from tests.isolation.test_recorded_ranges import run_workers

if TYPE_CHECKING:
    from tests.isolation.conftest import RecordedDaemon

Start = Callable[..., "RecordedDaemon"]
TRANSACTIONS = 2_000
PROCESSES = 4

BROKEN_DAEMONS = {
    "validates nothing": "not serializable",
    "validates only what is written": "not serializable",
    "overlooks ranges": "not serializable",
    "overlooks deletions in ranges": "not serializable",
    "overlooks new keys in ranges": "not serializable",
    "writes what it refuses": "applied though refused",
    "commits in halves": "torn snapshot",
    "loses half of a commit": "torn snapshot",
    "begins in the past": "stale",
    "fetches what is current": "torn snapshot",
    "scans what is current": "torn snapshot",
    "forgets ids": "applied twice",
}
BROKEN_CLIENTS = {
    "forgets reads": "not serializable",
    "forgets ranges": "not serializable",
    "reads what is current": "torn snapshot",
    "reads what was": "torn snapshot",
}


def findings_of(daemon: "RecordedDaemon", *, bug: str = "", cuts: float = 0.0) -> Findings:
    """Return everything that the checkers find in a short history."""
    recorded = run_workers(daemon, TRANSACTIONS, PROCESSES, keys=8, bug=bug, cuts=cuts)
    history, committed = all_txns(recorded), daemon.committed_versions(PROCESSES)
    versions = {identity: numbers[0] for identity, numbers in committed.items()}
    findings = Findings(replay(history, versions) + compare_outcomes(history, committed))
    if not bug:
        findings += compare_conflicts(history, versions, {each.txns[0].process: each.pid for each in recorded})[0]
    return findings


def test_the_replay_finds_nothing_without_a_bug(start: Start) -> None:
    assert findings_of(start()) == []
    assert findings_of(start(), cuts=0.1) == []


@pytest.mark.parametrize("bug", BROKEN_DAEMONS)
def test_the_replay_finds_the_bug_of_a_daemon(start: Start, bug: str) -> None:
    findings = findings_of(start(bug=bug), cuts=0.2 if bug == "forgets ids" else 0)
    print(findings.names, findings[:1])
    assert BROKEN_DAEMONS[bug] in findings.names


@pytest.mark.parametrize("bug", BROKEN_CLIENTS)
def test_the_replay_finds_the_bug_of_a_client(start: Start, bug: str) -> None:
    findings = findings_of(start(), bug=bug)
    print(findings.names, findings[:1])
    assert BROKEN_CLIENTS[bug] in findings.names
