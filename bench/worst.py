"""The longest step of the daemon's loop for the worst input of each kind of request and route; and pings meanwhile.

The daemon runs with each callback of its loop timed (`worst_driver.py`): CPU time of the loop's thread, so a busy
machine changes little. The limit is 10 ms; where one value or frame is decoded or encoded at once, 2 ms for each MiB
of it. KVD_WORST_KEYS sets the number of keys, KVD_WORST_BIG the bytes of a large value.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench.context import Context
from bench.errors import BenchError
from bench.exchange import Connection, Exchange
from bench.peers.kvd import Kvd, exchange
from bench.rows import Row, Samples, Target
from bench.servers import Server
from bench.stall import pinged
from bench.worst_inputs import WORST, WORST_ROUTES, Request, Worst, WorstRoute, hot_key, many_keys

_LIMIT_MS = 10.0
_PING_LIMIT_MS = 50.0
_MS_A_MIB = 2.0
_COMMITS = {"set", "delete", "touch", "commit"}
_KEYS = int(os.environ.get("KVD_WORST_KEYS", "65000"))
_BIG_BYTES = int(os.environ.get("KVD_WORST_BIG", "8000000"))
# Requests that each take a step of their own: more of them show nothing more.
_MAX_REQUESTS = 2_000
_HISTORY = (
    "[history]\nmax_versions = 10000000\nmax_bytes = 1073741824\n[limits]\nmax_snapshots_per_connection = 100000\n"
)
_ATTACKERS = 32
_ATTACKED_S = 2.0
_ATTACKED_KEYS = 10_000
_ATTACKING = {"get", "get_many", "fetch", "scan", "ttl", "history", "log", "status", "exposition", "metrics", "ping"}


class Step(NamedTuple):
    """The longest step of an input, what was called, and how many bytes were decoded or encoded at once at most."""

    longest_ms: float
    called: str
    frame_bytes: int


def worst(context: Context) -> Iterator[Row]:
    """The longest step of each input, and the longest wait of a ping while many connections send such inputs."""
    keys = min(_KEYS, context.work(_KEYS))
    for each in WORST:
        yield _row(f"{each.kind}: {each.title}", _longest_step(context, each, keys), each.kind in _COMMITS, keys)
    for route in WORST_ROUTES:
        writes = route.method != "GET" and "get" not in route.route
        title = f"{route.method} {route.route}: {route.title}"
        yield _row(title, _longest_step_of_route(context, route, keys), writes, keys)
    yield from _pinged(context, keys)


def _row(title: str, step: Step, is_commit: bool, keys: int) -> Row:
    """The row of an input. The last step of a commit may take a microsecond for each key."""
    limit_ms = max(_LIMIT_MS, _MS_A_MIB * step.frame_bytes / 2**20, keys / 1e3 if is_commit else 0)
    target = Target("<=", round(limit_ms, 1), of="value", worst=True)
    return Row(title, "ms", Samples("kvd", (step.longest_ms,)), None, target, step.called)


class TimedServer:
    """A daemon whose callbacks are timed."""

    def __init__(self, context: Context) -> None:
        directory = context.new_directory()
        self._steps = directory / "steps"
        self._steps.touch()
        self.http = directory / "http.sock"
        config = directory / "kvd.toml"
        config.write_text(f'[http]\nlisten = ["{self.http}"]\nmax_json_bytes = 16777216\n{_HISTORY}')
        driver = (sys.executable, "-m", "bench.worst_driver", "serve", "--socket", "{socket}", "--config", str(config))
        self.server = Server(Kvd(driver).with_variables(STEPS=str(self._steps)), directory)

    def reset(self) -> None:
        """Forget the longest step so far."""
        os.truncate(self._steps, 0)

    def longest(self) -> tuple[float, str]:
        """The milliseconds of the longest step since then, and what was called; 0 if none was worth noting."""
        time.sleep(0.02)  # what follows the reply belongs to the request
        lines = [line.split(" ", 1) for line in self._steps.read_text().splitlines()]
        return max(((float(took), called) for took, called in lines), default=(0.0, ""))

    def __enter__(self) -> "TimedServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop()


def _longest_step(context: Context, each: Worst, keys: int) -> Step:
    with TimedServer(context) as timed, timed.server.connect() as connection:
        _send_all(connection, each.load(keys, _BIG_BYTES))
        requests = each.frame(keys, _BIG_BYTES)
        if each.steps(keys) > len(requests) // 2:
            requests = requests[:_MAX_REQUESTS]
        frame = exchange(*requests)
        timed.reset()
        connection.call(frame)
        one_value = _BIG_BYTES if "large value" in each.title else 0
        return Step(*timed.longest(), max(len(frame.request), one_value))


def _longest_step_of_route(context: Context, route: WorstRoute, keys: int) -> Step:
    body = route.body(keys)
    head = f"{route.method} {route.target(keys)} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with TimedServer(context) as timed, timed.server.connect() as connection:
        _send_all(connection, route.load(keys, _BIG_BYTES))
        timed.reset()
        answer_bytes = _ask_http(
            timed.http, f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        return Step(*timed.longest(), max(len(body), answer_bytes))


def _send_all(connection: Connection, frames: Iterator[list[Request]]) -> None:
    for requests in frames:
        connection.call(exchange(*requests))


def _ask_http(path: Path, request: bytes) -> int:
    """Send a request and read the whole answer; of a stream of events only its beginning. Returns its bytes."""
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(30)
        connected.connect(str(path))
        connected.sendall(request)
        first = connected.recv(1 << 20)
        if not first.startswith(b"HTTP/1.1 "):
            raise BenchError(f"no answer over HTTP: {first[:100]!r}")
        size = len(first)
        while b"event-stream" not in first and (more := connected.recv(1 << 20)):
            size += len(more)
        return size


def _pinged(context: Context, keys: int) -> Iterator[Row]:
    """The longest wait of a ping while one connection, and many, send inputs that change nothing."""
    for count in (1, _ATTACKERS):
        with context.fresh(context.kvd) as server:
            with server.connect() as connection:
                _send_all(connection, many_keys(min(keys, _ATTACKED_KEYS), 0))
                _send_all(connection, hot_key(_ATTACKED_KEYS, 0))
            summary = pinged(context, server, partial(_attack_together, server, count))
        title = f"a ping beside {count} attacking connection{'s' * (count > 1)}"
        target = Target("<=", _PING_LIMIT_MS, of="value", worst=True)
        yield Row(f"{title}: longest wait", "ms", Samples("kvd", (summary["worst_ms"],)), None, target)
        own = Samples("kvd", (summary["worst_own_ms"],))
        yield Row(f"{title}: server's CPU time meanwhile", "ms", own, None, target)


def _attack_together(server: Server, count: int) -> None:
    frames = [
        exchange(*each.frame(_ATTACKED_KEYS, 0)[:_MAX_REQUESTS])
        for each in WORST
        if each.kind in _ATTACKING and "large value" not in each.title and "snapshot" not in each.title
    ]
    end = time.monotonic() + _ATTACKED_S
    threads = [threading.Thread(target=_attack, args=(server, frames, end)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _attack(server: Server, frames: list[Exchange], end: float) -> None:
    with server.connect() as connection:
        while True:
            for frame in frames:
                if time.monotonic() >= end:
                    return
                connection.call(frame)
