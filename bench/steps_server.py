"""`kv serve` on asyncio's own loop, in which each callback is timed: `python steps_server.py FILE serve …`.

The processor time of each callback of the loop that takes LEAST_MS or more is appended to FILE as a line: milliseconds,
of them in the garbage collector, and the callback's name.
"""

import asyncio
import asyncio.events
import gc
import sys
import time
import types
from typing import Any

LEAST_MS = 1.0


class Times:
    """Times callbacks of the loop's thread, and writes down those that are long."""

    def __init__(self, path: str) -> None:
        self._out = open(path, "a", buffering=1)  # noqa: SIM115 (until the process ends)
        self._collections: list[float] = []
        self._collected_ms = 0.0

    def run(self, handle: Any) -> None:  # noqa: ANN401 (a Handle, whose attributes are private)
        """Run a callback as asyncio does."""
        collected_ms, began = self._collected_ms, time.thread_time()
        try:
            handle._context.run(handle._callback, *handle._args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            handle._loop.call_exception_handler({"message": "a callback failed", "exception": error, "handle": handle})
        took_ms = (time.thread_time() - began) * 1e3
        if took_ms >= LEAST_MS:
            self._out.write(f"{took_ms:.2f} {self._collected_ms - collected_ms:.2f} {_name(handle._callback)}\n")

    def on_collection(self, phase: str, _: dict[str, int]) -> None:
        """Count the time of the garbage collector, as a callback of its own."""
        if phase == "start":
            self._collections.append(time.thread_time())
        else:
            self._collected_ms += (time.thread_time() - self._collections.pop()) * 1e3


def _name(callback: Any) -> str:  # noqa: ANN401 (anything that can be called)
    while hasattr(callback, "func"):
        callback = callback.func
    owner = getattr(callback, "__self__", None)
    name: str = getattr(callback, "__qualname__", repr(callback)).split(".")[-1]
    return name if owner is None else f"{type(owner).__name__}.{name}"


def _plant(times: Times) -> None:
    def run(handle: Any) -> None:  # noqa: ANN401 (becomes a method of each handle)
        times.run(handle)

    asyncio.events.Handle._run = run  # type: ignore[method-assign]
    asyncio.events.TimerHandle._run = run  # type: ignore[method-assign]
    gc.callbacks.append(times.on_collection)
    loop = types.ModuleType("uvloop")
    loop.new_event_loop = asyncio.new_event_loop  # type: ignore[attr-defined]
    loop.__version__ = "0"  # type: ignore[attr-defined]
    sys.modules["uvloop"] = loop


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose modules have names of the standard library
    _plant(Times(sys.argv.pop(1)))
    sys.argv[0] = "kv"
    from kv.cli.main import main

    sys.exit(main())
