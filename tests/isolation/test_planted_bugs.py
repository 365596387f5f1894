"""The replay finds what it is there to find: daemons and clients with a planted bug each, and what it says of them."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.isolation.records import all_txns
from tests.isolation.replay import Findings, compare_conflicts, compare_outcomes, replay
from tests.isolation.test_recorded_ranges import play

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
    """Everything that is said about a short history."""
    recorded = play(daemon, TRANSACTIONS, PROCESSES, keys=8, bug=bug, cuts=cuts)
    history, told = all_txns(recorded), daemon.told(PROCESSES)
    versions = {identity: found[0] for identity, found in told.items()}
    found = Findings(replay(history, versions) + compare_outcomes(history, told))
    if not bug:
        found += compare_conflicts(history, versions, {each.txns[0].process: each.pid for each in recorded})[0]
    return found


def test_nothing_is_said_without_a_bug(start: Start) -> None:
    assert findings_of(start()) == []
    assert findings_of(start(), cuts=0.1) == []


@pytest.mark.parametrize("bug", BROKEN_DAEMONS)
def test_the_bug_of_a_daemon_is_found(start: Start, bug: str) -> None:
    found = findings_of(start(bug=bug), cuts=0.2 if bug == "forgets ids" else 0)
    print(found.names, found[:1])
    assert BROKEN_DAEMONS[bug] in found.names


@pytest.mark.parametrize("bug", BROKEN_CLIENTS)
def test_the_bug_of_a_client_is_found(start: Start, bug: str) -> None:
    found = findings_of(start(), bug=bug)
    print(found.names, found[:1])
    assert BROKEN_CLIENTS[bug] in found.names
