"""Sequences of keys to read: drawn by Zipf's law, mixed with scans, or recorded in production."""

import os
import random
import tarfile
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from pathlib import Path

# The variable may name the source package of libcachesim, which contains two recorded traces.
VARIABLE = "KVD_BENCH_TRACES"
KEYS = 100_000
_SCAN_EVERY, _SCAN_KEYS = 20_000, 5_000


def zipf(alpha: float, count: int) -> list[str]:
    """Draw ``count`` of KEYS keys, the n-th with weight 1 / n ** alpha. The draws are the same each time."""
    chosen = random.Random(6)  # noqa: S311 (to be repeatable)
    weights = list(accumulate(1 / number**alpha for number in range(1, KEYS + 1)))
    return [f"key:{number}" for number in chosen.choices(range(KEYS), cum_weights=weights, k=count)]


def with_scans(keys: list[str]) -> list[str]:
    """Mix the keys with scans, at regular intervals, over keys that are read only once."""
    mixed: list[str] = []
    for number, begin in enumerate(range(0, len(keys), _SCAN_EVERY)):
        mixed += keys[begin : begin + _SCAN_EVERY]
        mixed += [f"scan:{number}:{key}" for key in range(_SCAN_KEYS)]
    return mixed


def recorded(max_requests: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the keys of each recorded trace that is available, at most ``max_requests`` of each."""
    package = os.environ.get(VARIABLE)
    if not package:
        return
    for name, file, column in (
        ("CloudPhysics, blocks of a virtual disk", "cloudPhysicsIO.csv", 4),
        ("Twitter, cluster 52", "twitter_cluster52.csv", 1),
    ):
        yield name, list(islice(_column(Path(package), file, column), max_requests))


def _column(package: Path, file: str, column: int) -> Iterator[str]:
    with tarfile.open(package) as archive:
        member = next(one for one in archive if one.name.endswith(f"/data/{file}"))
        lines = archive.extractfile(member)
        assert lines is not None
        next(lines)  # the names of the columns
        for line in lines:
            yield line.split(b",")[column].strip().decode()


Trace = Callable[[int], list[str]]
