"""Read and write with one library in one process, on keys drawn by Zipf's law: prints operations a second.

`python -m bench.mixed_driver LIBRARY PLACE KEYS WRITES_PERCENT SECONDS SEED`. It prints `ready` when it is warm and
starts when a line arrives on its standard input, so that several processes start together.
"""

import sys
import time
from random import Random

from bench.data import key, value
from bench.libraries import LIBRARIES, Get, Put
from kv.cli.bench.choices import zipf

_DRAWN = 50_000  # operations, which are drawn before the timing and then repeated
_CHUNK = 64  # operations between two reads of the clock


def warm(get: Get, put: Put, keys: int, seed: int) -> None:
    """Load all keys in the first process and read each key once in every process, to measure the steady state."""
    if seed == 0:
        for number in range(keys):
            put(key(number), value(number))
    for number in range(keys):
        get(key(number))


def draw(keys: int, writes_percent: float, seed: int) -> list[tuple[bool, str]]:
    """Draw the operations: each is a write or a read, and its key."""
    random = Random(seed)  # noqa: S311 (nothing secret: a fixed choice)
    number = zipf(keys, random)
    return [(random.random() * 100 < writes_percent, key(number())) for _ in range(_DRAWN)]


def rate(get: Get, put: Put, work: list[tuple[bool, str]], seconds: float) -> float:
    """Run the work until the time is over. Returns operations a second."""
    new_value = value(0)
    count = 0
    begin = time.perf_counter()
    end = begin + seconds
    while True:
        for at in range(0, len(work), _CHUNK):
            piece = work[at : at + _CHUNK]
            for writes, name in piece:
                if writes:
                    put(name, new_value)
                elif get(name) is None:
                    raise SystemExit(f"{name} is missing")
            count += len(piece)
            now = time.perf_counter()
            if now >= end:
                return count / (now - begin)


def main(library: str, place: str, keys: str, writes_percent: str, seconds: str, seed: str) -> None:
    """Warm up, wait for the start, measure and print."""
    get, put = LIBRARIES[library](place)
    warm(get, put, int(keys), int(seed))
    work = draw(int(keys), float(writes_percent), int(seed))
    print("ready", flush=True)
    sys.stdin.readline()
    print(rate(get, put, work, float(seconds)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
