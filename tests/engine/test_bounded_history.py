"""The memory of the history has a bound whatever is written: dropping keeps up with writing."""

import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import pytest

from kvd.engine.database import Database
from kvd.store.authors import Author
from kvd.store.window import WindowLimits

if TYPE_CHECKING:
    from tests.engine.conftest import Clocks

ME = Author(1, 2, "me")
MIB = 2**20
MILLION = 1_000_000


def check_bound(database: Database, write: Callable[[], object]) -> None:
    """Write, and check that there is no more history than allowed, plus what the write has added."""
    window, before = database.store.window, database.store.version
    write()
    added = [group for group in window.newest() if group.heads[-1].version > before]
    assert window.bytes <= window.limits.max_bytes + sum(group.size for group in added)
    assert window.commits <= window.limits.max_commits + sum(group.commits for group in added)


def write_small_values(database: Database, count: int) -> None:
    for number in range(count):
        database.set({f"small {number % 100}": b"x"}, ME)


@pytest.mark.parametrize("how", ["sets", "sets in a batch", "deletes", "expiries", "commits", "touches"])
def test_large_values_after_many_small_ones_stay_within_the_limit(clocks: "Clocks", how: str) -> None:
    database = clocks.database(WindowLimits(max_bytes=MIB, max_commits=MILLION))
    write_small_values(database, 5_000)
    large = {f"large {number}": b"x" * 20_000 for number in range(10)}
    for _ in range(100):
        life = database.expiry(1 if how == "expiries" else None, keep=False, owner=None)
        check_bound(database, partial(database.set, large, ME, life))
        clocks.advance(1)
        check_bound(database, partial(another_write, database, how, large))


def another_write(database: Database, how: str, large: dict[str, bytes]) -> None:
    if how == "sets in a batch":
        database.set_each([{key: value} for key, value in large.items()], ME)
    elif how == "deletes":
        database.delete(large, ME, missing_ok=False)
    elif how == "expiries":
        database.expire_all_due()
    elif how == "commits":
        database.commit(dict.fromkeys(large), {}, [], 0, ME)
    elif how == "touches":
        database.touch(list(large), 10, ME)
    else:
        database.set(large, ME)


def test_writes_of_any_size_keep_the_history_within_its_bounds(clocks: "Clocks") -> None:
    rng = random.Random(5)  # noqa: S311
    for _ in range(20):
        limits = WindowLimits(max_bytes=rng.choice([0, 10_000, 200_000]), max_commits=rng.choice([0, 20, 1_000]))
        database = clocks.database(limits)
        for _ in range(300):
            size = 10 ** rng.randint(0, 5)
            keys = [str(rng.randint(0, 50)) for _ in range(rng.choice([1, 1, 1, 20]))]
            entries = dict.fromkeys(keys, b"x" * (size // len(keys)))
            check_bound(database, partial(database.set, entries, ME))


def test_a_snapshot_holds_no_more_than_the_limit_for_snapshots(clocks: "Clocks") -> None:
    limits = WindowLimits(max_bytes=100_000, max_pinned_bytes=300_000)
    database = clocks.database(limits)
    write_small_values(database, 200)
    snapshot = database.store.pin()
    for _ in range(200):
        database.set({"large": b"x" * 10_000}, ME)
        window = database.store.window
        assert window.bytes <= limits.max_pinned_bytes + next(window.newest()).size
    assert window.oldest_readable > snapshot, "the snapshot is dropped past its limit"
    database.store.unpin(snapshot)
    while database.upkeep.drop_old(100):
        pass
    assert window.bytes <= limits.max_bytes


PROBE = """
import sys
from kvd.engine.database import Database
from kvd.store.authors import NO_AUTHOR
from kvd.store.window import WindowLimits

commits, max_bytes, probe_at = map(int, sys.argv[1:])

def resident_bytes():
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * 4096

database = Database(WindowLimits(max_commits=1_000_000, max_bytes=max_bytes, max_age_us=10**15))
keys = [f"key {number}" for number in range(1_000)]
for key in keys:
    database.set({key: b"-" * 100}, NO_AUTHOR)
window, before, max_seen, early = database.store.window, resident_bytes(), 0, 0
for number in range(commits):
    database.set({keys[number % 1_000]: b"%0100d" % number}, NO_AUTHOR)
    if window.bytes > max_seen:
        max_seen = window.bytes
    if number == probe_at:
        early = resident_bytes() - before
print(early, resident_bytes() - before, max_seen, window.commits, database.store.version - window.oldest_readable)
"""


def probe(commits: int, max_bytes: int, probe_at: int) -> list[int]:
    """Return RSS growth at ``probe_at`` and at the end, the maximum of history bytes, and the count of versions."""
    command = [sys.executable, "-c", PROBE, *map(str, (commits, max_bytes, probe_at))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - the interpreter of the test
    return list(map(int, done.stdout.split()))


def test_a_history_of_a_million_versions_takes_no_more_memory_than_configured() -> None:
    """They do not fit: the bytes are the limit, however long the writes go on."""
    early, grown, max_seen, commits, readable = probe(commits=MILLION, max_bytes=32 * MIB, probe_at=200_000)
    print(f"RSS grew by {early / MIB:.1f} MiB, then to {grown / MIB:.1f} MiB; {commits} versions, {max_seen} bytes")
    assert max_seen <= 32 * MIB + 1_000
    assert 10_000 < commits == readable < MILLION
    assert grown < 1.5 * 32 * MIB
    assert grown - early < 4 * MIB, "memory must not grow once the history is full"


def test_the_metric_of_history_bytes_agrees_with_the_memory_of_the_process() -> None:
    """With room for all versions, the metric is close to the growth of the process."""
    _, grown, max_seen, commits, readable = probe(commits=250_000, max_bytes=1024 * MIB, probe_at=1)
    print(f"RSS grew by {grown / MIB:.1f} MiB for {max_seen / MIB:.1f} MiB of history")
    assert commits == readable == 251_000
    assert 0.7 * max_seen < grown < 1.4 * max_seen


def test_the_window_holds_at_most_a_million_versions(clocks: "Clocks") -> None:
    """In batches, as frames bring them, so small that their number is the limit that is met first."""
    database = clocks.database(WindowLimits(max_commits=MILLION, max_bytes=1024 * MIB))
    keys = [str(number) for number in range(1_000)]
    for _ in range(1_050):
        check_bound(database, partial(database.set_each, [{key: b""} for key in keys], ME))
    window = database.store.window
    assert database.store.version == 1_050_000
    assert MILLION <= window.commits <= MILLION + 1_000
    assert database.store.get_many(keys[:2], at=window.oldest_readable) == [b"", b""]
