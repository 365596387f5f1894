"""Measure the mean time of one round trip from Python, in microseconds, on the last core.

`python -m bench.miss_driver miss SOCKET COUNT`: gets of different keys through a near cache, which holds none of them.
`python -m bench.miss_driver REQUEST_HEX SOCKET COUNT`: the same bytes through a bare socket, one send and one recv.
`python -m bench.miss_driver size SOCKET REQUEST_HEX`: the size of the reply while a client has a near cache.
"""

import gc
import os
import socket
import sys
import time
from collections.abc import Callable

import kv
from bench.data import key

_READ_BYTES = 65_536
_WARM_UP = 500
HEADER_BYTES = 4


def timed_us(call: Callable[[int], object], count: int) -> float:
    """Return microseconds a call."""
    for number in range(_WARM_UP):
        call(number)
    gc.disable()
    begin = time.perf_counter()
    for number in range(_WARM_UP, _WARM_UP + count):
        call(number)
    return (time.perf_counter() - begin) / count * 1e6


def miss(path: str, count: int) -> float:
    """Read each key once."""
    with kv.connect(path, near_cache=True) as db:
        names = [key(number) for number in range(_WARM_UP + count)]
        get = db.get
        took_us = timed_us(lambda number: get(names[number]), count)
        if db.near_cache.stats().misses < count:
            raise SystemExit("the near cache answered a read of a key that it cannot hold")
        return took_us


def connect(path: str) -> socket.socket:
    """Open a bare socket."""
    bare = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bare.connect(path)
    return bare


def round_trips(path: str, request: bytes, count: int) -> float:
    """One send, one recv: a reply of this size arrives in one piece."""
    with connect(path) as bare:
        send, receive = bare.sendall, bare.recv

        def call(_: int) -> None:
            send(request)
            receive(_READ_BYTES)

        return timed_us(call, count)


def size(path: str, request: bytes) -> int:
    """The size of the reply's payload."""
    with kv.connect(path, near_cache=True) as db, connect(path) as bare:
        db.ping()
        bare.sendall(request)
        return len(bare.recv(_READ_BYTES)) - HEADER_BYTES


def main(mode: str, path: str, last: str) -> None:
    """Measure and print."""
    if mode == "size":
        print(size(path, bytes.fromhex(last)))
        return
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(miss(path, int(last)) if mode == "miss" else round_trips(path, bytes.fromhex(mode), int(last)))


if __name__ == "__main__":
    main(*sys.argv[1:])
