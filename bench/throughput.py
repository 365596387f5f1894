"""Throughput: the workloads of get and set, with each server in turn, round after round."""

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
    """A request that every connection repeats: how a peer encodes it, and the ratio that kvd should reach.

    All connections of the load generator together send it `rounds_sent` times in one run.
    """

    title: str
    keys: int
    encode: Callable[[Peer, Items], Exchange | None]
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
    """Run the load generator once. Returns gets or sets a second, by keys. ``user`` is a command to change the user."""
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
    """Like operations_a_second, but for any address that load.c accepts. The request is written to ``file``."""
    file.write_bytes(exchange.request)
    reply = "frames" if exchange.reply_bytes is None else str(exchange.reply_bytes)
    printed = output([*user, str(load), address, str(file), reply, str(connections), "1", str(rounds), *greeting])
    match = _PRINTED.match(printed)
    if match is None:
        raise BenchError(f"the load generator printed {printed!r}")
    return float(match[1]) * exchange.operations


def measure(context: Context, workload: Workload) -> Iterator[Row]:
    """Measure kvd and each peer in turn (kvd, Redis, kvd, Redis …), for all rounds. One row for each peer."""
    load = context.program("load")
    items = chosen(workload.keys, THROUGHPUT_KEYS)
    encoded = {peer: workload.encode(peer, items) for peer in [context.kvd, *context.peers]}
    exchanges = {peer: exchange for peer, exchange in encoded.items() if exchange is not None}
    figures: dict[Peer, list[float]] = {peer: [] for peer in exchanges}
    _check(context, exchanges)
    for _ in range(context.rounds):
        for peer, exchange in exchanges.items():
            sent = context.work(workload.rounds_sent)
            figures[peer].append(operations_a_second(load, context.loaded(peer), exchange, CONNECTIONS, sent))
    _check(context, exchanges)
    yield from _rows(context, workload, figures)


def _check(context: Context, exchanges: dict[Peer, Exchange]) -> None:
    """Check the replies before and after the timing: the load generator only counts replies, even errors."""
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
    """64 single gets a frame over 32 connections, beside pipelines of 64 GETs."""
    return measure(context, GET_64)


def get1(context: Context) -> Iterator[Row]:
    """One get a frame over 32 connections."""
    return measure(context, GET_1)


def get_many(context: Context) -> Iterator[Row]:
    """100 keys in one get, beside MGET."""
    return measure(context, GET_MANY)


def set1(context: Context) -> Iterator[Row]:
    """One set a frame over 32 connections, always of the same key."""
    return measure(context, SET_1)


def set64(context: Context) -> Iterator[Row]:
    """64 single sets a frame, each a commit, beside pipelines of 64 SETs."""
    return measure(context, SET_64)


def set100(context: Context) -> Iterator[Row]:
    """100 keys in one set, which is one commit, beside MSET."""
    return measure(context, SET_100)
