"""Processes that share data and mostly read it: the near cache beside the other libraries for Python."""

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.context import Context
from bench.errors import BenchError
from bench.libraries import NEEDS
from bench.peers.redis import Redis
from bench.process import clean_environment, together
from bench.rows import Row, Samples, Target

HOT_KEYS = 10_000
MIXED_KEYS = 1_000
PROCESSES = 4
WRITES_PERCENT = 5
_SECONDS = 1.0
SHOWN = {
    "near": "kvd, near cache", "kvd": "kvd without it", "redis": "redis-py with hiredis",
    "redis_cached": "redis-py, its client-side cache (TCP)", "memcached": "memcached, pymemcache",
    "diskcache": "diskcache", "lmdb": "lmdb, begin and get",
}  # fmt: skip


def missing(library: str) -> str | None:
    """Return why this library cannot be measured, or None if it can."""
    packages = [name for name in NEEDS.get(library, ()) if importlib.util.find_spec(name) is None]
    return f"{SHOWN[library]} is left out: pip install {' '.join(packages)}" if packages else None


def places(context: Context, libraries: Sequence[str]) -> dict[str, str]:
    """Return the place where each library reads and writes. Leaves out the missing ones, and names them on stderr."""
    available: dict[str, str] = {}
    for library in libraries:
        try:
            if reason := missing(library):
                raise BenchError(reason)
            available[library] = _place(context, library)
        except BenchError as error:
            print(error, file=sys.stderr)
    return available


def _place(context: Context, library: str) -> str:
    if library in ("near", "kvd"):
        return str(context.loaded(context.kvd).socket)
    if library == "redis_cached":
        server = context.loaded(RedisOnTcp())
        return f"127.0.0.1:{RedisOnTcp.port_of(server.socket)}"
    if library in ("redis", "memcached"):
        return str(context.loaded(context.peer(library)).socket)
    return str(context.new_directory())


class RedisOnTcp(Redis):
    """Redis that also listens on loopback, because redis-py's client-side cache works over TCP only."""

    name = "redis over TCP"

    def command(self, socket: Path) -> Sequence[str]:
        words = [word if word != "0" else str(self.port_of(socket)) for word in super().command(socket)]
        return [*words, "--bind", "127.0.0.1"]

    @staticmethod
    def port_of(socket: Path) -> int:
        """The port for the server of this socket; it differs from run to run."""
        return 20_000 + hash(str(socket)) % 10_000


def mixed(context: Context) -> Iterator[Row]:
    """95 % reads, one process."""
    libraries = places(context, ("near", "lmdb", "diskcache", "memcached", "redis", "redis_cached", "kvd"))
    title = f"95 % get, 5 % set, {MIXED_KEYS:,} keys (zipf), 1 process"
    return _rows(title, _measure(context, libraries, 1, MIXED_KEYS), None)


def hot(context: Context) -> Iterator[Row]:
    """95 % reads of 10,000 keys, four processes."""
    libraries = places(context, ("near", "redis", "memcached", "redis_cached"))
    title = f"95 % get, 5 % set, {HOT_KEYS:,} keys (zipf), {PROCESSES} processes"
    return _rows(title, _measure(context, libraries, PROCESSES, HOT_KEYS), Target(">=", 10.0))


def _measure(context: Context, libraries: dict[str, str], processes: int, keys: int) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {name: [] for name in libraries}
    seconds = str(_SECONDS / 5 if context.quick else _SECONDS)
    for _ in range(context.rounds):
        for library, place in libraries.items():
            words = [
                sys.executable,
                "-m",
                "bench.mixed_driver",
                library,
                place,
                str(keys),
                str(WRITES_PERCENT),
                seconds,
            ]
            commands = [[*words, str(seed)] for seed in range(processes)]
            figures[library].append(sum(map(float, together(commands, clean_environment()))))
    return figures


def _rows(title: str, figures: dict[str, list[float]], beside_redis: Target | None) -> Iterator[Row]:
    ours = Samples(SHOWN["near"], tuple(figures.pop("near")))
    for library, values in figures.items():
        target = beside_redis if library == "redis" else None
        yield Row(title, "/s", ours, Samples(SHOWN[library], tuple(values)), target)
