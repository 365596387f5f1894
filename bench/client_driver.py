"""Measure one Python client library in a process of its own: prints operations a second.

`python -m bench.client_driver LIBRARY WORK SOCKET COUNT`, where WORK is `gets` or `sets` (64 asyncio tasks, each
waits for one operation before the next) or `transactions` (blocking: increment a number atomically by a read and a
write).
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

from bench.data import key, value

TASKS = 64
KEYS = 1_000
Call = Callable[[int], Awaitable[object]]


async def many_tasks(call: Call, count: int) -> float:
    """Run TASKS operations at a time. Returns operations a second."""

    async def task(number: int) -> None:
        for turn in range(count // TASKS):
            await call((number * 17 + turn) % KEYS)

    begin = time.perf_counter()
    await asyncio.gather(*(task(number) for number in range(TASKS)))
    return count // TASKS * TASKS / (time.perf_counter() - begin)


async def kvd_asyncio(work: str, path: str, count: int) -> float:
    """kv.aio on one connection."""
    import kv.aio

    async with kv.aio.connect(path) as db:
        await db.set_many({key(number): value(number) for number in range(KEYS)})
        calls: dict[str, Call] = {
            "gets": lambda number: db.get(key(number)),
            "sets": lambda number: db.set(key(number), value(number)),
        }
        await many_tasks(calls["gets"], TASKS)
        return await many_tasks(calls[work], count)


async def redis_asyncio(work: str, path: str, count: int) -> float:
    """redis-py with its own pool of connections, as its documentation shows it."""
    import redis.asyncio

    client = redis.asyncio.Redis(unix_socket_path=path)
    await client.mset({key(number): value(number) for number in range(KEYS)})
    calls: dict[str, Call] = {
        "gets": lambda number: client.get(key(number)),
        "sets": lambda number: client.set(key(number), value(number)),
    }
    await many_tasks(calls["gets"], TASKS)
    result = await many_tasks(calls[work], count)
    await client.aclose()
    return result


def kvd_transactions(path: str, count: int) -> float:
    """db.transaction(): two round trips each."""
    import kv

    with kv.connect(path) as db:
        db.set("counter", b"0")
        begin = time.perf_counter()
        for _ in range(count):
            with db.transaction() as txn:
                txn["counter"] = str(int(txn["counter"]) + 1).encode()
        seconds = time.perf_counter() - begin
        assert db.get("counter") == str(count).encode()
    return count / seconds


def redis_transactions(path: str, count: int) -> float:
    """WATCH, GET, MULTI-SET-EXEC: redis-py's own way to increment a number by a read and a write."""
    import redis

    client = redis.Redis(unix_socket_path=path)
    client.set("counter", 0)
    begin = time.perf_counter()
    for _ in range(count):
        with client.pipeline() as pipe:
            pipe.watch("counter")
            number = int(pipe.get("counter"))  # type: ignore[arg-type]
            pipe.multi()
            pipe.set("counter", number + 1)
            pipe.execute()
    seconds = time.perf_counter() - begin
    assert int(client.get("counter")) == count  # type: ignore[arg-type]
    return count / seconds


def main(library: str, work: str, path: str, count: str) -> None:
    """Measure and print."""
    if work == "transactions":
        run = kvd_transactions if library == "kvd" else redis_transactions
        print(run(path, int(count)))
        return
    import uvloop

    work_async = kvd_asyncio if library == "kvd" else redis_asyncio
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(runner.run(work_async(work, path, int(count))))


if __name__ == "__main__":
    main(*sys.argv[1:])
