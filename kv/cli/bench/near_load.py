"""The load of one process with a near cache: one operation after another, most reads answered in its own memory.

Such a read takes less time than two looks at the clock. So only every 16th operation is timed. The operations are drawn
at random, so the choice of those that are timed does not depend on what they are.
"""

import select
import time

from kv import connect
from kv.cli.bench.choices import Choices
from kv.cli.bench.tally import Tally
from kv.errors import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kv.cli.bench.plan import Plan

TIMED_EVERY = 16
# The number of operations that are drawn at once, before any of them runs, so that drawing is not timed.
_BATCH = 1_024


class NearLoad:
    """One worker process, with one connection."""

    def __init__(self, plan: "Plan", prefix: str, process: int, stop_descriptor: int) -> None:
        self._plan = plan
        self._choices = Choices(plan, prefix, process)
        self._db = connect(plan.address, timeout=plan.timeout_s, near_cache=True)
        self._db.ping()
        self._left = None if plan.requests is None else plan.share(plan.requests, process)
        self._stop = select.poll()
        self._stop.register(stop_descriptor, select.POLLIN)
        self.tally = Tally()

    def run(self, progress: "Callable[[int], None]") -> None:
        """Run operations until all are done, time is up, or the parent stops or is gone. Raises KvdError."""
        end = float("inf") if self._plan.duration_s is None else time.monotonic() + self._plan.duration_s
        while self._left != 0 and time.monotonic() < end and not self._stop.poll(0):
            count = _BATCH if self._left is None else min(_BATCH, self._left)
            self._run(count)
            if self._left is not None:
                self._left -= count
            progress(self.tally.done)
        stats = self._db.near_cache.stats()
        self.tally.near_cache = {
            "hits": stats.hits,
            "misses": stats.misses,
            "refetches": stats.refetches,
            "refreshed": stats.refreshed,
        }

    def _run(self, count: int) -> None:
        drawn = [self._draw() for _ in range(count)]
        record = self.tally.histogram.record
        for number, (operation, call, arguments) in enumerate(drawn):
            is_timed = number % TIMED_EVERY == 0
            started_ns = time.perf_counter_ns() if is_timed else 0
            try:
                call(*arguments)
            except Refused as error:
                self.tally.failed(error.code)
            else:
                if is_timed:
                    record(time.perf_counter_ns() - started_ns)
                self.tally.succeeded(operation)

    def _draw(self) -> "tuple[str, Callable[..., object], tuple[object, ...]]":
        choices, db = self._choices, self._db
        operation = choices.operation()
        if operation == "get":
            return operation, db.get, (choices.key(),)
        if operation == "set":
            return operation, db.set, (choices.key(), choices.value)
        if operation == "del":
            return operation, _delete(db), (choices.key(),)
        return operation, db.increment, (choices.counter(),)

    def close(self) -> None:
        """Close the connection."""
        self._db.close()


def _delete(db: "object") -> "Callable[..., object]":
    return lambda key: db.delete(key, missing_ok=True)  # type: ignore[attr-defined]
