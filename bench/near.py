"""Repeated reads of one key in one process: the near cache beside redis-py, LMDB and a dict."""

import importlib.util
import sys
from collections.abc import Iterator

from bench.context import Context
from bench.errors import BenchError
from bench.process import clean_environment, output
from bench.rows import Row, Samples, Target

# Of each library so many calls that a round takes about half a second.
_COUNTS = {"near": 2_000_000, "kvd": 8_000, "redis": 8_000, "lmdb": 400_000, "method": 5_000_000}
_NEEDS = {"redis": ("redis", "hiredis"), "lmdb": ("lmdb",)}


def near_cache(context: Context) -> Iterator[Row]:
    """One row beside each."""
    missing = [each for needed in _NEEDS.values() for each in needed if importlib.util.find_spec(each) is None]
    if missing:
        raise BenchError(f"needs libraries to compare with: pip install {' '.join(missing)}")
    places = {
        "near": str(context.loaded(context.kvd).socket),
        "kvd": str(context.loaded(context.kvd).socket),
        "redis": str(context.loaded(context.peer("redis")).socket),
        "lmdb": str(context.new_directory()),
        "method": "",
    }
    figures: dict[str, list[float]] = {name: [] for name in places}
    for _ in range(context.rounds):
        for name, place in places.items():
            figures[name].append(_rate(context, name, place))
    ours = Samples("kvd, near cache", tuple(figures["near"]))
    title = "repeated get of one key"
    for name, shown, limit in (
        ("redis", "redis-py with hiredis", 100.0), ("lmdb", "lmdb, begin and get", 1.0),
        ("method", "a dict through a method", 1 / 6), ("kvd", "kvd without it", None),
    ):  # fmt: skip
        target = None if limit is None else Target(">=", limit)
        yield Row(title, "/s", ours, Samples(shown, tuple(figures[name])), target)


def _rate(context: Context, library: str, place: str) -> float:
    count = str(context.work(_COUNTS[library]))
    return 1e9 / float(output([sys.executable, "-m", "bench.near_driver", library, place, count], clean_environment()))
