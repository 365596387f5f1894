"""The slow answers: single gets at a fixed rate (open loop), and the same beside ten thousand idle connections."""

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
_RATE_OF_MANY = 20_000  # single gets a second, of FEW connections: a tenth to a fifth of what kvd can do
_DESCRIPTORS = MANY + 500


@dataclass(frozen=True)
class Load:
    """What the open-loop generator does; single gets of one key."""

    active: int
    idle: int
    rate: float
    seconds: float


def tail_latency(context: Context) -> Iterator[Row]:
    """kvd and its peers at one rate: half of what kvd reaches in a closed loop, measured first."""
    rate = round(_most(context) / 2)
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


def _most(context: Context) -> float:
    """Single gets a second that kvd reaches, the median of three."""
    exchange = context.kvd.gets(chosen(1, THROUGHPUT_KEYS))
    program, server = context.program("load"), context.loaded(context.kvd)
    return median(
        operations_a_second(program, server, exchange, CONNECTIONS, context.work(GET_1.rounds_sent)) for _ in range(3)
    )


def many_connections(context: Context) -> Iterator[Row]:
    """A hundred connections at one rate, alone and beside 9,900 that are open and idle."""
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
    """Let the server and the generator, which inherit it, have so many connections. Raises BenchError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _DESCRIPTORS:
        raise BenchError(f"needs {_DESCRIPTORS} descriptors in a process, and may have {hard}: ulimit -Hn")
    if soft != resource.RLIM_INFINITY and soft < _DESCRIPTORS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, hard))


def latencies_us(context: Context, server: Server, load: Load) -> tuple[float, ...]:
    """p50, p99, p99.9 and the worst, of one run. Raises BenchError if the server cannot keep up."""
    exchange = server.peer.gets(chosen(1, THROUGHPUT_KEYS))
    server.try_once(exchange)
    file = server.socket.with_name("request")
    file.write_bytes(exchange.request)
    reply = "frames" if exchange.reply_bytes is None else str(exchange.reply_bytes)
    words = [str(context.program("open_loop")), str(server.socket), str(file), reply]
    said = output([*words, *map(str, (load.active, load.idle, load.rate, load.seconds))])
    return tuple(map(float, said.split()[:4]))
