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
    """A workload for both libraries, and the ratio that kvd should reach."""

    name: str
    title: str
    count: int
    target: Target | None


ASYNC_GETS = Work("gets", "asyncio, 64 tasks, get", 60_000, Target(">=", 3.0))
ASYNC_SETS = Work("sets", "asyncio, 64 tasks, set", 40_000, Target(">=", 3.0))
TRANSACTIONS = Work("transactions", "read-modify-write transaction", 5_000, None)


def measure(context: Context, work: Work) -> Row:
    """Measure each library in turn, in a process of its own, round after round."""
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
    """Gets and sets by 64 tasks."""
    yield measure(context, ASYNC_GETS)
    yield measure(context, ASYNC_SETS)


def transactions(context: Context) -> Iterator[Row]:
    """Increment a number by an atomic read and write: two round trips, beside WATCH/GET/MULTI/EXEC."""
    yield measure(context, TRANSACTIONS)
