"""Reads and writes of one process with one library, on keys drawn by Zipf's law: prints operations a second.

`python -m bench.mixed_driver LIBRARY PLACE KEYS WRITES_PERCENT SECONDS SEED`. It says `ready` when it is warm and
begins with a line on its standard input, so that several begin at once.
"""

import sys
import time
from random import Random

from bench.data import key, value
from bench.libraries import LIBRARIES, Get, Put
from kv.cli.bench.choices import zipf

_DRAWN = 50_000  # operations, drawn before the time is taken, and done again and again
_LOOK = 64  # operations between two looks at the clock


def warm(get: Get, put: Put, keys: int, seed: int) -> None:
    """The first process loads all keys; each reads every one once: it shall be the steady state that is measured."""
    if seed == 0:
        for number in range(keys):
            put(key(number), value(number))
    for number in range(keys):
        get(key(number))


def drawn(keys: int, writes_percent: float, seed: int) -> list[tuple[bool, str]]:
    """Whether it is a write, and on which key."""
    random = Random(seed)  # noqa: S311 (nothing secret: a fixed choice)
    number = zipf(keys, random)
    return [(random.random() * 100 < writes_percent, key(number())) for _ in range(_DRAWN)]


def rate(get: Get, put: Put, work: list[tuple[bool, str]], seconds: float) -> float:
    """Operations a second."""
    written = value(0)
    done = 0
    begin = time.perf_counter()
    end = begin + seconds
    while True:
        for at in range(0, len(work), _LOOK):
            piece = work[at : at + _LOOK]
            for writes, name in piece:
                if writes:
                    put(name, written)
                elif get(name) is None:
                    raise SystemExit(f"{name} is not there")
            done += len(piece)
            now = time.perf_counter()
            if now >= end:
                return done / (now - begin)


def main(library: str, place: str, keys: str, writes_percent: str, seconds: str, seed: str) -> None:
    """Warm up, wait, measure, print."""
    get, put = LIBRARIES[library](place)
    warm(get, put, int(keys), int(seed))
    work = drawn(int(keys), float(writes_percent), int(seed))
    print("ready", flush=True)
    sys.stdin.readline()
    print(rate(get, put, work, float(seconds)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
