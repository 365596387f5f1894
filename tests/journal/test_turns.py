"""Groups reach the commit log in the order of their versions, whatever starts a write and whenever."""

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable

import pytest

from kvd.engine.durability import LogDurability, LogPosition
from kvd.journal.errors import NoSpace
from kvd.journal.writer import INLINE_BYTES
from tests.harness.waiting import until
from tests.journal.disks import Failing, MemoryDisk
from tests.journal.running import Running, durably_running, items

SEGMENT_BYTES = 4 << 20


class SlowDisk(MemoryDisk):
    """A disk whose syncs wait for ``go``, once it is set; ``waiting`` is set when a sync waits."""

    def __init__(self) -> None:
        super().__init__()
        self.go: threading.Event | None = None
        self.waiting = threading.Event()

    def sync(self, descriptor: int) -> None:
        if self.go is not None:
            self.waiting.set()
            assert self.go.wait(30)
        super().sync(descriptor)


class Anyone:
    """A session that holds an answer back."""

    def on_durable(self) -> None:
        """Do nothing when there is progress."""


def run(body: Callable[[Running, LogDurability, SlowDisk], Awaitable[None]], sync: str = "interval") -> Running:
    """Run ``body`` in a loop; then recover from what is on the disk."""
    disk = SlowDisk()

    async def main() -> None:
        running, durability = durably_running(disk, sync, segment_bytes=SEGMENT_BYTES)
        await body(running, durability, disk)
        disk.go = None
        await durability.close()

    asyncio.run(main())
    return Running(MemoryDisk(disk.contents()), segment_bytes=SEGMENT_BYTES)


async def hold_a_sync(running: Running, durability: LogDurability, disk: SlowDisk) -> threading.Event:
    """Begin a commit whose sync ends only when the event is set."""
    disk.go = go = threading.Event()
    running.set({"first": b""})
    durability.wait(Anyone(), LogPosition(1, 1))  # type: ignore[arg-type]
    await until(disk.waiting.is_set)
    return go


@pytest.mark.parametrize("kind", ["flush", "rotate"])
def test_a_flush_or_a_new_segment_waits_its_turn_and_then_takes_all_commits(kind: str) -> None:
    """While it waits for a sync to end, a client that does not need the sync makes later commits be written."""

    async def body(running: Running, durability: LogDurability, disk: SlowDisk) -> None:
        go = await hold_a_sync(running, durability, disk)
        running.set({"second": b""})
        turn = asyncio.ensure_future(durability.flush() if kind == "flush" else durability.rotate())
        await asyncio.sleep(0)
        running.set({"third": b""})
        durability.wait(Anyone(), LogPosition(3, 0))  # type: ignore[arg-type]
        await until(lambda: running.log.written == 3)
        go.set()
        await turn

    assert set(items(run(body).database)) == {"first", "second", "third"}


def test_a_new_segment_records_the_version_before_it() -> None:
    async def body(running: Running, durability: LogDurability, disk: SlowDisk) -> None:
        go = await hold_a_sync(running, durability, disk)
        turn = asyncio.ensure_future(durability.rotate())
        await asyncio.sleep(0)
        running.set({"second": b""})
        durability.wait(Anyone(), LogPosition(2, 0))  # type: ignore[arg-type]
        await until(lambda: running.log.written == 2)
        go.set()
        assert await turn == (2, 2)

    run(body)


def test_a_large_batch_that_goes_to_the_worker_is_not_overtaken() -> None:
    async def body(running: Running, durability: LogDurability, disk: SlowDisk) -> None:
        loop = asyncio.get_running_loop()
        turns = []

        def overtake() -> None:  # in the iteration of the loop in which the batch is taken, after that
            running.set({"second": b""})
            turns.append(loop.create_task(durability.rotate()))

        running.set({"first": b"x" * (INLINE_BYTES + 1)})
        loop.call_soon(overtake)
        # A task that is made before the batch is taken, so that it runs before the one that writes the batch.
        turns.append(loop.create_task(durability.rotate()))
        await until(lambda: len(turns) == 2)
        await asyncio.gather(*turns)

    assert set(items(run(body, "always").database)) == {"first", "second"}


