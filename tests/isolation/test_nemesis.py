"""Faults while clients run: stalls, cut connections, kill -9. The recorded history must still be consistent.

An outcome that a client did not learn is recorded as unknown. The daemon's own history decides it afterwards, and must
agree with every outcome that a client did learn. After a cut, half of the clients send the request again with the same
id: no write may take effect twice.
"""

import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.harness.scale import TIMES
from tests.harness.waiting import eventually
from tests.isolation.records import Recorded, all_txns
from tests.isolation.replay import Findings, compare_outcomes, replay
from tests.isolation.worker import Plan

if TYPE_CHECKING:
    from tests.harness.processes import Process
    from tests.isolation.conftest import RecordedDaemon

Start = Callable[..., "RecordedDaemon"]
PROCESSES = 8
KEYS = 10
FAULTS = 6 * TIMES
# The minimum number of commits between two faults; with fewer, a fault would hit an idle daemon.
MIN_BETWEEN = min(2_000, 400 * TIMES)
MAX_UNKNOWN = 0.05
IN_MEMORY = ""
DURABLE = '[data]\ndir = "DATA"\nsync = "{}"\nsegment_bytes = 1048576\n'


class Workers:
    """Client processes that run until ``stop``, and what they recorded."""

    def __init__(self, daemon: "RecordedDaemon", cuts: float) -> None:
        self.daemon = daemon
        self._stop = daemon.folder / "stop"
        plans = [
            Plan(number, 10**9, KEYS, cuts=cuts, until=str(self._stop)) for number in range(1, PROCESSES + 1)
        ]  # fmt: skip
        self.processes: list[Process] = [daemon.spawn("worker", f"worker-{plan.number}", plan) for plan in plans]
        self.recorded: list[Recorded] = []

    def wait_for_commits(self) -> None:
        """Wait until MIN_BETWEEN more versions have been committed."""
        before = self.daemon.version
        eventually(lambda: self.daemon.version >= before + MIN_BETWEEN)

    def stop(self) -> None:
        """Stop all processes and collect their records; each must end without an error."""
        self._stop.touch()
        for number, process in enumerate(self.processes, 1):
            self.recorded.append(self.daemon.recorded(f"worker-{number}", process))

    def findings(self) -> Findings:
        """Return everything that is wrong with what the clients saw, and with the outcomes."""
        history, committed = all_txns(self.recorded), self.daemon.committed_versions(PROCESSES)
        versions = {identity: numbers[0] for identity, numbers in committed.items()}
        return Findings(compare_outcomes(history, committed) + replay(history, versions))

    def summary(self, faults: int) -> str:
        """Return a sentence on the size of the history, for the log."""
        history = all_txns(self.recorded)
        return (
            f"{len(history)} transactions, {faults} faults, {self.unknown:.1%} unknown, {self.count('cut')} cut, "
            f"{self.count('reconnected')} reconnected, {self.count('resent')} sent again"
        )

    def count(self, name: str) -> int:
        """Return the sum of the counter ``name`` over all processes."""
        return sum(getattr(each, name) for each in self.recorded)

    @property
    def unknown(self) -> float:
        """The share of transactions whose client did not learn the outcome."""
        history = all_txns(self.recorded)
        return sum(txn.ok is None for txn in history) / len(history)


@contextmanager
def running_workers(daemon: "RecordedDaemon", cuts: float = 0.0) -> Iterator[Workers]:
    """Run clients around the block, which causes the faults."""
    workers = Workers(daemon, cuts)
    try:
        workers.wait_for_commits()
        yield workers
        workers.wait_for_commits()
        workers.stop()
    finally:
        for process in workers.processes:
            process.kill()
            process.wait()


def stall(processes: "Sequence[Process]", seconds: float) -> None:
    """Send SIGSTOP, and later SIGCONT. The time between is the fault itself, not a wait for a condition."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    for process in processes:
        process.send_signal(signal.SIGCONT)


def test_a_history_with_stalls_and_cut_connections_is_consistent(start: Start) -> None:
    chance = random.Random(4)  # noqa: S311 - faults
    daemon = start(IN_MEMORY)
    with running_workers(daemon, cuts=0.03) as workers:
        for fault in range(FAULTS):
            seconds = chance.uniform(0.1, 1)
            stall([daemon.process] if fault % 2 else chance.sample(workers.processes, 2), seconds)
            workers.wait_for_commits()
    print(workers.summary(FAULTS))
    assert workers.findings() == []
    assert workers.unknown <= MAX_UNKNOWN
    assert workers.count("cut") >= 10 * FAULTS
    assert workers.count("resent") >= 2 * FAULTS


@pytest.mark.parametrize("sync", ["always", "interval", "never"])
def test_a_new_daemon_after_kill_9_has_every_acknowledged_commit(start: Start, sync: str) -> None:
    """The daemon crashes, not the machine: so no acknowledged commit is lost with any of the three policies."""
    chance = random.Random(sync)  # noqa: S311 - faults
    daemon = start(DURABLE.format(sync))
    with running_workers(daemon, cuts=0.01) as workers:
        for _ in range(FAULTS):
            daemon.kill()
            daemon.serve()
            workers.wait_for_commits()
            if chance.random() < 0.3:
                stall([daemon.process], chance.uniform(0.05, 0.3))
    print(f"{sync}: {workers.summary(FAULTS)}")
    assert workers.findings() == []
    assert workers.unknown <= MAX_UNKNOWN
    assert workers.count("reconnected") >= PROCESSES * FAULTS // 2
    assert workers.count("resent") >= FAULTS


def test_a_daemon_that_answers_before_it_writes_is_found(start: Start) -> None:
    """The same faults, with a planted bug."""
    daemon = start(DURABLE.format("always"), bug="answers before it is written")
    with running_workers(daemon) as workers:
        for _ in range(8):
            daemon.kill()
            daemon.serve()
            workers.wait_for_commits()
    names = workers.findings().names
    print(workers.summary(8), names)
    assert "lost" in names
