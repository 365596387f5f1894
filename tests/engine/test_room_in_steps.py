"""Room for a large write, and rules for what is there, come in steps of a bounded number of keys."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from kvd.engine import counting, memory
from kvd.engine.database import Database
from kvd.store import keyspace as keyspace_module
from kvd.store.authors import Author
from kvd.store.errors import OutOfMemory
from kvd.store.heads import Head
from kvd.store.keyspace import KEY_BYTES
from kvd.store.prefixes import PrefixRule, PrefixRules
from kvd.store.steps import Steps
from tests.engine.test_memory import recount

if TYPE_CHECKING:
    from tests.engine.conftest import Clocks

ME = Author(1, 2, "me")
KEYS = 4 * memory.EVICTED_KEYS
LIMITS = {
    "keys of a quota": (PrefixRule(prefix="c/", max_keys=KEYS, evict=True), {}),
    "bytes of a quota": (PrefixRule(prefix="c/", max_bytes=KEYS * (KEY_BYTES + 16), evict=True), {}),
    "keys": (PrefixRule(prefix="c/", evict=True), {"max_keys": KEYS}),
    "bytes": (PrefixRule(prefix="c/", evict=True), {"max_bytes": 3 * KEYS * (KEY_BYTES + 16)}),
}


def entries(name: str, count: int) -> dict[str, bytes]:
    """Return new keys whose names and values take 16 bytes together."""
    return {f"c/{name}{number:05}": b"12345678" for number in range(count)}


def limit(database: Database, name: str) -> None:
    rule, limits = LIMITS[name]
    database.memory.configure(limits.get("max_bytes", 0), limits.get("max_keys", 0), 0)
    database.memory.set_rules(PrefixRules([rule]))


@pytest.fixture(params=LIMITS)
def full(database: Database, request: pytest.FixtureRequest) -> Database:
    """A database in which there is no room for new keys without evictions."""
    limit(database, request.param)
    for number in range(0, 4 * KEYS, 64):
        database.set({f"c/o{each:05}": b"12345678" for each in range(number, number + 64)}, ME)
    return database


def evicted_in_each(database: Database, work: Steps[None]) -> list[int]:
    """Run ``work``; return how many keys each step evicted."""
    counters, steps = database.store.counters, []
    before = counters.evicted_keys
    for _ in work:
        steps.append(counters.evicted_keys - before)
        before = counters.evicted_keys
    return [*steps, counters.evicted_keys - before]


def test_room_for_a_large_write_is_made_in_steps_of_one_commit_of_evictions(full: Database) -> None:
    writes = entries("n", 3 * memory.EVICTED_KEYS)
    steps = evicted_in_each(full, full.memory.make_room(writes))
    assert max(steps) <= memory.EVICTED_KEYS
    assert sum(steps) >= 2 * memory.EVICTED_KEYS
    before = full.store.counters.evicted_keys
    full.set(writes, ME)
    assert full.store.counters.evicted_keys == before, "the write itself evicts nothing more"


def test_the_growth_by_a_write_is_computed_once_and_not_for_each_commit_of_evictions(database: Database) -> None:
    looked_up = 0
    find_all = database.store.find_all

    def counted(keys: Sequence[str]) -> list[Head | None]:
        nonlocal looked_up
        looked_up += len(keys)
        return find_all(keys)

    database.store.find_all = counted
    for name in ("keys of a quota", "keys"):
        limit(database, name)
        database.set(entries("o", KEYS), ME)
        looked_up = 0
        database.set(entries(name[:6], KEYS), ME)
        # Once for the growth, and each victim once or twice while the hand passes over it.
        assert looked_up <= 5 * KEYS


def test_other_writes_take_none_of_the_room_that_is_being_made_for_a_large_one(full: Database) -> None:
    count = 3 * memory.EVICTED_KEYS
    others = 0
    for steps, _ in enumerate(full.memory.make_room(entries("n", count))):
        for _ in range(memory.EVICTED_KEYS):
            others += 1
            full.set({f"c/x{others:05}": b"12345678"}, ME)
        assert steps <= 40, "room never comes"
    full.set(entries("n", count), ME)
    assert not full.memory._claims


def test_a_write_that_its_client_gives_up_claims_no_room_any_more(full: Database) -> None:
    work = full.memory.make_room(entries("n", 3 * memory.EVICTED_KEYS))
    while not full.memory._claims:
        next(work)
    work.close()
    assert not full.memory._claims


def test_a_small_write_is_quick_and_a_large_one_is_not_once_memory_is_short(full: Database) -> None:
    assert full.memory.is_quick(1, 100)
    assert not full.memory.is_quick(memory.EVICTED_KEYS + 1, 100)
    assert not full.memory.is_quick(1, memory.QUICK_BYTES + 1)


def test_a_large_write_without_room_is_refused_and_evicts_nothing_more_than_may_go(database: Database) -> None:
    database.memory.set_rules(PrefixRules([PrefixRule(prefix="c/", max_keys=10)]))
    with pytest.raises(OutOfMemory):
        list(database.memory.make_room(entries("n", 11)))


@pytest.mark.parametrize("name", LIMITS)
def test_what_a_lowered_limit_leaves_over_goes_in_steps(
    clocks: "Clocks", name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "COUNTED_KEYS", 10)
    database = clocks.database()
    database.memory.set_rules(PrefixRules([PrefixRule(prefix="c/", evict=True)]))
    for number in range(16):
        database.set(entries(f"{number:02}", KEYS // 4), ME)
    clocks.scheduler.calls.clear()
    limit(database, name)
    counters, steps = database.store.counters, 0
    while calls := [call for call in clocks.scheduler.calls if call.delay_s == 0]:
        clocks.scheduler.calls.clear()
        before = counters.evicted_keys
        for call in calls:
            call.run()
        assert counters.evicted_keys - before <= memory.EVICTED_KEYS
        steps += 1
    assert counters.keys <= 3 * KEYS
    assert steps >= 10
    assert database.memory.is_quick(1, 100)


@pytest.mark.parametrize("seed", range(20))
def test_rules_for_a_large_store_are_exact_although_it_changes_while_its_keys_are_counted(
    clocks: "Clocks", seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "COUNTED_KEYS", 10)
    monkeypatch.setattr(counting, "STEP_KEYS", 7)
    monkeypatch.setattr(keyspace_module, "FIRST_KEYS", 40)
    chosen, database = random.Random(seed), clocks.database()  # noqa: S311  # to be repeatable

    def change() -> None:
        names = [f"{chosen.choice('ab')}{chosen.randrange(120)}" for _ in range(chosen.randrange(1, 6))]
        if chosen.random() < 0.6:
            database.set({name: bytes(chosen.randrange(9)) for name in names}, ME)
        else:
            database.delete(names, ME, missing_ok=True)
        if chosen.random() < 0.3:  # tombstones go, and their keys may come again in another part
            database.store.trim_history(10**6, database.store.version, 10**6, even_pinned=True)

    for _ in range(60):
        change()
    rules = PrefixRules([PrefixRule(prefix="a", max_keys=10**6, evict=True), PrefixRule(prefix="b", max_bytes=10**9)])
    clocks.scheduler.calls.clear()
    database.memory.set_rules(rules)
    steps = 0
    while database.memory.rules is not rules:
        assert database.memory.rules.rules == ()
        for _ in range(chosen.randrange(3)):
            change()
        call = next(call for call in clocks.scheduler.calls if call.delay_s == 0)
        clocks.scheduler.calls.remove(call)
        call.run()
        steps += 1
    assert steps > 3
    assert database.memory.quotas() == recount(database)
    for _ in range(30):
        change()
    assert database.memory.quotas() == recount(database)
    queued = {key for sieve in database.memory._quotas.sieves for piece in sieve._pieces for key in piece}
    assert {item.key for item in database.store.scan("a", "b", 1000).items} <= queued


def test_later_rules_replace_those_that_do_not_hold_yet(clocks: "Clocks", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "COUNTED_KEYS", 10)
    database = clocks.database()
    database.set(entries("o", 2_000), ME)
    database.memory.set_rules(PrefixRules([PrefixRule(prefix="c/", max_keys=1)]))
    last = PrefixRules([PrefixRule(prefix="c/", max_keys=2_000)])
    database.memory.set_rules(last)
    while calls := [call for call in clocks.scheduler.calls if call.delay_s == 0]:
        clocks.scheduler.calls.clear()
        for call in calls:
            call.run()
    assert database.memory.rules is last
    assert database.memory.quotas() == recount(database)
