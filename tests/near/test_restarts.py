"""Daemons are killed, stopped and replaced at once, and somebody else writes at once: no near cache answers stale.

The next daemon has everything loaded before the first one goes, so that it serves as soon as its fence lets it. What is
known of a key survives kill -9, as the daemon has a data directory. KVD_TEST_SCALE multiplies the number of cycles.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import pytest

import kv
from kvd.protocol.near_cache import LEASE_MS
from tests.harness.scale import TIMES
from tests.harness.waiting import DEADLINE_S
from tests.near.conftest import play
from tests.near.register import INFINITY, Write, violations
from tests.near.worker import REPORT, Plan, Recorded

if TYPE_CHECKING:
    from tests.harness.processes import Process
    from tests.near.conftest import ReplaceableDaemon

Start = Callable[..., "ReplaceableDaemon"]
Cycle = Callable[["ReplaceableDaemon", "Watched"], None]
KILLS = 20 * TIMES
STALLS = 5 * TIMES
STOPS = 5 * TIMES
# With a planted bug, the readers trust the dead daemon's table for this long: on any machine, its successor serves and
# takes a write before that, and the readers read again.
LONG_LEASE_MS = 60_000
READS_AFTER_A_WRITE = 300
KEYS = ["a0", "b0"]
READERS = 2
PLAYING_S = 600 * TIMES


class Watched:
    """Processes that read all the time, and what this one, which keeps nothing, writes meanwhile."""

    def __init__(self, daemon: "ReplaceableDaemon", bug: str) -> None:
        self.daemon = daemon
        self.writes: list[Write] = []
        plans = [Plan(daemon.address, number, 0, 1, threads=1 + number, bug=bug) for number in range(READERS)]
        self.readers: list[Process] = [play(plan) for plan in plans]
        self.told = [b""] * READERS
        self.hits = 0

    def write(self) -> None:
        """Write a new value to both keys, as soon as anybody takes it."""
        value = str(len(self.writes) // 2)
        writes = [Write(key, value, time.monotonic_ns(), INFINITY) for key in KEYS]
        self.writes += writes
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                with self.daemon.client() as client:
                    client.set_many(dict.fromkeys(KEYS, value.encode()))
                break
            except kv.Unavailable:
                assert time.monotonic() < deadline, "nobody serves"
        for write in writes:
            write.end = time.monotonic_ns()

    def wait_until_seen(self) -> None:
        """Until every reader has found the last value of both keys, and so keeps it."""
        for reader in self.readers:
            missing = {f"{key} {self.writes[-1].value}\n".encode() for key in KEYS}
            assert reader.stdout is not None
            while missing:
                line = reader.stdout.readline()
                assert line, "a reader has ended"
                missing.discard(line)

    def wait_until_read_again(self) -> None:
        """Until every thread of every reader has begun and ended reads after the last write."""
        for reader in self.readers:
            assert reader.stdin is not None
            reader.stdin.write(b"%d\n" % READS_AFTER_A_WRITE)
            reader.stdin.flush()
        for threads, reader in enumerate(self.readers, 1):
            assert reader.stdout is not None
            missing = threads
            while missing:
                line = reader.stdout.readline()
                assert line, "a reader has ended"
                missing -= line == REPORT.encode()

    def problems(self) -> list[str]:
        """Everything that is wrong with what they read; they end."""
        recorded = []
        for reader in self.readers:
            told, _ = reader.communicate(timeout=DEADLINE_S)
            assert reader.returncode == 0
            recorded.append(msgspec.msgpack.decode(told.partition(b"recorded\n")[2], type=Recorded))
        self.hits = sum(each.hits for each in recorded)
        torn = [f"torn: {pair}" for each in recorded for pair in each.torn]
        return violations(self.writes, [read for each in recorded for read in each.reads]) + torn


@contextmanager
def watched(daemon: "ReplaceableDaemon", bug: str = "") -> Iterator[Watched]:
    """Readers that have something to lose."""
    some = Watched(daemon, bug)
    # Whoever waits for a value that never comes is not to wait for ever.
    alarm = threading.Timer(PLAYING_S, lambda: [reader.kill() for reader in some.readers])
    alarm.start()
    try:
        some.write()
        some.wait_until_seen()
        yield some
    finally:
        alarm.cancel()
        for reader in some.readers:
            reader.kill()
            reader.communicate(timeout=DEADLINE_S)


def after(cycles: int, cycle: Cycle, daemon: "ReplaceableDaemon", bug: str = "") -> list[str]:
    """What is wrong after so many cycles."""
    with watched(daemon, bug) as some:
        for _ in range(cycles):
            cycle(daemon, some)
            some.wait_until_seen()
        problems = some.problems()
        print(f"{cycles} cycles, {some.hits} hits, {len(problems)} problems", problems[:3])
        assert some.hits > 100 * cycles
        return problems


def found(cycle: Cycle, daemon: "ReplaceableDaemon", bug: str = "") -> list[str]:
    """What is wrong after one cycle, in which every reader has read after the write: what a planted bug must show."""
    with watched(daemon, bug) as some:
        cycle(daemon, some)
        some.wait_until_read_again()
        problems = some.problems()
        print(f"{some.hits} hits, {len(problems)} problems", problems[:3])
        assert some.hits > 100
        return problems


# ---------------------------------------------------------------------- what happens in a cycle


def kill_and_replace(daemon: "ReplaceableDaemon", some: Watched) -> None:
    daemon.kill()
    daemon.begin()
    some.write()


def stop_and_replace(daemon: "ReplaceableDaemon", some: Watched) -> None:
    daemon.terminate(signal.SIGTERM)
    daemon.begin()
    some.write()


def replace_while_a_reader_is_held_up(daemon: "ReplaceableDaemon", some: Watched) -> None:
    """It goes on, in the middle of whatever it was doing, when all has changed."""
    some.readers[0].send_signal(signal.SIGSTOP)
    try:
        kill_and_replace(daemon, some)
    finally:
        some.readers[0].send_signal(signal.SIGCONT)


def stall(daemon: "ReplaceableDaemon", some: Watched) -> None:
    """The daemon is held up for longer than its lease, and somebody waits with a write."""
    daemon.process.send_signal(signal.SIGSTOP)
    time.sleep(2 * LEASE_MS / 1000)
    daemon.process.send_signal(signal.SIGCONT)
    some.write()


def kill_while_stalled(daemon: "ReplaceableDaemon", some: Watched) -> None:
    daemon.process.send_signal(signal.SIGSTOP)
    kill_and_replace(daemon, some)


# ---------------------------------------------------------------------- nothing is stale


def test_no_read_is_stale_after_kill_9_and_an_immediate_write(start: Start) -> None:
    assert after(KILLS, kill_and_replace, start(durable=True)) == []


def test_no_read_is_stale_after_an_orderly_stop_which_nobody_waits_for(start: Start) -> None:
    assert after(STOPS, stop_and_replace, start(durable=True)) == []


@pytest.mark.parametrize("cycle", [stall, kill_while_stalled, replace_while_a_reader_is_held_up])
def test_no_read_is_stale_when_somebody_is_held_up(start: Start, cycle: Cycle) -> None:
    assert after(STALLS, cycle, start(durable=True)) == []


# ---------------------------------------------------------------------- and the test can fail


def test_a_longer_lease_without_a_bug_shows_nothing(start: Start) -> None:
    assert found(kill_and_replace, start(durable=True, lease_ms=8 * LEASE_MS)) == []


@pytest.mark.parametrize(
    ("bug", "cycle"),
    [
        ("has no fence", kill_and_replace),
        ("leaves no file", kill_and_replace),
        ("gives longer leases than its successor thinks", kill_and_replace),
        ("stops without ending the lease", stop_and_replace),
    ],
)
def test_the_bug_of_a_daemon_is_found(start: Start, bug: str, cycle: Cycle) -> None:
    assert found(cycle, start(durable=True, bug=bug, lease_ms=LONG_LEASE_MS))


def test_a_client_that_trusts_a_lease_for_too_long_is_found(start: Start) -> None:
    assert found(kill_and_replace, start(durable=True), "trusts a lease for too long")
