"""Ping a server at a steady pace until SIGTERM; then print what the slowest answers took, as JSON.

`python -m bench.pinger SOCKET SERVER_PID REQUEST_HEX REPLY_BYTES|frame`, a process of its own, so that no work of
the benchmark's own delays it. Each ping is measured twice: by the wall, and by the CPU time that the server's
process used meanwhile. On a busy machine the wall also counts waiting for a core (the server's or this process's
own); the CPU time does not, so the less of the two is what the server itself kept the ping waiting, at most.
"""

import gc
import json
import signal
import sys
import time
from pathlib import Path

from bench.exchange import Connection, Exchange

PACE_S = 0.0005


class Stop:
    """Whether SIGTERM has come."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True


def cpu_clock(pid: int) -> int:
    """The clock of a process's CPU time: what clock_getcpuclockid(3) computes."""
    return ~pid << 3 | 2


def ping(connection: Connection, exchange: Exchange, clock: int, stop: Stop) -> list[tuple[float, float]]:
    """(wall ms, CPU ms of the server) of each ping until told to stop."""
    took: list[tuple[float, float]] = []
    while not stop.asked:
        cpu_ns = time.clock_gettime_ns(clock)
        begin_ns = time.perf_counter_ns()
        connection.call(exchange)
        wall_ns = time.perf_counter_ns() - begin_ns
        took.append((wall_ns / 1e6, (time.clock_gettime_ns(clock) - cpu_ns) / 1e6))
        time.sleep(PACE_S)
    return took


def summary(took: list[tuple[float, float]]) -> dict[str, float]:
    """The worst, and high percentiles."""
    walls = sorted(wall for wall, _ in took)
    return {
        "pings": len(took),
        "worst_ms": walls[-1],
        "p99_ms": walls[int(len(walls) * 0.99)],
        "p999_ms": walls[int(len(walls) * 0.999)],
        "worst_own_ms": max(min(wall, cpu) for wall, cpu in took),
        "over_5_ms": sum(wall > 5 for wall in walls),
    }


def main(path: str, pid: str, request: str, reply: str) -> None:
    """Ping, print."""
    stop = Stop()
    gc.disable()
    exchange = Exchange(bytes.fromhex(request), None if reply == "frame" else int(reply), 1)
    with Connection(Path(path)) as connection:
        connection.call(exchange)  # not counted: the server accepts the connection first
        print("ready", flush=True)
        took = ping(connection, exchange, cpu_clock(int(pid)), stop)
    print(json.dumps(summary(took)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
