"""What the client library costs: its import, and its share of a round trip."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench.context import THROUGHPUT_KEYS, Context
from bench.data import key
from bench.floors import Echo
from bench.peers.base import Peer
from bench.peers.kvd import frame
from bench.process import clean_environment, output, pin, whole_process_ms
from bench.rows import Row, Samples, Target
from bench.servers import Server

_RUNS = 60
_WARM_UP = 3
_MISSES = 20_000


def importing(context: Context) -> Iterator[Row]:
    """Whole processes, alternately: `import kv` with a client, beside the two modules that any client needs.

    `import kv` alone imports almost nothing, because its names are imported when they are first used. So the process
    also creates a client, which opens no connection before its first call.
    """
    programs = {
        "import kv, and a client made": "import kv; kv.connect('/nowhere')",
        "import kv": "import kv",
        "import msgspec, socket": "import msgspec, socket",
    }
    figures: dict[str, list[float]] = {name: [] for name in programs}
    null = {1: Path(os.devnull)}
    for run in range(_WARM_UP + max(20, context.work(_RUNS))):
        for name, program in programs.items():
            took_ms = whole_process_ms([sys.executable, "-c", program], clean_environment(), null)
            if run >= _WARM_UP:
                figures[name].append(took_ms)
    theirs = Samples("import msgspec, socket", tuple(figures.pop("import msgspec, socket")))
    for name, values in figures.items():
        yield Row(f"whole process: {name}", "ms", Samples("kvd", tuple(values)), theirs, Target("<=", 1.5))


def miss(context: Context) -> Iterator[Row]:
    """A near-cache miss, beside a bare Python socket and an echo server; the same bytes on the same cores.

    The servers stay on one core and the client on another one, as for the pings of `floors`.
    """
    request = frame(["fetch", [key(7)]])
    figures: dict[str, list[float]] = {"near": [], "echo": [], "bare": []}
    with ExitStack() as stack:
        kvd = _pinned(context, stack, context.kvd)
        kvd.load(THROUGHPUT_KEYS)
        size = _reply_bytes(kvd, request)
        echo = _pinned(context, stack, Echo(context.program("echo"), size))
        for _ in range(context.rounds):
            figures["near"].append(_round_trip_us(context, "miss", kvd))
            figures["echo"].append(_round_trip_us(context, request.hex(), echo))
            figures["bare"].append(_round_trip_us(context, request.hex(), kvd))
    ours = Samples("kvd, near cache", tuple(figures["near"]))
    title = "a get that misses the near cache"
    yield Row(title, "us", ours, Samples("C echo, bare Python socket", tuple(figures["echo"])), Target("<=", 1.3))
    yield Row(title, "us", ours, Samples("kvd, bare Python socket", tuple(figures["bare"])))


def _pinned(context: Context, stack: ExitStack, peer: Peer) -> Server:
    server = stack.enter_context(context.fresh(peer))
    pin(server.pid, min(os.sched_getaffinity(0)))
    return server


def _reply_bytes(server: Server, request: bytes) -> int:
    """The size of the reply's payload while a client has a near cache: it contains a slot and a generation."""
    return int(output([sys.executable, "-m", "bench.miss_driver", "size", str(server.socket), request.hex()]))


def _round_trip_us(context: Context, mode: str, server: Server) -> float:
    """Run the driver on the last core. Returns microseconds a round trip."""
    words = [sys.executable, "-m", "bench.miss_driver", mode, str(server.socket), str(context.work(_MISSES))]
    return float(output(words, clean_environment()))
