"""Ping a server at a steady pace until SIGTERM; then print the times of the slowest replies, as JSON.

`python -m bench.pinger SOCKET SERVER_PID REQUEST_HEX REPLY_BYTES|frame` is a process of its own, so that the work of
the benchmark does not delay it. Each ping is measured twice: by the wall clock, and by the CPU time that the server's
process used meanwhile. On a busy machine the wall time also includes waiting for a core, of the server or of this
process. The CPU time does not. So the server itself delayed the ping by at most the smaller of the two.
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
    """Whether SIGTERM has arrived."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGTERM, self._request)

    def _request(self, *_: object) -> None:
        self.requested = True


def cpu_clock(pid: int) -> int:
    """Return the clock of a process's CPU time, as clock_getcpuclockid(3) computes it."""
    return ~pid << 3 | 2


def ping(connection: Connection, exchange: Exchange, clock: int, stop: Stop) -> list[tuple[float, float]]:
    """Ping until the stop. Returns (wall ms, CPU ms of the server) of each ping."""
    times: list[tuple[float, float]] = []
    while not stop.requested:
        cpu_ns = time.clock_gettime_ns(clock)
        begin_ns = time.perf_counter_ns()
        connection.call(exchange)
        wall_ns = time.perf_counter_ns() - begin_ns
        times.append((wall_ns / 1e6, (time.clock_gettime_ns(clock) - cpu_ns) / 1e6))
        time.sleep(PACE_S)
    return times


def summary(times: list[tuple[float, float]]) -> dict[str, float]:
    """The worst times and high percentiles."""
    walls = sorted(wall for wall, _ in times)
    return {
        "pings": len(times),
        "worst_ms": walls[-1],
        "p99_ms": walls[int(len(walls) * 0.99)],
        "p999_ms": walls[int(len(walls) * 0.999)],
        "worst_own_ms": max(min(wall, cpu) for wall, cpu in times),
        "over_5_ms": sum(wall > 5 for wall in walls),
    }


def main(path: str, pid: str, request: str, reply: str) -> None:
    """Ping and print."""
    stop = Stop()
    gc.disable()
    exchange = Exchange(bytes.fromhex(request), None if reply == "frame" else int(reply), 1)
    with Connection(Path(path)) as connection:
        connection.call(exchange)  # not counted, because the server first accepts the connection
        print("ready", flush=True)
        times = ping(connection, exchange, cpu_clock(int(pid)), stop)
    print(json.dumps(summary(times)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
