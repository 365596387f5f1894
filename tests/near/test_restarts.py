"""Daemons are killed or stopped and replaced at once, and another client writes at once: no near cache is ever stale.

The next daemon has loaded everything before the first one ends, so it serves as soon as its fence allows. Values
survive kill -9, because the daemon has a data directory. KVD_TEST_SCALE multiplies the number of cycles.
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
Cycle = Callable[["ReplaceableDaemon", "Readers"], None]
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


class Readers:
    """Processes that read all the time, and the writes that this process makes meanwhile, without a near cache."""

    def __init__(self, daemon: "ReplaceableDaemon", bug: str) -> None:
        self.daemon = daemon
        self.writes: list[Write] = []
        plans = [Plan(daemon.address, number, 0, 1, threads=1 + number, bug=bug) for number in range(READERS)]
        self.processes: list[Process] = [play(plan) for plan in plans]
        self.hits = 0

    def write(self) -> None:
        """Write a new value to both keys, as soon as a daemon accepts it."""
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
                assert time.monotonic() < deadline, "no daemon serves"
        for write in writes:
            write.end = time.monotonic_ns()

    def wait_until_seen(self) -> None:
        """Wait until every reader has read the last value of both keys, and so keeps it."""
        for reader in self.processes:
            missing = {f"{key} {self.writes[-1].value}\n".encode() for key in KEYS}
            assert reader.stdout is not None
            while missing:
                line = reader.stdout.readline()
                assert line, "a reader has ended"
                missing.discard(line)

    def wait_until_read_again(self) -> None:
        """Wait until every thread of every reader has begun and ended reads after the last write."""
        for reader in self.processes:
            assert reader.stdin is not None
            reader.stdin.write(b"%d\n" % READS_AFTER_A_WRITE)
            reader.stdin.flush()
        for threads, reader in enumerate(self.processes, 1):
            assert reader.stdout is not None
            missing = threads
            while missing:
                line = reader.stdout.readline()
                assert line, "a reader has ended"
                missing -= line == REPORT.encode()

    def problems(self) -> list[str]:
        """End the readers; return all violations in what they have read."""
        recorded = []
        for reader in self.processes:
            output, _ = reader.communicate(timeout=DEADLINE_S)
            assert reader.returncode == 0
            recorded.append(msgspec.msgpack.decode(output.partition(b"recorded\n")[2], type=Recorded))
        self.hits = sum(each.hits for each in recorded)
        torn = [f"torn: {pair}" for each in recorded for pair in each.torn]
        return violations(self.writes, [read for each in recorded for read in each.reads]) + torn


@contextmanager
def reading(daemon: "ReplaceableDaemon", bug: str = "") -> Iterator[Readers]:
    """Readers that have read both keys, and so keep them."""
    readers = Readers(daemon, bug)
    # Without it, a test that waits for a value that never comes would wait for ever.
    alarm = threading.Timer(PLAYING_S, lambda: [reader.kill() for reader in readers.processes])
    alarm.start()
    try:
        readers.write()
        readers.wait_until_seen()
        yield readers
    finally:
        alarm.cancel()
        for reader in readers.processes:
            reader.kill()
            reader.communicate(timeout=DEADLINE_S)


def after(cycles: int, cycle: Cycle, daemon: "ReplaceableDaemon", bug: str = "") -> list[str]:
    """Return the violations after ``cycles`` cycles."""
    with reading(daemon, bug) as readers:
        for _ in range(cycles):
            cycle(daemon, readers)
            readers.wait_until_seen()
        problems = readers.problems()
        print(f"{cycles} cycles, {readers.hits} hits, {len(problems)} problems", problems[:3])
        assert readers.hits > 100 * cycles
        return problems


def problems_after_one(cycle: Cycle, daemon: "ReplaceableDaemon", bug: str = "") -> list[str]:
    """Return the violations after one cycle in which every reader has read after the write. A planted bug must show."""
    with reading(daemon, bug) as readers:
        cycle(daemon, readers)
        readers.wait_until_read_again()
        problems = readers.problems()
        print(f"{readers.hits} hits, {len(problems)} problems", problems[:3])
        assert readers.hits > 100
        return problems


# ---------------------------------------------------------------------- cycles


def kill_and_replace(daemon: "ReplaceableDaemon", readers: Readers) -> None:
    daemon.kill()
    daemon.begin()
    readers.write()


def stop_and_replace(daemon: "ReplaceableDaemon", readers: Readers) -> None:
    daemon.terminate(signal.SIGTERM)
    daemon.begin()
    readers.write()


def replace_while_a_reader_is_held_up(daemon: "ReplaceableDaemon", readers: Readers) -> None:
    """The reader continues in the middle of its work, when everything has changed."""
    readers.processes[0].send_signal(signal.SIGSTOP)
    try:
        kill_and_replace(daemon, readers)
    finally:
        readers.processes[0].send_signal(signal.SIGCONT)


def stall(daemon: "ReplaceableDaemon", readers: Readers) -> None:
    """The daemon is held up for longer than its lease, and a write waits for it."""
    daemon.process.send_signal(signal.SIGSTOP)
    time.sleep(2 * LEASE_MS / 1000)
    daemon.process.send_signal(signal.SIGCONT)
    readers.write()


def kill_while_stalled(daemon: "ReplaceableDaemon", readers: Readers) -> None:
    daemon.process.send_signal(signal.SIGSTOP)
    kill_and_replace(daemon, readers)


# ---------------------------------------------------------------------- no read is stale


def test_no_read_is_stale_after_kill_9_and_an_immediate_write(start: Start) -> None:
    assert after(KILLS, kill_and_replace, start(durable=True)) == []


def test_no_read_is_stale_after_an_orderly_stop_and_an_immediate_write(start: Start) -> None:
    assert after(STOPS, stop_and_replace, start(durable=True)) == []


@pytest.mark.parametrize("cycle", [stall, kill_while_stalled, replace_while_a_reader_is_held_up])
def test_no_read_is_stale_when_a_process_is_held_up(start: Start, cycle: Cycle) -> None:
    assert after(STALLS, cycle, start(durable=True)) == []


# ---------------------------------------------------------------------- the tests find planted bugs


def test_a_longer_lease_without_a_bug_has_no_problems(start: Start) -> None:
    assert problems_after_one(kill_and_replace, start(durable=True, lease_ms=8 * LEASE_MS)) == []


@pytest.mark.parametrize(
    ("bug", "cycle"),
    [
        ("has no fence", kill_and_replace),
        ("leaves no file", kill_and_replace),
        ("gives longer leases than its successor assumes", kill_and_replace),
        ("stops without ending the lease", stop_and_replace),
    ],
)
def test_a_planted_bug_of_a_daemon_is_found(start: Start, bug: str, cycle: Cycle) -> None:
    assert problems_after_one(cycle, start(durable=True, bug=bug, lease_ms=LONG_LEASE_MS))


def test_a_client_that_trusts_a_lease_for_too_long_is_found(start: Start) -> None:
    assert problems_after_one(kill_and_replace, start(durable=True), "trusts a lease for too long")
