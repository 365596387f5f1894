"""Measure the CPU time of one operation of a checkout's own client, and of its daemon: prints both as JSON.

`PYTHON -P checkout_driver.py WORK SOCKET SERVER_CLOCK OPERATIONS FILE` is run by the interpreter of the measured
checkout. It imports nothing but the standard library and the public `kv`, because another checkout may have other
folders. WORK is a name of `_call`, SERVER_CLOCK the number of the daemon's CPU clock. FILE holds a JSON object of keys
and values, which the daemon holds already unless WORK sets them. `checkout_driver.py describe` prints which code and
which versions of the libraries the interpreter runs.

An operation of `get64` and `set64` is one get or set, of those that a pipeline sends in one frame; of `get_many` and
`set100` it is one call with all items.
"""

import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import kv

_LIBRARIES = ("msgspec", "uvloop", "msgpack", "argcomplete")
_WARM_UP = 10  # a tenth of the calls comes before the timing


def describe() -> dict[str, str]:
    """The place of the code, and the versions that change a figure."""
    versions = [f"{name} {_version(name)}" for name in _LIBRARIES]
    return {"code": str(kv.__file__), "python": platform.python_version(), "libraries": ", ".join(versions)}


def measure(work: str, path: str, server_clock: int, operations: int, items: Mapping[str, bytes]) -> dict[str, float]:
    """Return microseconds of CPU time an operation, of the client and of the daemon."""
    with kv.connect(path) as db:
        call, size = _call(db, work, items)
        calls = max(1, operations // size)
        for _ in range(1 + calls // _WARM_UP):
            call()
        server_ns, client_ns = time.clock_gettime_ns(server_clock), time.process_time_ns()
        for _ in range(calls):
            call()
        client_ns = time.process_time_ns() - client_ns
        server_ns = time.clock_gettime_ns(server_clock) - server_ns
        _check(db.get_many(list(items)), items)
    return {"client": client_ns / (calls * size) / 1000, "server": server_ns / (calls * size) / 1000}


def _call(db: "kv.Client", work: str, items: Mapping[str, bytes]) -> tuple[Callable[[], object], int]:
    """The call to repeat, and the number of operations in it."""
    key, value = next(iter(items.items()))
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "get1": (partial(db.get, key), 1),
        "get64": (partial(_pipelined_gets, db, list(items)), len(items)),
        "get_many": (partial(db.get_many, list(items)), 1),
        "set1": (partial(db.set, key, value), 1),
        "set64": (partial(_pipelined_sets, db, dict(items)), len(items)),
        "set100": (partial(db.set_many, dict(items)), 1),
    }
    return calls[work]


def _pipelined_gets(db: "kv.Client", keys: Sequence[str]) -> None:
    with db.pipeline() as pipeline:
        for key in keys:
            pipeline.get(key)


def _pipelined_sets(db: "kv.Client", items: Mapping[str, bytes]) -> None:
    with db.pipeline() as pipeline:
        for key, value in items.items():
            pipeline.set(key, value)


def _check(values: object, items: Mapping[str, bytes]) -> None:
    """Exit with status 1 unless the daemon holds the items: a call that finds nothing is quick, and would look good."""
    if values != items:
        sys.exit(f"the daemon does not hold the benchmark's items but {str(values)[:300]}")


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def main(work: str, *words: str) -> None:
    """Measure or describe, and print."""
    if work == "describe":
        print(json.dumps(describe()))
        return
    path, clock, operations, file = words
    items = {key: value.encode() for key, value in json.loads(Path(file).read_text()).items()}
    print(json.dumps(measure(work, path, int(clock), int(operations), items)))


if __name__ == "__main__":
    main(*sys.argv[1:])
