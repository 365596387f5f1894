"""Watchers that come and go while others write: what each was told is what happened, all of it, once and in order."""

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
# The test's own commit, behind all others.
LAST = {f"{prefix}~last": b"0.0" for prefix in PREFIXES}


class Watched:
    """What writers and watchers recorded who were at it together."""

    def __init__(
        self, daemon: "RecordedDaemon", *, count: int = TRANSACTIONS, behind: int = 100, lag: int = 0, pad: int = 0
    ) -> None:
        self.daemon = daemon
        self._until = daemon.folder / "until"
        watchers = [Plan(number, str(self._until), behind, lag) for number in range(1, WATCHERS + 1)]
        writers = [
            WorkerPlan(number, count // WRITERS, keys=10, read_only=0.1, pad=pad) for number in range(1, WRITERS + 1)
        ]
        self.watchers = [daemon.play("watcher", f"watcher-{plan.number}", plan) for plan in watchers]
        self.writers = [daemon.play("worker", f"worker-{plan.number}", plan) for plan in writers]
        self.history: list[Txn] = []
        self.pids = {0: os.getpid()}
        self.sessions: list[Session] = []

    @property
    def writing(self) -> bool:
        """Whether anybody still does."""
        return any(writer.poll() is None for writer in self.writers)

    def finish(self) -> None:
        """Wait for the writers, tell the watchers what is the last version, and collect."""
        written = [self.daemon.recorded(f"worker-{number}", each) for number, each in enumerate(self.writers, 1)]
        self.history = all_txns(written)
        [last] = self.daemon.ask(["commit", LAST])
        self.history.append(Txn(0, 0, 2**62, 2**62, True, None, last, {}, [], dict(LAST)))
        self.pids |= {each.txns[0].process: each.pid for each in written}
        partial = self._until.with_suffix(".part")
        partial.write_text(str(last))
        partial.rename(self._until)
        self.sessions = [session for each in self._watched() for session in each.sessions]

    def _watched(self) -> list[Recorded]:
        watched = [self.daemon.recorded(f"watcher-{number}", each) for number, each in enumerate(self.watchers, 1)]
        for each in watched:
            reached = dict.fromkeys(PREFIXES, -1)
            for session in each.sessions:
                reached[session.prefix] = max(reached[session.prefix], position(session))
            assert reached == dict.fromkeys(PREFIXES, self.history[-1].version), "everybody heard of the end"
        return watched

    def end(self) -> None:
        """Whatever is still running."""
        for process in (*self.watchers, *self.writers):
            process.kill()
            process.wait()


def summary(watched: Watched, feeds: Feeds) -> str:
    sessions = watched.sessions
    return (
        f"{len(sessions)} sessions, {feeds.events} events, {feeds.resets} resynchronisations, {feeds.late_resets} of "
        f"them in the middle, {sum(session.since is not None for session in sessions)} from a version on"
    )


def check(watched: Watched, *, has_all_history: bool = True) -> Feeds:
    """All sessions against what was acknowledged."""
    truth = Truth(watched.history, acknowledged(watched.history))
    feeds = Feeds(truth, watched.pids, has_all_history=has_all_history)
    feeds.check(watched.sessions)
    return feeds


def watch(daemon: "RecordedDaemon", **how: int) -> Watched:
    watched = Watched(daemon, **how)
    try:
        watched.finish()
    finally:
        watched.end()
    return watched


def test_watchers_who_come_and_go_miss_nothing(start: Start) -> None:
    watched = watch(start())
    feeds = check(watched)
    print(summary(watched, feeds))
    assert feeds.findings == []
    assert feeds.events >= EVENTS
    assert len(watched.sessions) >= 20 * WATCHERS
    assert feeds.resets >= WATCHERS, "some asked for versions that were still to come"


def test_watchers_who_are_too_slow_for_the_history_are_told_so(start: Start) -> None:
    watched = watch(start(SHORT_HISTORY), count=2 * TRANSACTIONS, behind=2_000, lag=800, pad=1_000)
    feeds = check(watched, has_all_history=False)
    print(summary(watched, feeds))
    assert feeds.findings == []
    assert feeds.resets >= 5 * WATCHERS
    assert feeds.late_resets >= WATCHERS


def test_watchers_go_on_after_kill_9(start: Start) -> None:
    """What somebody was told is never taken back: it was on the disk before."""
    daemon = start(DURABLE)
    watched = Watched(daemon)
    kills = 0
    try:
        while watched.writing:
            enough = daemon.version + 600
            eventually(lambda enough=enough: daemon.version >= enough or not watched.writing)  # type: ignore[misc]
            if watched.writing:
                daemon.kill()
                daemon.serve()
                kills += 1
        watched.finish()
    finally:
        watched.end()
    told = daemon.told(WRITERS)
    versions = acknowledged(watched.history[-1:]) | {identity: found[0] for identity, found in told.items()}
    feeds = Feeds(Truth(watched.history, versions), watched.pids, has_all_history=True)
    feeds.check(watched.sessions)
    print(f"{kills} kills, {summary(watched, feeds)}")
    assert feeds.findings == []
    assert compare_outcomes(watched.history[:-1], told) == []
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
def test_the_bug_of_a_feed_is_found(start: Start, bug: str) -> None:
    is_short = bug in BUGS_OF_SHORT_HISTORY
    daemon = start(SHORT_HISTORY if is_short else "", bug=bug)
    watched = watch(daemon, count=1_200, behind=2_000 if is_short else 100)
    feeds = check(watched, has_all_history=not is_short)
    print(feeds.findings.names, feeds.findings[:1])
    assert (BUGS | BUGS_OF_SHORT_HISTORY)[bug] in feeds.findings.names
