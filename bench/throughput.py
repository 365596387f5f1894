"""How much work a second: the workloads of get and set, each server in turn, round after round."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.context import THROUGHPUT_KEYS, Context
from bench.data import Items, chosen
from bench.errors import BenchError
from bench.exchange import Exchange
from bench.peers.base import Peer
from bench.process import output
from bench.rows import Row, Samples, Target
from bench.servers import Server

CONNECTIONS = 32
_PRINTED = re.compile(r"(\d+) req/s")


@dataclass(frozen=True)
class Workload:
    """A piece of work that every connection repeats: how a peer spells it, and what kvd should reach.

    `rounds_sent` is how many times one run of the load generator sends it, in all.
    """

    title: str
    keys: int
    spell: Callable[[Peer, Items], Exchange | None]
    rounds_sent: int
    target_beside_redis: float | None


GET_64 = Workload("64 gets a frame | pipeline of 64", 64, lambda p, i: p.gets(i), 40_000, 1.15)
GET_1 = Workload("1 get a frame | 1 get", 1, lambda p, i: p.gets(i), 150_000, 0.65)
GET_MANY = Workload("get_many of 100 | MGET 100", 100, lambda p, i: p.get_many(i), 40_000, 1.0)
SET_1 = Workload("1 set a frame | 1 set", 1, lambda p, i: p.sets(i), 150_000, None)
SET_64 = Workload("64 sets a frame | pipeline of 64", 64, lambda p, i: p.sets(i), 12_000, 0.6)
SET_100 = Workload("set of 100 keys | MSET 100", 100, lambda p, i: p.set_many(i), 10_000, 0.65)


def operations_a_second(
    load: Path, server: Server, exchange: Exchange, connections: int, rounds: int, user: Sequence[str] = ()
) -> float:
    """One run of the load generator; gets or sets a second, each key counted. ``user``: a command to become another."""
    return rate(load, str(server.socket), server.socket.with_name("request"), exchange, connections, rounds, user)


def rate(
    load: Path,
    address: str,
    file: Path,
    exchange: Exchange,
    connections: int,
    rounds: int,
    user: Sequence[str] = (),
    greeting: Sequence[str] = (),
) -> float:
    """As operations_a_second, to any address that load.c knows; ``file`` is for the request."""
    file.write_bytes(exchange.request)
    reply = "frames" if exchange.reply_bytes is None else str(exchange.reply_bytes)
    said = output([*user, str(load), address, str(file), reply, str(connections), "1", str(rounds), *greeting])
    found = _PRINTED.match(said)
    if found is None:
        raise BenchError(f"the load generator printed {said!r}")
    return float(found[1]) * exchange.operations


def measure(context: Context, workload: Workload) -> Iterator[Row]:
    """kvd, Redis, kvd, Redis … (and any other peer), as many rounds as asked for; one row for each peer."""
    load = context.program("load")
    items = chosen(workload.keys, THROUGHPUT_KEYS)
    spelled = {peer: workload.spell(peer, items) for peer in [context.kvd, *context.peers]}
    exchanges = {peer: exchange for peer, exchange in spelled.items() if exchange is not None}
    figures: dict[Peer, list[float]] = {peer: [] for peer in exchanges}
    _check(context, exchanges)
    for _ in range(context.rounds):
        for peer, exchange in exchanges.items():
            sent = context.work(workload.rounds_sent)
            figures[peer].append(operations_a_second(load, context.loaded(peer), exchange, CONNECTIONS, sent))
    _check(context, exchanges)
    yield from _rows(context, workload, figures)


def _check(context: Context, exchanges: dict[Peer, Exchange]) -> None:
    """Before and after the timing: the load generator counts answers, and does not see that they are errors."""
    for peer, exchange in exchanges.items():
        context.loaded(peer).try_once(exchange)


def _rows(context: Context, workload: Workload, figures: dict[Peer, list[float]]) -> Iterator[Row]:
    ours = Samples(context.kvd.name, tuple(figures.pop(context.kvd)))
    if not figures:
        yield Row(workload.title, "/s", ours)
    for peer, values in figures.items():
        limit = workload.target_beside_redis if peer.name == "redis" else None
        target = None if limit is None else Target(">=", limit)
        yield Row(workload.title, "/s", ours, Samples(peer.name, tuple(values)), target)


def get64(context: Context) -> Iterator[Row]:
    """64 single gets a frame over 32 connections, beside pipelines of 64."""
    return measure(context, GET_64)


def get1(context: Context) -> Iterator[Row]:
    """One get a frame over 32 connections."""
    return measure(context, GET_1)


def get_many(context: Context) -> Iterator[Row]:
    """100 keys in one get, beside MGET."""
    return measure(context, GET_MANY)


def set1(context: Context) -> Iterator[Row]:
    """One set a frame over 32 connections, all of the same key."""
    return measure(context, SET_1)


def set64(context: Context) -> Iterator[Row]:
    """64 single sets a frame, each a commit, beside pipelines of 64."""
    return measure(context, SET_64)


def set100(context: Context) -> Iterator[Row]:
    """100 keys in one set, one commit, beside MSET."""
    return measure(context, SET_100)
