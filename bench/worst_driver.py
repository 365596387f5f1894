"""`kv serve` with the CPU time of each callback of its loop: run by the benchmark `worst`.

Timed are the calls that the daemon schedules in its loop, and the methods of its connections. (What uvloop does itself,
a write to a socket for instance, is bounded by the size of the socket's buffer.) A callback that is longer than any
before it since the file in STEPS was emptied is written there: its milliseconds and what was called.
"""

import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from time import thread_time_ns
from typing import Any

import uvloop

from kv.cli.main import main
from kvd.http.session import HttpSession
from kvd.server.session import Session

_NOTED_NS = 500_000
_CALLED_BY_THE_LOOP = (
    "buffer_updated", "data_received", "connection_made", "connection_lost", "eof_received", "resume_writing",
)  # fmt: skip


class Steps:
    """The longest callback since the file was last emptied."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._longest_ns = _NOTED_NS

    def note(self, held_ns: int, callback: Callable[..., object]) -> None:
        """Write down a callback that took `held_ns`, if it is the longest."""
        if os.fstat(self._file.fileno()).st_size == 0:
            self._longest_ns = _NOTED_NS
        if held_ns > self._longest_ns:
            self._longest_ns = held_ns
            self._file.write(f"{held_ns / 1e6:.2f} {_name(callback)}\n")


def _name(callback: Any) -> str:  # noqa: ANN401 (any callable)
    while hasattr(callback, "func"):
        callback = callback.func
    owner = getattr(callback, "__self__", None)
    name = getattr(callback, "__qualname__", repr(callback)).split(".")[-1]
    return name if owner is None else f"{type(owner).__name__}.{name}"


def time_callbacks(steps: Steps) -> None:
    """Time each callback of the daemon's loop from now on."""

    def timed(callback: Callable[..., object]) -> Callable[..., object]:
        @wraps(callback, assigned=())
        def run(*arguments: object) -> object:
            began_ns = thread_time_ns()
            try:
                return callback(*arguments)
            finally:
                held_ns = thread_time_ns() - began_ns
                if held_ns > _NOTED_NS:
                    steps.note(held_ns, callback)

        return run

    class TimedLoop(uvloop.Loop):  # type: ignore[misc]
        def call_soon(self, callback: Any, *arguments: Any, context: Any = None) -> Any:  # noqa: ANN401
            return super().call_soon(timed(callback), *arguments, context=context)

        def call_later(self, delay: float, callback: Any, *arguments: Any, context: Any = None) -> Any:  # noqa: ANN401
            return super().call_later(delay, timed(callback), *arguments, context=context)

    uvloop.new_event_loop = TimedLoop
    for session in (Session, HttpSession):
        for name in _CALLED_BY_THE_LOOP:
            if name in vars(session):
                setattr(session, name, timed(getattr(session, name)))


if __name__ == "__main__":
    time_callbacks(Steps(Path(os.environ["STEPS"])))
    sys.argv[0] = "kv"
    sys.exit(main())
