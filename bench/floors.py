"""What the machine allows: servers that do nothing, measured like the real servers.

`floors` compares kvd with a C echo server (same requests, replies of the same size) under the load generator. From one
Python connection it compares kvd and its peers with a bare Python server that sends each request back.
"""

import gc
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.context import THROUGHPUT_KEYS, Context
from bench.data import Items, chosen
from bench.exchange import Connection, Exchange
from bench.peers.base import Peer
from bench.process import pin
from bench.rows import Row, Samples
from bench.throughput import CONNECTIONS, GET_1, GET_64, Workload, operations_a_second

_PING_BYTES = 16


class Echo(Peer):
    """The C echo server: it replies to any frame with a frame of a fixed size."""

    name = "C echo"

    def __init__(self, program: Path, reply_bytes: int) -> None:
        self._command = program
        self._reply_bytes = reply_bytes

    def version(self) -> str:
        return "bench/echo.c"

    def command(self, socket: Path) -> Sequence[str]:
        return [str(self._command), str(socket), str(self._reply_bytes)]

    def ping(self) -> Exchange:
        return Exchange(b"\0\0\0\1p", None, 1)

    def gets(self, items: Items) -> Exchange:
        raise NotImplementedError("the echo server gets kvd's frames")

    get_many = set_many = sets = gets

    def _is_good(self, reply: bytes) -> bool:
        return len(reply) == self._reply_bytes


class PythonEcho(Echo):
    """The minimum that a Python server does: recv, send."""

    name = "Python echo"

    def __init__(self) -> None:
        super().__init__(Path(sys.executable), _PING_BYTES)

    def command(self, socket: Path) -> Sequence[str]:
        return [sys.executable, "-m", "bench.python_echo", str(socket)]

    def ping(self) -> Exchange:
        return Exchange(b"p" * _PING_BYTES, _PING_BYTES, 1)


def floors(context: Context) -> Iterator[Row]:
    """kvd beside servers that do nothing."""
    for workload in (GET_1, GET_64):
        yield beside_echo(context, workload)
    yield from pings_from_python(context)


def beside_echo(context: Context, workload: Workload) -> Row:
    """Send the same frames to kvd and to the echo server, alternately."""
    load = context.program("load")
    exchange = context.kvd.gets(chosen(workload.keys, THROUGHPUT_KEYS))
    reply = context.loaded(context.kvd).try_once(exchange)
    echo = Echo(context.program("echo"), len(reply))
    ours: list[float] = []
    floor: list[float] = []
    with context.fresh(echo) as server:
        for _ in range(context.rounds):
            for figures, one in ((ours, context.loaded(context.kvd)), (floor, server)):
                rounds = context.work(workload.rounds_sent)
                figures.append(operations_a_second(load, one, exchange, CONNECTIONS, rounds))
    title = workload.title.split(" | ")[0]
    return Row(f"floor: {title}", "/s", Samples("kvd", tuple(ours)), Samples(echo.name, tuple(floor)))


def pings_from_python(context: Context) -> Iterator[Row]:
    """The mean round trip of a ping over one blocking Python connection, for each server in turn.

    The servers stay on one core and the client on another one. A round trip within one core takes a fraction of the
    time, so without this the result would show the choice of the scheduler.
    """
    floor = PythonEcho()
    cores = sorted(os.sched_getaffinity(0))
    figures: dict[str, list[float]] = {}
    with ExitStack() as stack:
        connections: list[tuple[Peer, Connection]] = []
        for peer in (context.kvd, floor, *context.peers):
            server = stack.enter_context(context.fresh(peer))  # a server of its own, because it is pinned
            connections.append((peer, stack.enter_context(server.connect())))
            pin(server.pid, cores[0])
        stack.callback(os.sched_setaffinity, 0, cores)
        os.sched_setaffinity(0, cores[-1:])
        for _ in range(context.rounds):
            for peer, connection in connections:
                took_us = mean_round_trip_us(connection, peer.ping(), context.work(10_000))
                figures.setdefault(peer.name, []).append(took_us)
    ours = Samples("kvd", tuple(figures.pop("kvd")))
    for name, values in figures.items():
        yield Row("ping from Python, 1 connection", "us", ours, Samples(name, tuple(values)))


def mean_round_trip_us(connection: Connection, exchange: Exchange, count: int) -> float:
    """The mean of `count` round trips, one after the other."""
    gc.disable()
    begin = time.perf_counter()
    for _ in range(count):
        connection.call(exchange)
    took_s = time.perf_counter() - begin
    gc.enable()
    return took_s / count * 1e6
