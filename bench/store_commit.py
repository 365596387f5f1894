"""What a large commit costs in the store alone, without the wire and a process: nanoseconds a key."""

import gc
import time
from collections.abc import Callable, Iterator

from bench.context import Context
from bench.data import Items, batches
from bench.rows import Row, Samples, Target
from kvd.engine.database import Database
from kvd.store.authors import NO_AUTHOR

KEYS = 100_000
COMMIT_KEYS = 1_000
_LIMIT_NS = 1_000.0


def commit1000(context: Context) -> Iterator[Row]:
    """Commits of 1,000 keys over 100,000 keys: blind, and with a read set of all keys; beside dict.update."""
    writes = list(batches(KEYS, COMMIT_KEYS))
    blind, validated, plain = [], [], []
    for _ in range(context.rounds):
        plain.append(_dict_ns(writes))
        blind.append(_commit_ns(writes, reads=False))
        validated.append(_commit_ns(writes, reads=True))
    target = Target("<=", _LIMIT_NS, of="value")
    floor = Samples("dict.update", tuple(plain))
    yield Row("commit of 1,000 keys, in the store", "ns/key", Samples("kvd", tuple(blind)), floor, target)
    yield Row("the same, 1,000 keys read", "ns/key", Samples("kvd", tuple(validated)), floor, target)


def _commit_ns(writes: list[Items], *, reads: bool) -> float:
    """Time the second pass: the keys exist, and the history holds older versions of them."""
    database = Database()
    for items in writes:
        database.commit(items, {}, [], 0, NO_AUTHOR)
    seen = [{key: database.store.first[key].version for key in items} if reads else {} for items in writes]
    return _timed(lambda number: database.commit(writes[number], seen[number], [], 0, NO_AUTHOR), len(writes))


def _dict_ns(writes: list[Items]) -> float:
    values: Items = {}
    for items in writes:
        values.update(items)
    return _timed(lambda number: values.update(writes[number]), len(writes))


def _timed(work: Callable[[int], object], count: int) -> float:
    gc.collect()
    begin = time.perf_counter_ns()
    for number in range(count):
        work(number)
    return (time.perf_counter_ns() - begin) / KEYS
