"""Which keys are asked for, one after the other: drawn by Zipf's law, with scans among them, or recorded somewhere."""

import os
import random
import tarfile
from collections.abc import Callable, Iterator
from itertools import accumulate, islice
from pathlib import Path

# The source package of libcachesim (PyPI), which brings two recorded traces; or nothing.
VARIABLE = "KVD_BENCH_TRACES"
KEYS = 100_000
_SCAN_EVERY, _SCAN_KEYS = 20_000, 5_000


def zipf(alpha: float, count: int) -> list[str]:
    """``count`` draws of KEYS keys, the n-th as often as 1 / n ** alpha; the same ones each time."""
    chosen = random.Random(6)  # noqa: S311 (to be repeatable)
    weights = list(accumulate(1 / number**alpha for number in range(1, KEYS + 1)))
    return [f"key:{number}" for number in chosen.choices(range(KEYS), cum_weights=weights, k=count)]


def with_scans(keys: list[str]) -> list[str]:
    """The same, and now and then somebody goes through keys that nobody asks for again."""
    mixed: list[str] = []
    for number, begin in enumerate(range(0, len(keys), _SCAN_EVERY)):
        mixed += keys[begin : begin + _SCAN_EVERY]
        mixed += [f"scan:{number}:{key}" for key in range(_SCAN_KEYS)]
    return mixed


def recorded(most: int) -> Iterator[tuple[str, list[str]]]:
    """Name and keys of each recorded trace that is here, ``most`` requests of it."""
    package = os.environ.get(VARIABLE)
    if not package:
        return
    for name, file, column in (
        ("CloudPhysics, blocks of a virtual disk", "cloudPhysicsIO.csv", 4),
        ("Twitter, cluster 52", "twitter_cluster52.csv", 1),
    ):
        yield name, list(islice(_column(Path(package), file, column), most))


def _column(package: Path, file: str, column: int) -> Iterator[str]:
    with tarfile.open(package) as archive:
        member = next(one for one in archive if one.name.endswith(f"/data/{file}"))
        lines = archive.extractfile(member)
        assert lines is not None
        next(lines)  # the names of the columns
        for line in lines:
            yield line.split(b",")[column].strip().decode()


Trace = Callable[[int], list[str]]
