"""The Python clients beside redis-py: 64 asyncio tasks on one loop, and transactions one after the other."""

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from bench.context import Context
from bench.errors import BenchError
from bench.peers.base import Peer
from bench.process import clean_environment, output
from bench.rows import Row, Samples, Target


@dataclass(frozen=True)
class Work:
    """What both libraries do, and what kvd should reach."""

    name: str
    title: str
    count: int
    target: Target | None


ASYNC_GETS = Work("gets", "asyncio, 64 tasks, get", 60_000, Target(">=", 3.0))
ASYNC_SETS = Work("sets", "asyncio, 64 tasks, set", 40_000, Target(">=", 3.0))
TRANSACTIONS = Work("transactions", "read-modify-write transaction", 5_000, None)


def measured(context: Context, work: Work) -> Row:
    """Round after round, each library in turn, each in a process of its own."""
    if importlib.util.find_spec("redis") is None:
        raise BenchError("needs redis-py to compare with: pip install redis")
    figures: dict[str, list[float]] = {"kvd": [], "redis": []}
    for _ in range(context.rounds):
        for peer in (context.kvd, context.peer("redis")):
            figures[peer.name].append(_once(context, peer, work))
    ours, theirs = (Samples(name, tuple(figures[name])) for name in ("kvd", "redis"))
    return Row(work.title, "/s", ours, Samples("redis-py", theirs.values), work.target)


def _once(context: Context, peer: Peer, work: Work) -> float:
    socket = str(context.loaded(peer).socket)
    command = [sys.executable, "-m", "bench.client_driver", peer.name, work.name, socket, str(context.work(work.count))]
    return float(output(command, clean_environment()))


def asyncio_clients(context: Context) -> Iterator[Row]:
    """Gets and sets of 64 tasks."""
    yield measured(context, ASYNC_GETS)
    yield measured(context, ASYNC_SETS)


def transactions(context: Context) -> Iterator[Row]:
    """Read a number and write it back one higher, atomically: two round trips, and WATCH/GET/MULTI/EXEC."""
    yield measured(context, TRANSACTIONS)
