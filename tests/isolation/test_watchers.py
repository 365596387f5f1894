"""Watchers that connect and disconnect while clients write: each must receive every change, once and in order."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.harness.scale import TIMES
from tests.harness.waiting import eventually
from tests.isolation.feeds import Feeds
from tests.isolation.records import Recorded, Session, Txn, all_txns
from tests.isolation.replay import Truth, acknowledged, compare_outcomes
from tests.isolation.watcher import PREFIXES, Plan, position
from tests.isolation.worker import Plan as WorkerPlan

if TYPE_CHECKING:
    from tests.isolation.conftest import RecordedDaemon

Start = Callable[..., "RecordedDaemon"]
WATCHERS = 8
WRITERS = 4
TRANSACTIONS = 6_000 * TIMES
EVENTS = 20_000 * TIMES
SHORT_HISTORY = "[history]\nmax_versions = 300\n"
DURABLE = '[data]\ndir = "DATA"\nsegment_bytes = 1048576\n'
# The test's own commit, after all others.
LAST = {f"{prefix}~last": b"0.0" for prefix in PREFIXES}


class WatchRun:
    """Writers and watchers that run at the same time, and what they recorded."""

    def __init__(
        self, daemon: "RecordedDaemon", *, count: int = TRANSACTIONS, behind: int = 100, lag: int = 0, pad: int = 0
    ) -> None:
        self.daemon = daemon
        self._until = daemon.folder / "until"
        watchers = [Plan(number, str(self._until), behind, lag) for number in range(1, WATCHERS + 1)]
        writers = [
            WorkerPlan(number, count // WRITERS, keys=10, read_only=0.1, pad=pad) for number in range(1, WRITERS + 1)
        ]
        self.watchers = [daemon.spawn("watcher", f"watcher-{plan.number}", plan) for plan in watchers]
        self.writers = [daemon.spawn("worker", f"worker-{plan.number}", plan) for plan in writers]
        self.history: list[Txn] = []
        self.pids = {0: os.getpid()}
        self.sessions: list[Session] = []

    @property
    def is_writing(self) -> bool:
        """Whether a writer is still running."""
        return any(writer.poll() is None for writer in self.writers)

    def finish(self) -> None:
        """Wait for the writers, tell the watchers the last version, and collect all records."""
        records = [self.daemon.recorded(f"worker-{number}", each) for number, each in enumerate(self.writers, 1)]
        self.history = all_txns(records)
        [last] = self.daemon.ask(["commit", LAST])
        self.history.append(Txn(0, 0, 2**62, 2**62, True, None, last, {}, [], dict(LAST)))
        self.pids |= {each.txns[0].process: each.pid for each in records}
        partial = self._until.with_suffix(".part")
        partial.write_text(str(last))
        partial.rename(self._until)
        self.sessions = [session for each in self._watcher_records() for session in each.sessions]

    def _watcher_records(self) -> list[Recorded]:
        records = [self.daemon.recorded(f"watcher-{number}", each) for number, each in enumerate(self.watchers, 1)]
        for each in records:
            positions = dict.fromkeys(PREFIXES, -1)
            for session in each.sessions:
                positions[session.prefix] = max(positions[session.prefix], position(session))
            assert positions == dict.fromkeys(PREFIXES, self.history[-1].version), (
                "every watcher must see the last commit"
            )
        return records

    def kill(self) -> None:
        """Kill the processes that are still running."""
        for process in (*self.watchers, *self.writers):
            process.kill()
            process.wait()


def summary(run: WatchRun, feeds: Feeds) -> str:
    sessions = run.sessions
    return (
        f"{len(sessions)} sessions, {feeds.events} events, {feeds.resets} resynchronisations, {feeds.late_resets} of "
        f"them in the middle, {sum(session.since is not None for session in sessions)} from a version on"
    )


def check(run: WatchRun, *, has_all_history: bool = True) -> Feeds:
    """Compare all sessions with the acknowledged commits."""
    truth = Truth(run.history, acknowledged(run.history))
    feeds = Feeds(truth, run.pids, has_all_history=has_all_history)
    feeds.check(run.sessions)
    return feeds


def watch(daemon: "RecordedDaemon", **options: int) -> WatchRun:
    run = WatchRun(daemon, **options)
    try:
        run.finish()
    finally:
        run.kill()
    return run


def test_watchers_that_reconnect_miss_nothing(start: Start) -> None:
    run = watch(start())
    feeds = check(run)
    print(summary(run, feeds))
    assert feeds.findings == []
    assert feeds.events >= EVENTS
    assert len(run.sessions) >= 20 * WATCHERS
    assert feeds.resets >= WATCHERS, "some watches begin after the newest version"


def test_watchers_that_are_too_slow_for_the_history_are_reset(start: Start) -> None:
    run = watch(start(SHORT_HISTORY), count=2 * TRANSACTIONS, behind=2_000, lag=800, pad=1_000)
    feeds = check(run, has_all_history=False)
    print(summary(run, feeds))
    assert feeds.findings == []
    assert feeds.resets >= 5 * WATCHERS
    assert feeds.late_resets >= WATCHERS


def test_watchers_continue_after_kill_9(start: Start) -> None:
    """A change that a watcher has received is never undone, because it was on the disk before."""
    daemon = start(DURABLE)
    run = WatchRun(daemon)
    kills = 0
    try:
        while run.is_writing:
            target = daemon.version + 600
            eventually(lambda target=target: daemon.version >= target or not run.is_writing)  # type: ignore[misc]
            if run.is_writing:
                daemon.kill()
                daemon.serve()
                kills += 1
        run.finish()
    finally:
        run.kill()
    committed = daemon.committed_versions(WRITERS)
    versions = acknowledged(run.history[-1:]) | {identity: numbers[0] for identity, numbers in committed.items()}
    feeds = Feeds(Truth(run.history, versions), run.pids, has_all_history=True)
    feeds.check(run.sessions)
    print(f"{kills} kills, {summary(run, feeds)}")
    assert feeds.findings == []
    assert compare_outcomes(run.history[:-1], committed) == []
    assert kills >= 2 * TIMES
    assert feeds.events >= EVENTS


BUGS = {
    "drops an event": "gap",
    "repeats an event": "order",
    "splits an event": "content",
    "swaps two events": "order",
    "tells of other keys": "content",
    "goes on one too late": "gap",
}
BUGS_OF_SHORT_HISTORY = {
    "does not say that it lost its place": "gap",
    "resynchronises with half": "items",
}


@pytest.mark.parametrize("bug", [*BUGS, *BUGS_OF_SHORT_HISTORY])
def test_the_check_finds_the_bug_of_a_feed(start: Start, bug: str) -> None:
    is_short = bug in BUGS_OF_SHORT_HISTORY
    daemon = start(SHORT_HISTORY if is_short else "", bug=bug)
    run = watch(daemon, count=1_200, behind=2_000 if is_short else 100)
    feeds = check(run, has_all_history=not is_short)
    print(feeds.findings.names, feeds.findings[:1])
    assert (BUGS | BUGS_OF_SHORT_HISTORY)[bug] in feeds.findings.names
