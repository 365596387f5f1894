"""The command `kv` as a user meets it: whole processes, beside an interpreter that does nothing."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.context import Context
from bench.data import key, value
from bench.errors import BenchError
from bench.process import clean_environment, output, whole_process_ms
from bench.rows import Row, Samples, Target

_RUNS = 60
_WARM_UP = 3
_NULL = Path(os.devnull)


def kv_command() -> list[str]:
    """Return the installed `kv` beside this interpreter, or else `python -m kv`."""
    script = Path(sys.executable).parent / "kv"
    return [str(script)] if script.exists() else [sys.executable, "-m", "kv"]


def kv_get(context: Context) -> Iterator[Row]:
    """`kv get KEY` beside `python -c pass` with the same interpreter, alternately."""
    server = context.loaded(context.kvd)
    env = clean_environment() | {"KVD_SOCKET": str(server.socket)}
    get = [*kv_command(), "get", key(7)]
    bare = [sys.executable, "-c", "pass"]
    printed = output(get, env)
    if value(7).decode() not in printed:
        raise BenchError(f"{' '.join(get)} printed {printed!r}")
    ours: list[float] = []
    floor: list[float] = []
    for run in range(_WARM_UP + max(20, context.work(_RUNS))):
        pair = [whole_process_ms(argv, env, {1: _NULL}) for argv in (get, bare)]
        if run >= _WARM_UP:
            ours.append(pair[0])
            floor.append(pair[1])
    title = f"whole process: {'kv' if len(kv_command()) == 1 else 'python -m kv'} get KEY"
    theirs = Samples("python -c pass", tuple(floor))
    yield Row(title, "ms", Samples("kvd", tuple(ours)), theirs, Target("<=", 2.5), f"run as: {' '.join(get)}")
