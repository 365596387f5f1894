"""Miss ratios of kvd's SIEVE, LRU, FIFO and Redis; each cache holds the same number of keys."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack

from bench import traces
from bench.caches import Fifo, Kvd, KvdDaemon, Lru, Redis
from bench.context import Context
from bench.rows import Row, Samples, Target

_REQUESTS = 400_000
_DAEMON_REQUESTS = 50_000
_PARTS = (100, 10)  # a cache holds a hundredth of the keys, or a tenth


def miss_ratio(context: Context) -> Iterator[Row]:
    """Each trace with a small and a larger cache. The ratio is kvd's misses to the misses of the other cache."""
    count = context.work(_REQUESTS)
    polluted = traces.with_scans(traces.zipf(1.0, count))
    for name, keys, scans in (
        ("Zipf 0.8", traces.zipf(0.8, count), False),
        ("Zipf 1.0", traces.zipf(1.0, count), False),
        ("Zipf 1.0 and scans", polluted, True),
        *((name, keys, False) for name, keys in _recorded()),
    ):
        for part in _PARTS:
            distinct = traces.KEYS if name.startswith("Zipf") else len(set(keys))
            yield from _compared(context, name, keys, distinct // part, scans)
    yield _daemon(context, polluted[: context.work(_DAEMON_REQUESTS)], traces.KEYS // 100)


def _recorded() -> Iterator[tuple[str, list[str]]]:
    available = list(traces.recorded(1_000_000))
    if not available:
        print(f"recorded traces are left out: {traces.VARIABLE} names none (see bench/README.md)", file=sys.stderr)
    yield from available


def _compared(context: Context, name: str, keys: list[str], size: int, scans: bool) -> Iterator[Row]:
    title = f"misses: {name}, {size:,} keys"
    ours = _misses(Kvd(size).hits(keys), keys, "kvd")
    lru = Target("<=", 0.98 if scans else 1.0)
    yield Row(title, "", ours, _misses(Lru(size).hits(keys), keys, "LRU"), lru)
    yield Row(title, "", ours, _misses(Fifo(size).hits(keys), keys, "FIFO"))
    if any(peer.name == "redis" for peer in context.peers):
        with ExitStack() as stack:
            redis = Redis(size, context, stack)
            theirs = _misses(redis.hits(keys), keys, "redis")
        yield Row(title, "", ours, theirs, Target("<=", 1.0), f"redis held {redis.held:,} keys at the end")


def _daemon(context: Context, keys: list[str], size: int) -> Row:
    """A daemon over its socket beside the same code in this process, which shows that both have the same figures."""
    with ExitStack() as stack:
        ours = _misses(KvdDaemon(size, context, stack).hits(keys), keys, "kvd")
    title = f"misses: a real daemon, Zipf 1.0 and scans, {size:,} keys"
    return Row(title, "", ours, _misses(Kvd(size).hits(keys), keys, "in the process"))


def _misses(hits: int, keys: list[str], name: str) -> Samples:
    return Samples(name, (1 - hits / len(keys),))
