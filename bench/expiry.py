"""How long a ping waits while a million keys expire within one second."""

import time
from collections.abc import Iterator

import msgspec

from bench.context import Context
from bench.data import batches
from bench.errors import BenchError
from bench.exchange import Connection
from bench.peers.kvd import exchange
from bench.rows import Row, Samples, Target
from bench.servers import Server
from bench.stall import Summary, pinged

_MAX_ROUNDS = 3
_LIMIT_MS = 10.0
_LOADING_S = 30.0  # from the first set to the first deadline
_PATIENCE_S = 60.0
_ROOMY = "memory.max_bytes = 68719476736\n"


def expiry(context: Context) -> Iterator[Row]:
    """The worst ping, and the time until all keys are gone."""
    measured = [_expiring(context) for _ in range(min(context.rounds, _MAX_ROUNDS))]
    target = Target("<=", _LIMIT_MS, of="value", worst=True)
    title = f"{context.many_keys:,} keys expire in a second"
    for name, field in (("worst ping", "worst_ms"), ("worst, server's CPU time", "worst_own_ms")):
        yield Row(f"{title}: {name}", "ms", Samples("kvd", tuple(one[field] for one, _ in measured)), None, target)
    yield Row(f"{title}: all are gone after", "s", Samples("kvd", tuple(took for _, took in measured)))


def _expiring(context: Context) -> tuple[Summary, float]:
    """Ping while keys expire. Returns the pings, and the seconds from the first deadline to the last expiry."""
    directory = context.new_directory()
    (directory / "kvd.toml").write_text(_ROOMY)
    peer = context.kvd.with_options("--config", str(directory / "kvd.toml"))
    with Server(peer, directory) as server:
        loading_s = _LOADING_S * context.many_keys / 1_000_000
        first = time.monotonic() + loading_s
        with server.connect() as connection:
            _load(server, connection, context.many_keys, first)
        if time.monotonic() > first - 0.5:
            raise BenchError(f"loading took longer than {loading_s:.0f} s")
        time.sleep(first - 0.5 - time.monotonic())
        summary = pinged(context, server, lambda: _wait_until_gone(server))
        return summary, time.monotonic() - first


def _load(server: Server, connection: Connection, count: int, first: float) -> None:
    """Set the keys with deadlines that spread evenly over the second after ``first``."""
    loaded = 0
    for items in batches(count):
        due_ms = (first - time.monotonic() + loaded / count) * 1000
        server.peer.check(connection.call(exchange(["set", items, {"ttl": max(1, int(due_ms))}])))
        loaded += len(items)


def _wait_until_gone(server: Server) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    with server.connect() as connection:
        while True:
            [metrics] = msgspec.msgpack.decode(connection.call(exchange(["metrics"])))
            if not int(dict(metrics)["keys_stored"]):
                return
            if time.monotonic() > deadline:
                raise BenchError(f"{dict(metrics)['keys_stored']} keys are still there")
            time.sleep(0.02)