def test_after_an_error_nothing_is_written_or_synced() -> None:
    """A sync that waits its turn when another one fails must not run: it might seem to succeed."""
    disk = Failing()
    failures: list[BaseException] = []

    async def main() -> None:
        running, durability = durably_running(disk, "always", failures.append)
        running.set({"a": b""})
        disk.fails = lambda call: 5 if call == "sync" and not failures else None
        flushes = [asyncio.ensure_future(durability.flush()) for _ in range(2)]
        done = await asyncio.gather(*flushes, return_exceptions=True)
        assert [type(error) for error in done] == [OSError, OSError]
        assert (running.database.visible, running.log.synced) == (0, 0)
        await durability.close()

    asyncio.run(main())
    assert isinstance(failures[0], OSError)
    assert failures[0].errno == 5


def test_without_space_a_new_segment_is_refused_and_the_log_goes_on() -> None:
    disk = Failing()
    failures: list[BaseException] = []

    async def main() -> None:
        running, durability = durably_running(disk, "always", failures.append, segment_bytes=1024)
        disk.fails = lambda call: 28 if call in ("create", "allocate") else None
        await durability.rotate()  # into the one that was allocated in advance
        with pytest.raises(NoSpace):
            await durability.rotate()
        running.set({"a": b""})
        await durability.flush()
        await durability.close()

    asyncio.run(main())
    assert not failures
    assert set(items(Running(MemoryDisk(disk.contents())).database)) == {"a"}


# ---------------------------------------------------------------------- a sync that is late


def while_a_sync_is_held(interval_ms: int, check: Callable[[LogDurability], bool]) -> bool:
    """Write a commit while the sync of an earlier one is held for longer than two milliseconds; return ``check``."""
    disk = SlowDisk()
    checked = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        running, durability = durably_running(disk, "interval", segment_bytes=SEGMENT_BYTES, interval_ms=interval_ms)
        await durability.begin_early()
        disk.go = go = threading.Event()
        running.set({"first": b""})
        durability.wait(Anyone(), LogPosition(1, 0))  # type: ignore[arg-type]
        await until(lambda: durability.has_reached(LogPosition(1, 0)))
        durability.wait(Anyone(), LogPosition(1, 1))  # type: ignore[arg-type]
        await until(disk.waiting.is_set)
        held_until = loop.time() + 0.01
        await until(lambda: loop.time() > held_until)
        running.set({"second": b""})
        durability.wait(Anyone(), LogPosition(2, 0))  # type: ignore[arg-type]
        await until(lambda: running.log.written == 2)
        checked.append(check(durability))
        go.set()
        disk.go = None
        await until(lambda: durability.has_reached(LogPosition(2, 0)))
        await durability.close()

    asyncio.run(main())
    return checked[0]


def test_with_an_interval_acknowledgements_wait_for_a_sync_that_is_late() -> None:
    """So a power cut never takes acknowledgements of more than two intervals."""
    assert not while_a_sync_is_held(1, lambda durability: durability.has_reached(LogPosition(2, 0)))
    assert while_a_sync_is_held(1, lambda durability: durability.shown < 2), "nobody else is shown it, either"


def test_with_an_interval_acknowledgements_do_not_wait_for_a_sync_in_time() -> None:
    assert while_a_sync_is_held(60_000, lambda durability: durability.has_reached(LogPosition(2, 0)))


# ---------------------------------------------------------------------- a mark, and the end


def test_a_mark_under_way_is_awaited_by_the_end() -> None:
    """Nothing of it is left when the loop closes."""
    disk = SlowDisk()
    problems: list[dict[str, object]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(context))
        running, durability = durably_running(disk, "always", segment_bytes=SEGMENT_BYTES)
        running.set({"a": b""})
        await durability.flush()
        disk.go = go = threading.Event()
        disk.waiting.clear()
        durability.writer._maybe_mark(1)  # as its timer does
        await until(disk.waiting.is_set)
        end = asyncio.ensure_future(durability.close())
        await asyncio.sleep(0)
        go.set()
        disk.go = None
        await end
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert problems == []


def test_a_mark_that_fails_ends_the_daemon_and_nothing_else() -> None:
    disk, failures = Failing(), list[BaseException]()
    problems: list[dict[str, object]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        running, durability = durably_running(disk, "always", failures.append)
        running.set({"a": b""})
        await durability.flush()
        disk.fails = lambda call: 5 if call == "sync" else None
        durability.writer._maybe_mark(1)
        await until(lambda: failures)
        await durability.close()

    asyncio.run(main())
    gc.collect()
    assert [type(error) for error in failures] == [OSError]
    assert problems == []
