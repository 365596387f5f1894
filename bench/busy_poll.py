"""Gets on one connection, one after the other: both ends sleep between them, or poll for input first."""

import sys
from collections.abc import Iterator

from bench.context import Context
from bench.process import clean_environment, output
from bench.rows import Row, Samples
from bench.servers import Server

BUSY_POLL_US = 200
_CALLS = 10_000
_CLIENT = """
import sys, time, kv
address, busy_poll_us, calls = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
db = kv.connect(address, busy_poll_us=busy_poll_us)
db.set("key", b"x" * 64)
for _ in range(calls // 10):
    db.get("key")
began = time.perf_counter()
for _ in range(calls):
    db.get("key")
print(calls / (time.perf_counter() - began))
"""


def busy_poll(context: Context) -> Iterator[Row]:
    """One row: busy polling beside sleeping, in turn."""
    polling = context.kvd.with_variables(KVD_BUSY_POLL_US=str(BUSY_POLL_US))
    busy: list[float] = []
    asleep: list[float] = []
    with context.fresh(polling) as awake:
        for _ in range(context.rounds):
            busy.append(_rate(context, awake, BUSY_POLL_US))
            asleep.append(_rate(context, context.loaded(context.kvd), 0))
    yield Row("one get after the other", "/s", Samples("busy poll", tuple(busy)), Samples("asleep", tuple(asleep)))


def _rate(context: Context, server: Server, busy_poll_us: int) -> float:
    words = [sys.executable, "-c", _CLIENT, str(server.socket), str(busy_poll_us), str(context.work(_CALLS))]
    return float(output(words, clean_environment()))
