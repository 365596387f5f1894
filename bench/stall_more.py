"""How long a ping waits during large operations: five million keys, a pruned history, a frame of 16 MiB."""

import time
from collections.abc import Iterator

import msgspec

from bench.context import Context
from bench.data import BATCH, batches, key
from bench.errors import BenchError
from bench.exchange import Connection
from bench.peers.kvd import exchange
from bench.rows import Row, Samples, Target
from bench.servers import Server
from bench.stall import Summary, pinged

_MAX_ROUNDS = 3
_LIMIT_MS = 10.0
_PATIENCE_S = 60.0
_MAX_COMMITS = 100
_FRAME_KEYS = 65_000
_FRAME_VALUE_BYTES = 230
_LONG = "[history]\nmax_versions = 1000000000\nmax_bytes = 1099511627776\n"
_SHORT = f"[history]\nmax_versions = {_MAX_COMMITS}\nmax_bytes = 1099511627776\n"


def stalls(context: Context) -> Iterator[Row]:
    """The worst ping during each operation."""
    rounds = min(context.rounds, _MAX_ROUNDS)
    keys = 5 * context.many_keys
    yield from _rows(f"growing to {keys:,} keys", [_growing(context, keys)])
    yield from _rows(f"pruning {context.many_keys:,} versions", [_pruning(context) for _ in range(rounds)])
    yield from _rows("a frame of 16 MiB, one set of 65,000 keys", [_large_frames(context, 1) for _ in range(rounds)])
    yield from _rows("a frame of 16 MiB, 65,000 sets", [_large_frames(context, 0) for _ in range(rounds)])


def _rows(title: str, summaries: list[Summary]) -> Iterator[Row]:
    target = Target("<=", _LIMIT_MS, of="value", worst=True)
    for name, field in (("worst ping", "worst_ms"), ("worst, server's CPU time", "worst_own_ms")):
        yield Row(f"{title}: {name}", "ms", Samples("kvd", tuple(one[field] for one in summaries)), None, target)


def _growing(context: Context, keys: int) -> Summary:
    with context.fresh(context.kvd) as server:
        return pinged(context, server, lambda: server.load(keys))


def _pruning(context: Context) -> Summary:
    """Write versions that the history keeps, and then limit the history to 100 commits."""
    directory = context.new_directory()
    file = directory / "kvd.toml"
    file.write_text(_LONG)
    with Server(context.kvd.with_options("--config", str(file)), directory) as server:
        with server.connect() as connection:
            for number in range(context.many_keys // BATCH):
                value = b"%064d" % number
                server.peer.check(connection.call(exchange(["set", {key(n): value for n in range(BATCH)}])))
        file.write_text(_SHORT)
        return pinged(context, server, lambda: _reload(server))


def _reload(server: Server) -> None:
    """Make the daemon read the new limit, and return when the history is short enough."""
    with server.connect() as connection:
        server.peer.check(connection.call(exchange(["reload"])))
        deadline = time.monotonic() + _PATIENCE_S
        while _versions(connection) > _MAX_COMMITS + 1:  # + 1, because the daemon prunes before a commit, not after it
            if time.monotonic() > deadline:
                raise BenchError(f"the history still has {_versions(connection)} commits")
            connection.call(exchange(["set", {key(0): b"%d" % time.monotonic_ns()}]))


def _versions(connection: Connection) -> int:
    [metrics] = msgspec.msgpack.decode(connection.call(exchange(["metrics"])))
    return int(dict(metrics)["history_commits"])


def _large_frames(context: Context, requests: int) -> Summary:
    """Send five frames to a fresh server, one after the other: all keys in one request, or one request for each."""
    value = b"v" * _FRAME_VALUE_BYTES
    items = {name: value for batch in batches(_FRAME_KEYS) for name in batch}
    frame = exchange(["set", items]) if requests == 1 else exchange(*(["set", {name: value}] for name in items))

    def send(server: Server) -> None:
        with server.connect() as connection:
            for _ in range(5):
                server.peer.check(connection.call(frame))

    with context.fresh(context.kvd) as server:
        return pinged(context, server, lambda: send(server))
