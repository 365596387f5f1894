"""Faults while clients play: stalls, cut connections, kill -9. What was recorded still fits together.

An outcome that the client could not learn is recorded as unknown; what became of it is taken from the daemon's own
history afterwards, which must agree with every outcome that somebody was told. After a cut, half of the clients ask
again with the same id: nothing may be done twice.
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
# So many versions are taken between two faults, or nothing was going on.
MIN_BETWEEN = min(2_000, 400 * TIMES)
MAX_UNKNOWN = 0.05
IN_MEMORY = ""
DURABLE = '[data]\ndir = "DATA"\nsync = "{}"\nsegment_bytes = 1048576\n'


class Played:
    """Processes that play until they are told to stop, and what they recorded."""

    def __init__(self, daemon: "RecordedDaemon", cuts: float) -> None:
        self.daemon = daemon
        self._stop = daemon.folder / "stop"
        plans = [
            Plan(number, 10**9, KEYS, cuts=cuts, until=str(self._stop)) for number in range(1, PROCESSES + 1)
        ]  # fmt: skip
        self.processes: list[Process] = [daemon.play("worker", f"worker-{plan.number}", plan) for plan in plans]
        self.recorded: list[Recorded] = []

    def wait_for_commits(self) -> None:
        """Until more than a few have happened."""
        begun = self.daemon.version
        eventually(lambda: self.daemon.version >= begun + MIN_BETWEEN)

    def stop(self) -> None:
        """The end; every process must have come through."""
        self._stop.touch()
        for number, process in enumerate(self.processes, 1):
            self.recorded.append(self.daemon.recorded(f"worker-{number}", process))

    def findings(self) -> Findings:
        """Everything that is wrong with what they saw, and with what became of it."""
        history, told = all_txns(self.recorded), self.daemon.told(PROCESSES)
        versions = {identity: found[0] for identity, found in told.items()}
        return Findings(compare_outcomes(history, told) + replay(history, versions))

    def summary(self, faults: int) -> str:
        """How much was done."""
        history = all_txns(self.recorded)
        return (
            f"{len(history)} transactions, {faults} faults, {self.unknown:.1%} unknown, {self.count('cut')} cut, "
            f"{self.count('reconnected')} reconnected, {self.count('resent')} sent again"
        )

    def count(self, name: str) -> int:
        """How often, in all processes."""
        return sum(getattr(each, name) for each in self.recorded)

    @property
    def unknown(self) -> float:
        """The share of transactions whose outcome their client never learned."""
        history = all_txns(self.recorded)
        return sum(txn.ok is None for txn in history) / len(history)


@contextmanager
def playing(daemon: "RecordedDaemon", cuts: float = 0.0) -> Iterator[Played]:
    """Faults are for the block."""
    played = Played(daemon, cuts)
    try:
        played.wait_for_commits()
        yield played
        played.wait_for_commits()
        played.stop()
    finally:
        for process in played.processes:
            process.kill()
            process.wait()


def stall(processes: "Sequence[Process]", seconds: float) -> None:
    """SIGSTOP, and later SIGCONT. The time between is the fault itself, not a wait for anything."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    for process in processes:
        process.send_signal(signal.SIGCONT)


def test_stalls_and_cut_connections(start: Start) -> None:
    chance = random.Random(4)  # noqa: S311 - faults
    daemon = start(IN_MEMORY)
    with playing(daemon, cuts=0.03) as played:
        for fault in range(FAULTS):
            seconds = chance.uniform(0.1, 1)
            stall([daemon.process] if fault % 2 else chance.sample(played.processes, 2), seconds)
            played.wait_for_commits()
    print(played.summary(FAULTS))
    assert played.findings() == []
    assert played.unknown <= MAX_UNKNOWN
    assert played.count("cut") >= 10 * FAULTS
    assert played.count("resent") >= 2 * FAULTS


@pytest.mark.parametrize("sync", ["always", "interval", "never"])
def test_kill_9_and_a_new_daemon_on_the_same_data(start: Start, sync: str) -> None:
    """A crash of the daemon, not of the machine: nothing acknowledged is lost in any of the three."""
    chance = random.Random(sync)  # noqa: S311 - faults
    daemon = start(DURABLE.format(sync))
    with playing(daemon, cuts=0.01) as played:
        for _ in range(FAULTS):
            daemon.kill()
            daemon.serve()
            played.wait_for_commits()
            if chance.random() < 0.3:
                stall([daemon.process], chance.uniform(0.05, 0.3))
    print(f"{sync}: {played.summary(FAULTS)}")
    assert played.findings() == []
    assert played.unknown <= MAX_UNKNOWN
    assert played.count("reconnected") >= PROCESSES * FAULTS // 2
    assert played.count("resent") >= FAULTS


def test_a_daemon_that_answers_before_it_has_written_is_found_out(start: Start) -> None:
    """The same with a planted bug."""
    daemon = start(DURABLE.format("always"), bug="answers before it is written")
    with playing(daemon) as played:
        for _ in range(8):
            daemon.kill()
            daemon.serve()
            played.wait_for_commits()
    names = played.findings().names
    print(played.summary(8), names)
    assert "lost" in names
