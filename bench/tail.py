"""The slow replies: single gets at a fixed rate (open loop), and the same beside 9,900 idle connections."""

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from bench.context import THROUGHPUT_KEYS, Context
from bench.data import chosen
from bench.errors import BenchError
from bench.process import output
from bench.rows import Row, Samples, Target
from bench.servers import Server
from bench.throughput import CONNECTIONS, GET_1, operations_a_second

_SECONDS = 3.0
FEW = 100
MANY = 10_000
_RATE_OF_MANY = 20_000  # single gets a second over FEW connections: a tenth to a fifth of what kvd can do
_DESCRIPTORS = MANY + 500


@dataclass(frozen=True)
class Load:
    """The work of the open-loop generator: single gets of one key."""

    active: int
    idle: int
    rate: float
    seconds: float


def tail_latency(context: Context) -> Iterator[Row]:
    """kvd and its peers at the same rate, which is half of kvd's rate in a closed loop."""
    rate = round(_closed_loop_rate(context) / 2)
    load = Load(CONNECTIONS, 0, rate, context.work(15) * _SECONDS / 15)
    figures: dict[str, list[tuple[float, ...]]] = {peer.name: [] for peer in (context.kvd, *context.peers)}
    for _ in range(context.rounds):
        for peer in (context.kvd, *context.peers):
            figures[peer.name].append(latencies_us(context, context.loaded(peer), load))
    for name, index, limit in (("p99.9", 2, 2.0), ("p99", 1, None), ("p50", 0, None)):
        ours, *others = (Samples(peer, tuple(one[index] for one in many)) for peer, many in figures.items())
        for theirs in others:
            target = Target("<=", limit) if limit and theirs.name == "redis" else None
            yield Row(f"{name} of single gets, {rate / 1000:.0f} k/s, open loop", "us", ours, theirs, target)


def _closed_loop_rate(context: Context) -> float:
    """Single gets a second that kvd reaches: the median of three runs."""
    exchange = context.kvd.gets(chosen(1, THROUGHPUT_KEYS))
    program, server = context.program("load"), context.loaded(context.kvd)
    return median(
        operations_a_second(program, server, exchange, CONNECTIONS, context.work(GET_1.rounds_sent)) for _ in range(3)
    )


def many_connections(context: Context) -> Iterator[Row]:
    """100 connections at one rate, alone and beside 9,900 idle connections."""
    _raise_descriptors()
    seconds = context.work(15) * _SECONDS / 15
    alone: list[tuple[float, ...]] = []
    beside: list[tuple[float, ...]] = []
    with context.fresh(context.kvd) as server:
        server.load(THROUGHPUT_KEYS)
        for _ in range(context.rounds):
            alone.append(latencies_us(context, server, Load(FEW, 0, _RATE_OF_MANY, seconds)))
            beside.append(latencies_us(context, server, Load(FEW, MANY - FEW, _RATE_OF_MANY, seconds)))
    for name, index, target in (("p99", 1, Target("<=", 2.0)), ("p50", 0, None)):
        ours = Samples(f"{MANY:,} connections", tuple(one[index] for one in beside))
        theirs = Samples(f"{FEW} connections", tuple(one[index] for one in alone))
        yield Row(f"{name}, {MANY:,} connections, {FEW} active, {_RATE_OF_MANY:,}/s", "us", ours, theirs, target)


def _raise_descriptors() -> None:
    """Raise the limit of descriptors, which the server and the generator inherit. Raises BenchError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _DESCRIPTORS:
        raise BenchError(f"needs {_DESCRIPTORS} descriptors in a process, but the limit is {hard}: ulimit -Hn")
    if soft != resource.RLIM_INFINITY and soft < _DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, hard))


def latencies_us(context: Context, server: Server, load: Load) -> tuple[float, ...]:
    """Run once and return p50, p99, p99.9 and the maximum. Raises BenchError if the server cannot keep up."""
    exchange = server.peer.gets(chosen(1, THROUGHPUT_KEYS))
    server.try_once(exchange)
    file = server.socket.with_name("request")
    file.write_bytes(exchange.request)
    reply = "frames" if exchange.reply_bytes is None else str(exchange.reply_bytes)
    words = [str(context.program("open_loop")), str(server.socket), str(file), reply]
    printed = output([*words, *map(str, (load.active, load.idle, load.rate, load.seconds))])
    return tuple(map(float, printed.split()[:4]))
