"""Tests of the schedules in `tests/histories/anomalies`: each shows its anomaly with a daemon that allows it.

Dirty writes, dirty reads and intermediate reads are missing: writes stay with the client until the commit, so no bug of
the daemon could show them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.histories.test_anomalies import SCRIPTS, Session, steps

if TYPE_CHECKING:
    from tests.isolation.conftest import RecordedDaemon

Start = Callable[..., "RecordedDaemon"]

SHOWN_BY = {
    "validates nothing": {"lost_update", "write_skew", "phantom", "fuzzy_read", "aborted_read"},
    "validates only what is written": {"write_skew", "fuzzy_read", "aborted_read"},
    "overlooks ranges": {"phantom"},
    "overlooks deletions in ranges": {"phantom"},
    "overlooks new keys in ranges": {"phantom"},
    "writes what it refuses": {"aborted_read", "lost_update", "write_skew"},
    "fetches what is current": {"fuzzy_read", "read_skew", "long_fork"},
    "scans what is current": {"phantom"},
    "begins in the past": {"stale_read"},
}


def is_as_expected(daemon: "RecordedDaemon", name: str) -> bool:
    """Run a schedule; return whether every answer is as expected."""
    sessions: dict[str, Session] = {}
    [script] = [script for script in SCRIPTS if script.stem == name]
    for session, command, operands, expected in steps(script):
        if session not in sessions:
            sessions[session] = Session(daemon.connect())
        if getattr(sessions[session], command)(*operands) != expected:
            return False
    return True


@pytest.mark.parametrize("bug", SHOWN_BY)
def test_a_broken_daemon_shows_the_anomaly(start: Start, bug: str) -> None:
    daemon = start(bug=bug)
    assert [name for name in sorted(SHOWN_BY[bug]) if is_as_expected(daemon, name)] == []


def test_a_correct_daemon_shows_no_anomaly(start: Start) -> None:
    names = sorted(set().union(*SHOWN_BY.values()))
    assert [name for name in names if is_as_expected(start(), name)] == names
