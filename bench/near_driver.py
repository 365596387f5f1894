"""Measure a repeated read of one key in one process with one library, in nanoseconds.

`python -m bench.near_driver LIBRARY PLACE COUNT`: PLACE is a socket, or a directory for lmdb. `method` is the floor: a
dict lookup through a method.
"""

import sys
import time
from collections.abc import Callable

from bench.libraries import LIBRARIES as OPENERS

KEY, VALUE = "key:000000000001", b"x" * 64
WARM_UP = 1_000


def timed_ns(get: Callable[[str], bytes | None], count: int) -> float:
    """Return nanoseconds a call, without the time of the loop itself."""
    for _ in range(WARM_UP):
        assert get(KEY) == VALUE
    turns = range(count)
    begin = time.perf_counter_ns()
    for _ in turns:
        pass
    empty = time.perf_counter_ns() - begin
    key = KEY
    begin = time.perf_counter_ns()
    for _ in turns:
        get(key)
    return (time.perf_counter_ns() - begin - empty) / count


def near(path: str, count: int) -> float:
    """kv.connect(near_cache=True)."""
    import kv

    with kv.connect(path, near_cache=True) as db:
        db.set(KEY, VALUE)
        return timed_ns(db.get, count)


def without_cache(path: str, count: int) -> float:
    """kv.connect(): every read asks the daemon."""
    import kv

    with kv.connect(path) as db:
        db.set(KEY, VALUE)
        return timed_ns(db.get, count)


def redis_py(path: str, count: int) -> float:
    """redis-py, which uses hiredis if it is installed."""
    import redis

    client = redis.Redis(unix_socket_path=path)
    client.set(KEY, VALUE)
    return timed_ns(client.get, count)  # type: ignore[arg-type]


def lmdb_(path: str, count: int) -> float:
    """py-lmdb: each get begins a read transaction, so that it is never stale."""
    import lmdb

    with lmdb.open(path, max_dbs=0) as env:
        with env.begin(write=True) as txn:
            txn.put(KEY.encode(), VALUE)
        encoded = KEY.encode()

        def get(_: str) -> bytes | None:
            with env.begin() as txn:
                value: bytes | None = txn.get(encoded)
                return value

        return timed_ns(get, count)


def by_library(name: str) -> Callable[[str, int], float]:
    """Return the measurement of a library of bench/libraries.py."""

    def measure(place: str, count: int) -> float:
        get, put = OPENERS[name](place)
        put(KEY, VALUE)
        return timed_ns(get, count)

    return measure


class _Wrapper:
    """A dict that is read through a method."""

    def __init__(self) -> None:
        self._values = {KEY: VALUE}

    def get(self, key: str) -> bytes | None:
        """The value."""
        return self._values.get(key)


def method(_: str, count: int) -> float:
    """The minimum cost of a get in Python."""
    return timed_ns(_Wrapper().get, count)


LIBRARIES: dict[str, Callable[[str, int], float]] = {
    "near": near, "kvd": without_cache, "redis": redis_py, "lmdb": lmdb_, "method": method,
    **{name: by_library(name) for name in ("redis_cached", "memcached", "diskcache")},
}  # fmt: skip

if __name__ == "__main__":
    print(LIBRARIES[sys.argv[1]](sys.argv[2], int(sys.argv[3])))
