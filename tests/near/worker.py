"""A process that reads through a near cache, and perhaps writes, and records the times of its reads and writes.

Keys come in pairs, ``a0`` and ``b0`` and so on, which are always written together. So a ``get_many`` of both that
returns two different values is torn. Without a number of ``reads`` it runs until its stdin ends, and prints which
values it sees first. A line with a number on stdin asks each thread to print a line after that many more reads.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from time import monotonic_ns
from typing import Any

import msgspec

import kv
from kv.near_cache.blocking import NearClient
from kv.near_cache.cache import NearCache
from kv.near_cache.table import Table
from kv.wire.protocol import ClientProtocol
from kvd.protocol.near_cache import FIRST_GENERATION, LEASE
from tests.harness.waiting import DEADLINE_S
from tests.near.register import INFINITY, Reads, Write

REPORT = "has read\n"


class Plan(msgspec.Struct):
    """``reads`` for each thread (0: until stdin ends), and a write after every ``write_after`` of them (0: none)."""

    address: str
    number: int
    reads: int
    pairs: int
    write_after: int = 0
    threads: int = 1
    asynchronous: bool = False
    bug: str = ""


class Recorded(msgspec.Struct):
    """``torn``: pairs of different values that were read together. ``hits`` to ``refreshed`` are counted in keys."""

    writes: list[Write]
    reads: list[Reads]
    torn: list[tuple[str | None, str | None]]
    hits: int
    keys_read: int
    refreshed: int


class Recorder:
    """The calls of one thread, one after the other."""

    def __init__(self, plan: Plan, name: str) -> None:
        self.plan = plan
        self.name = name
        self.writes: list[Write] = []
        self.reads: dict[tuple[str, bytes | None], list[int]] = {}
        self.torn: list[tuple[str | None, str | None]] = []
        self._reads_to_report = 0

    def report_after(self, reads: int) -> None:
        """Say on stdout when this number of reads has ended from now on. Called by another thread."""
        self._reads_to_report = reads

    def read(self, key: str, value: bytes | None, start: int, end: int) -> None:
        """Record a read. Of all reads of a value only the first end and the last start matter."""
        seen = self.reads.get((key, value))
        if seen is None:
            self.reads[key, value] = [end, start, 1]
            if not self.plan.reads:
                sys.stdout.write(f"{key} {_text(value)}\n")  # in one piece, because of other threads
                sys.stdout.flush()
        else:
            seen[1] = start
            seen[2] += 1
        if self._reads_to_report:
            self._reads_to_report -= 1
            if not self._reads_to_report:
                sys.stdout.write(REPORT)
                sys.stdout.flush()

    def read_both(self, keys: list[str], found: dict[str, bytes | None], start: int, end: int) -> None:
        """Record a read of a pair."""
        for key in keys:
            self.read(key, found[key], start, end)
        first, second = (_text(found[key]) for key in keys)
        if first != second:
            self.torn.append((first, second))

    def next_write(self, number: int) -> tuple[list[str], bytes]:
        """Begin to record the next write, whose end is not known yet; return its keys and its value."""
        pair, value = number // self.plan.write_after % self.plan.pairs, f"{self.name}-{number}"
        keys = [f"a{pair}", f"b{pair}"]
        self.writes += [Write(key, value, monotonic_ns(), INFINITY) for key in keys]
        return keys, value.encode()

    def written(self) -> None:
        """Record the end of the last write."""
        end = monotonic_ns()
        for write in self.writes[-2:]:
            write.end = end


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def play(db: NearClient, recorder: Recorder, going_on: Callable[[int], bool]) -> None:
    """Mostly reads of one key; every fourth time of a pair."""
    number, plan = 0, recorder.plan
    while going_on(number):
        number += 1
        pair = number * 7 % plan.pairs
        keys = [f"a{pair}", f"b{pair}"]
        try:
            if number % 4 == 0:
                start = monotonic_ns()
                found = db.get_many(keys)
                recorder.read_both(keys, found, start, monotonic_ns())
            else:
                key = keys[number % 2]
                start = monotonic_ns()
                value = db.get(key)
                recorder.read(key, value, start, monotonic_ns())
        except (kv.Unavailable, kv.ConnectionLost):
            continue  # no answer; the daemon is being killed
        if plan.write_after and number % plan.write_after == 0:
            keys, value = recorder.next_write(number)
            db.set_many(dict.fromkeys(keys, value))
            recorder.written()


async def play_async(db: kv.AsyncNearClient, recorder: Recorder, going_on: Callable[[int], bool]) -> None:
    """The same."""
    number, plan = 0, recorder.plan
    while going_on(number):
        number += 1
        pair = number * 7 % plan.pairs
        keys = [f"a{pair}", f"b{pair}"]
        try:
            if number % 4 == 0:
                start = monotonic_ns()
                found = await db.get_many(keys)
                recorder.read_both(keys, found, start, monotonic_ns())
            else:
                key = keys[number % 2]
                start = monotonic_ns()
                value = await db.get(key)
                recorder.read(key, value, start, monotonic_ns())
        except (kv.Unavailable, kv.ConnectionLost):
            continue
        if plan.write_after and number % plan.write_after == 0:
            keys, value = recorder.next_write(number)
            await db.set_many(dict.fromkeys(keys, value))
            recorder.written()


# ---------------------------------------------------------------------- clients with a planted bug


def samples_the_generation_when_the_reply_has_come() -> None:
    correct_fill = Table.fill

    def broken(self: Table, key: str, fetched: list[Any]) -> None:
        slot = fetched[2]
        correct_fill(
            self, key, fetched if slot is None else [*fetched[:3], self.words[FIRST_GENERATION + slot], fetched[4]]
        )

    Table.fill = broken  # type: ignore[method-assign]


def trusts_a_lease_for_too_long() -> None:
    class Trusting:
        """Words whose lease lasts a minute longer."""

        def __init__(self, words: memoryview) -> None:
            self.words = words

        def __getitem__(self, number: int) -> int:
            return self.words[number] + (60 * 10**9 if number == LEASE else 0)

    correct_attach = NearCache.attach

    def broken(self: NearCache, protocol: ClientProtocol) -> None:
        assert protocol.near_table is not None
        protocol.near_table.words = Trusting(protocol.near_table.words)
        correct_attach(self, protocol)

    NearCache.attach = broken  # type: ignore[method-assign]


def does_not_compare_again() -> None:
    NearCache._are_still_current = lambda self, entries, table, exchange: True  # type: ignore[method-assign]


BUGS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "samples the generation when the reply has come": samples_the_generation_when_the_reply_has_come,
    "trusts a lease for too long": trusts_a_lease_for_too_long,
    "does not compare again": does_not_compare_again,
}


# ---------------------------------------------------------------------- the process


def main(plan: Plan) -> Recorded:
    """Carry out the plan; return what was recorded."""
    BUGS[plan.bug]()
    recorders = [Recorder(plan, f"{plan.number}.{thread}") for thread in range(plan.threads)]
    ended = threading.Event()

    def obey() -> None:
        for line in sys.stdin:
            for recorder in recorders:
                recorder.report_after(int(line))
        ended.set()

    if not plan.reads:
        os.nice(10)  # it never pauses, and must not delay the start of a daemon
        threading.Thread(target=obey, daemon=True).start()

    def going_on(number: int) -> bool:
        return number < plan.reads if plan.reads else not ended.is_set()

    near_cache = (
        asyncio.run(_tasks(plan, recorders, going_on)) if plan.asynchronous else _threads(plan, recorders, going_on)
    )
    stats = near_cache.stats()
    return Recorded(
        [write for each in recorders for write in each.writes],
        [Reads(key, _text(value), *seen) for each in recorders for (key, value), seen in each.reads.items()],
        [pair for each in recorders for pair in each.torn],
        stats.hits,
        stats.hits + stats.misses + stats.refetches,
        stats.refreshed,
    )


def _threads(plan: Plan, recorders: list[Recorder], going_on: Callable[[int], bool]) -> NearCache:
    with kv.connect(plan.address, timeout=DEADLINE_S, near_cache=True) as db:
        threads = [threading.Thread(target=play, args=(db, each, going_on)) for each in recorders]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return db.near_cache


async def _tasks(plan: Plan, recorders: list[Recorder], going_on: Callable[[int], bool]) -> NearCache:
    async with kv.aio.connect(plan.address, timeout=DEADLINE_S, near_cache=True) as db:
        playing: list[Coroutine[Any, Any, None]] = [play_async(db, each, going_on) for each in recorders]
        await asyncio.gather(*playing)
    return db.near_cache


if __name__ == "__main__":
    result = main(msgspec.json.decode(sys.argv[1], type=Plan))
    sys.stdout.write("recorded\n")
    sys.stdout.flush()
    sys.stdout.buffer.write(msgspec.msgpack.encode(result))
