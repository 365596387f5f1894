"""Repeated reads of one key in one process: the near cache beside the other libraries, and a dict."""

import sys
from collections.abc import Iterator

from bench.context import Context
from bench.process import clean_environment, output
from bench.rows import Row, Samples, Target
from bench.sharing import SHOWN, places

# The number of calls with which a round of each library takes about half a second.
_COUNTS = {
    "near": 2_000_000, "kvd": 8_000, "redis": 8_000, "redis_cached": 12_000, "lmdb": 400_000, "memcached": 10_000,
    "diskcache": 20_000, "method": 5_000_000,
}  # fmt: skip
_TARGETS = {"redis": 100.0, "lmdb": 1.0, "method": 1 / 6}


def near_cache(context: Context) -> Iterator[Row]:
    """One row beside each library."""
    chosen = places(context, ("near", "kvd", "redis", "redis_cached", "lmdb", "memcached", "diskcache"))
    chosen["method"] = ""
    figures: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(context.rounds):
        for name, place in chosen.items():
            figures[name].append(_rate(context, name, place))
    ours = Samples("kvd, near cache", tuple(figures["near"]))
    title = "repeated get of one key"
    for name, values in list(figures.items())[1:]:
        target = Target(">=", _TARGETS[name]) if name in _TARGETS else None
        yield Row(title, "/s", ours, Samples(SHOWN.get(name, "a dict through a method"), tuple(values)), target)


def _rate(context: Context, library: str, place: str) -> float:
    count = str(context.work(_COUNTS[library]))
    return 1e9 / float(output([sys.executable, "-m", "bench.near_driver", library, place, count], clean_environment()))
