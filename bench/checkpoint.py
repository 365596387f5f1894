"""What a checkpoint costs the clients: pings while a checkpoint of a million keys is written, and without one."""

import time
from collections.abc import Iterator

import msgspec

from bench.context import Context
from bench.exchange import Connection
from bench.peers.kvd import exchange
from bench.rows import Row, Samples, Target
from bench.servers import Server
from bench.stall import Summary, pinged

_MAX_ROUNDS = 3
_PATIENCE_S = 120.0


def checkpoint(context: Context) -> Iterator[Row]:
    """p99 of pings during a checkpoint, beside the same length of time without one."""
    directory = context.new_directory()
    kvd = context.kvd.with_options("--data-dir", str(directory / "data"), "--data-sync", "never")
    during: list[Summary] = []
    without: list[Summary] = []
    with Server(kvd, directory) as server:
        server.load(context.many_keys)
        for _ in range(min(context.rounds, _MAX_ROUNDS)):
            begin = time.monotonic()
            during.append(pinged(context, server, lambda: _write_checkpoint(server)))
            took_s = time.monotonic() - begin
            without.append(pinged(context, server, lambda took_s=took_s: time.sleep(took_s)))  # type: ignore[misc]
    title = f"p99 of pings during a checkpoint of {context.many_keys:,} keys"
    ours, beside = (tuple(one["p99_ms"] for one in many) for many in (during, without))
    yield Row(title, "ms", Samples("kvd", ours), Samples("without", beside), Target("<=", 2.0))


def _write_checkpoint(server: Server) -> None:
    """Request a checkpoint, and return when it is written."""
    with server.connect() as connection:
        before = _version(connection)
        connection.call(exchange(["set", {"checkpointed": b"%d" % time.monotonic_ns()}], ["checkpoint"]))
        deadline = time.monotonic() + _PATIENCE_S
        while _version(connection) <= before and time.monotonic() < deadline:
            time.sleep(0.02)


def _version(connection: Connection) -> int:
    [metrics] = msgspec.msgpack.decode(connection.call(exchange(["metrics"])))
    return int(dict(metrics)["checkpoint_version"])
