"""Concurrent reads through near caches, and writes, by several processes are linearizable, and pairs are never torn.

There are fewer slots than keys, so keys share slots. KVD_TEST_SCALE multiplies the number of reads.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.harness.scale import TIMES
from tests.harness.waiting import DEADLINE_S
from tests.near.conftest import play
from tests.near.register import violations
from tests.near.worker import Plan, Recorded

if TYPE_CHECKING:
    from tests.harness.processes import Process
    from tests.near.conftest import ReplaceableDaemon

Start = Callable[..., "ReplaceableDaemon"]
PAIRS = 8
SLOTS = 8
READS = 200_000 * TIMES
WRITERS = 2
READERS = 4
PLAYING_S = 600 * TIMES
MIN_HITS = 0.5


def recorded(process: "Process") -> Recorded:
    """Wait for the end of a process; return what it has recorded."""
    output, _ = process.communicate(timeout=PLAYING_S)
    assert process.returncode == 0
    return msgspec.msgpack.decode(output.partition(b"recorded\n")[2], type=Recorded)


def everything(plans: list[Plan]) -> list[Recorded]:
    """Run processes at the same time; return what they have recorded."""
    processes = [play(plan) for plan in plans]
    try:
        return [recorded(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait(DEADLINE_S)


def plans(daemon: "ReplaceableDaemon", reads: int, bug: str = "") -> list[Plan]:
    """Two processes that write now and then, one with threads, one with tasks, and two more that only read."""
    share = reads // (READERS + WRITERS)
    writers = [Plan(daemon.address, number, share, PAIRS, write_after=20, bug=bug) for number in range(WRITERS)]
    readers = [Plan(daemon.address, number, share, PAIRS, bug=bug) for number in range(WRITERS, WRITERS + READERS)]
    for several in readers[:2]:
        several.threads, several.reads = 2, share // 2
    readers[1].asynchronous = True
    return writers + readers


def problems(history: list[Recorded]) -> tuple[list[str], list[tuple[str | None, str | None]]]:
    """Return the violations of registers, and the torn pairs."""
    writes = [write for each in history for write in each.writes]
    reads = [read for each in history for read in each.reads]
    return violations(writes, reads), [pair for each in history for pair in each.torn]


@pytest.mark.parametrize("durable", [False, True], ids=["in memory", "durable"])
def test_recorded_reads_are_linearizable_although_slots_collide(start: Start, durable: bool) -> None:
    history = everything(plans(start(durable=durable, slots=SLOTS), READS))
    hits, keys_read = sum(each.hits for each in history), sum(each.keys_read for each in history)
    writes = sum(len(each.writes) for each in history) // 2
    print(f"{keys_read} reads, {hits / keys_read:.0%} of them hits, {writes} writes")
    assert problems(history) == ([], [])
    assert keys_read >= READS * 0.9
    assert hits >= MIN_HITS * keys_read
    assert writes >= READS / 100
    assert sum(each.refreshed for each in history) >= READS / 1_000


@pytest.mark.parametrize("bug", ["bumps after the reply", "overlooks every fiftieth change"])
def test_a_planted_bug_of_a_daemon_is_found(start: Start, bug: str) -> None:
    violated, _ = problems(everything(plans(start(slots=SLOTS, bug=bug), 60_000)))
    print(len(violated), violated[:2])
    assert violated


def test_a_client_that_samples_the_generation_is_found(start: Start) -> None:
    bug = "samples the generation when the reply has come"
    violated, _ = problems(everything(plans(start(slots=SLOTS), 100_000, bug)))
    print(len(violated), violated[:2])
    assert violated
