"""Locks and queues after much use: a lock taken 20,000 times, a prefix that 100,000 messages went through.

The cost is processor time, of the client and the daemon together, so other load on the machine hardly changes it.
"""

import time
from collections.abc import Callable, Iterator

import kv
from bench.context import Context
from bench.pinger import cpu_clock
from bench.rows import Row, Samples, Target
from bench.servers import Server

_MAX_ROUNDS = 3
_MEASURED = 500
_FRESH_USES = 10
_LOCK_USES = 20_000
_MESSAGES = 100_000
_LIMIT = 1.2


def used(context: Context) -> Iterator[Row]:
    """A lock and a queue: the cost after much use beside the cost when they were fresh."""
    fraction = context.many_keys / 1_000_000  # a quick run uses them less
    for title, uses, use in (("lock + unlock", _LOCK_USES, _lock), ("queue, a message", _MESSAGES, _pass_message)):
        count = int(uses * fraction)
        measured = [_fresh_and_used(context, use, count) for _ in range(min(context.rounds, _MAX_ROUNDS))]
        ours = Samples(f"after {count:,}", tuple(late for _, late in measured))
        theirs = Samples(f"after {_FRESH_USES}", tuple(early for early, _ in measured))
        yield Row(f"{title}: after use", "us CPU", ours, theirs, Target("<=", _LIMIT))


def _fresh_and_used(context: Context, use: Callable[[kv.Client, int], None], count: int) -> tuple[float, float]:
    """Return the cost of one use in µs: after a few uses, and after ``count``."""
    with Server(context.kvd, context.new_directory()) as server, kv.connect(str(server.socket)) as db:
        for number in range(_FRESH_USES):
            use(db, number)
        fresh = _cost(server, db, use, _FRESH_USES)
        for number in range(_FRESH_USES + _MEASURED, count):
            use(db, number)
        return fresh, _cost(server, db, use, count)


def _cost(server: Server, db: kv.Client, use: Callable[[kv.Client, int], None], first: int) -> float:
    server_clock = cpu_clock(server.pid)
    begin = time.clock_gettime_ns(server_clock) + time.process_time_ns()
    for number in range(first, first + _MEASURED):
        use(db, number)
    return (time.clock_gettime_ns(server_clock) + time.process_time_ns() - begin) / _MEASURED / 1000


def _lock(db: kv.Client, _number: int) -> None:
    with db.lock("used"):
        pass


def _pass_message(db: kv.Client, number: int) -> None:
    """Put a message, look for the first one, and take it."""
    db.set(f"q/{number:08}", b"message")
    first = next(iter(db.scan("q/", limit=1)))
    db.delete(first.key)
