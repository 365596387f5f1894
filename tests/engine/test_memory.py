"""Memory, keys and quotas stay within their limits, and a write that does not fit changes nothing."""

import contextlib
import random
from typing import TYPE_CHECKING

import pytest

from kvd.engine.database import Database
from kvd.store import keyspace as keyspace_module
from kvd.store.authors import EVICTED, Author
from kvd.store.errors import Conflict, OutOfMemory, SnapshotGone
from kvd.store.history import commits_from, versions
from kvd.store.keyspace import KEY_BYTES
from kvd.store.prefixes import PrefixRule, PrefixRules
from kvd.store.window import WindowLimits

if TYPE_CHECKING:
    from tests.engine.conftest import Clocks

ME = Author(1, 2, "me")
CACHE = PrefixRule(prefix="c/", evict=True)
MAX_BYTES = 200_000


@pytest.fixture
def full(database: Database) -> Database:
    """A database with little memory, and a prefix whose keys may be evicted."""
    database.memory.configure(MAX_BYTES, 0, MAX_BYTES)
    database.memory.set_rules(PrefixRules([CACHE, PrefixRule(prefix="q/", max_bytes=20_000, max_keys=20)]))
    return database


def state(database: Database) -> tuple[object, ...]:
    store = database.store
    keys = [key for part in store.parts() for key in part]
    return (
        {key: (head.value, head.version) for key in keys if (head := store.find(key)) is not None and head.value},
        store.version, store.window.bytes, store.counters.keys, store.counters.value_bytes, database.memory.quotas(),
    )  # fmt: skip


def recount(database: Database) -> list[tuple[str, int, int]]:
    """Count the quotas from scratch."""
    counted = []
    for rule in database.memory.rules.rules:
        if rule.max_bytes or rule.max_keys:
            heads = [head for part in database.store.parts() for head in part.values() if head.value is not None]
            mine = [head for head in heads if database.memory.rules.rule_of(head.key) == rule]
            size = sum(KEY_BYTES + len(head.key) + len(head.value or b"") for head in mine)
            counted.append((rule.prefix, len(mine), size))
    return counted


def actual_bytes(database: Database) -> int:
    """Return keys and values, counted one by one, and the history's own count."""
    heads = [head for part in database.store.parts() for head in part.values()]
    return sum(KEY_BYTES + len(head.key) + len(head.value or b"") for head in heads) + database.store.window.bytes


@pytest.mark.parametrize("seed", range(15))
def test_random_writes_stay_within_all_limits(
    full: Database, clocks: "Clocks", seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed % 2:
        monkeypatch.setattr(keyspace_module, "FIRST_KEYS", 20)
    chosen = random.Random(seed)  # noqa: S311  # to be repeatable
    kept: dict[str, bytes] = {}
    refused = 0
    for step in range(600):
        clocks.advance(chosen.randrange(1000))
        prefix = chosen.choice(["c/", "c/", "c/", "kept/", "q/"])
        entries = {
            f"{prefix}{chosen.randrange(400)}": bytes(chosen.randrange(1, 3_000)) for _ in range(chosen.randrange(1, 5))
        }
        before = state(full)
        act = chosen.random()
        try:
            if act < 0.6:
                full.set(entries, ME)
            elif act < 0.7:
                full.set_each([{key: value} for key, value in entries.items()], ME)
            elif act < 0.8:
                full.commit(entries, {}, [], full.store.version, ME)
            else:
                full.delete(list(entries), ME, missing_ok=True)
                entries = dict.fromkeys(entries)  # type: ignore[arg-type]
        except OutOfMemory:
            refused += 1
            if prefix != "c/":
                after = state(full)
                gone = {key for key in before[0] if key not in after[0]}  # type: ignore[attr-defined, operator]
                assert all(key.startswith("c/") for key in gone), "only evictions have happened"
        else:
            if prefix != "c/":
                kept.update(entries)
        assert full.memory.used_bytes() <= MAX_BYTES, step
        assert full.store.memory_bytes == actual_bytes(full), step
        assert full.memory.quotas() == recount(full), step
        assert full.memory.quotas()[0][1] <= 20
        assert full.memory.quotas()[0][2] <= 20_000
        values = full.store.get_many(list(kept))
        assert values == list(kept.values()), "a key that may not be evicted stays"
    assert full.store.counters.evicted_keys > 100
    assert refused > 5


def test_a_write_is_refused_and_changes_nothing_if_no_key_may_be_evicted(full: Database) -> None:
    number = 0
    while full.memory.used_bytes() < MAX_BYTES - 1_500:
        full.set({f"kept/{number}": bytes(1_000)}, ME)
        number += 1
    before = state(full)
    with pytest.raises(OutOfMemory, match="of memory are taken"):
        full.set({"kept/more": bytes(60_000)}, ME)
    after = state(full)
    assert before[:2] + before[3:] == after[:2] + after[3:], "only history was dropped for it"
    full.delete([f"kept/{n}" for n in range(10)], ME, missing_ok=False)
    full.set({"kept/again": bytes(1_000)}, ME)


def test_a_write_larger_than_all_memory_evicts_nothing(full: Database) -> None:
    full.set({"c/1": b"x"}, ME)
    with pytest.raises(OutOfMemory, match="this would take"):
        full.set({"big": bytes(MAX_BYTES)}, ME)
    assert full.store.get("c/1") == b"x"


def test_history_is_dropped_before_any_key_is_evicted(full: Database) -> None:
    full.set({"c/1": b"x"}, ME)
    for _ in range(1_000):
        full.set({"kept/1": bytes(1_000)}, ME)
    assert full.store.get("c/1") == b"x"
    assert full.memory.used_bytes() <= MAX_BYTES


def test_many_keys_are_evicted_in_one_commit_and_their_versions_stay_in_the_history(database: Database) -> None:
    database.memory.configure(0, 2_048, 0)
    database.memory.set_rules(PrefixRules([CACHE]))
    database.set({f"c/{number}": b"x" for number in range(2_048)}, ME)
    database.set_each([{f"c/new{number}": b"x"} for number in range(100)], ME)
    eviction, *sets = commits_from(database.store, 2, 1_000, 10**6)
    assert eviction.author == EVICTED
    assert eviction.keys == [f"c/{number}" for number in range(102)], "two more than needed"
    assert {commit.author for commit in sets} == {ME}
    gone = versions(database.store, "c/7", 10, None, 10**6)
    assert [(one.version, one.value, one.author) for one in gone] == [(2, None, EVICTED), (1, b"x", ME)]
    assert database.store.get_many(["c/7", "c/200"], 1) == [b"x", b"x"]
    assert database.store.get_many(["c/7", "c/200"], 2) == [None, b"x"]


def test_forgotten_keys_count_deleted_ones_but_not_evicted_ones(clocks: "Clocks") -> None:
    """So the queue is swept for deleted keys only: evicted keys have left it before."""
    database = clocks.database(WindowLimits(max_commits=0))
    database.memory.configure(0, 3, 0)
    database.memory.set_rules(PrefixRules([CACHE]))
    for number in range(20):
        database.set({f"c/{number}": b""}, ME)
    database.delete(["c/18", "c/19"], ME, missing_ok=False)
    database.upkeep.drop_old(1_000)
    assert database.store.counters.evicted_keys == 17
    assert len(database.store.parts()[0]) == 1
    assert database.store.forgotten_keys == 2


def test_a_key_that_is_in_the_queue_twice_is_evicted_once(clocks: "Clocks") -> None:
    """The key is deleted, forgotten, and set again as the same object, because decoders share objects of short keys."""
    database = clocks.database(WindowLimits(max_commits=0))
    database.memory.configure(0, 3, 0)
    database.memory.set_rules(PrefixRules([CACHE]))
    key = "c/again"
    database.set({key: b"1"}, ME)
    database.delete([key], ME, missing_ok=False)
    database.upkeep.drop_old(1_000)
    assert database.store.find(key) is None
    database.set({key: b"2"}, ME)
    database.set({"c/1": b"", "c/2": b""}, ME)
    database.set({"c/3": b"", "c/4": b""}, ME)
    assert database.store.counters.evicted_keys == 2
    assert database.store.counters.keys == 3
    assert [database.store.exists(name) for name in (key, "c/1", "c/2", "c/3", "c/4")] == [False, False, *[True] * 3]


def test_a_key_that_was_evicted_before_a_reload_enters_the_new_queue_once_when_it_is_set_again(
    database: Database,
) -> None:
    rules = PrefixRules([PrefixRule(prefix="c/", max_keys=2, evict=True)])
    database.memory.set_rules(rules)
    for name in ("c/1", "c/2", "c/3"):
        database.set({name: b""}, ME)
    assert not database.store.exists("c/1")
    database.memory.set_rules(rules)
    database.set({"c/1": b""}, ME)
    assert not database.store.exists("c/2")
    assert sum(map(len, database.memory._quotas.sieves)) == 2
    database.set({"c/4": b""}, ME)
    assert [database.store.exists(name) for name in ("c/1", "c/3", "c/4")] == [True, False, True]


def test_an_eviction_is_a_commit_of_its_own(full: Database) -> None:
    version = full.store.version
    for number in range(300):
        full.set({f"c/{number}": bytes(1_000)}, ME)
    assert full.store.counters.evicted_keys > 0
    assert full.store.version > version + 300
    with pytest.raises(SnapshotGone):
        full.store.get_many(["c/0"], version + 1)
    newest = commits_from(full.store, full.store.window.oldest_readable + 1, 1_000, 10**6)
    assert {commit.author for commit in newest} <= {ME, EVICTED}


def test_an_old_version_of_an_evicted_key_is_gone_and_never_reads_as_absent(full: Database) -> None:
    full.set({"c/first": b"x"}, ME)
    snapshot = full.store.pin()
    for number in range(400):
        full.set({f"c/{number}": bytes(1_000)}, ME)
    assert full.store.get("c/first") is None
    with pytest.raises(SnapshotGone):
        full.store.get_many(["c/first"], snapshot)
    full.store.unpin(snapshot)


def test_an_eviction_ends_no_snapshot_of_other_keys(full: Database) -> None:
    full.set({"kept": b"old"}, ME)
    full.set({"c/large": bytes(100_000)}, ME)
    snapshot = full.store.pin()
    full.set({"kept": b"new"}, ME)
    full.set({f"c/{number}": bytes(1_000) for number in range(100)}, ME)
    assert full.store.get("c/large") is None
    assert full.store.get_many(["kept"], snapshot) == [b"old"]
    with pytest.raises(SnapshotGone):
        full.store.get_many(["c/large"], snapshot)
    full.store.unpin(snapshot)


def test_commits_that_may_not_be_shown_yet_stay(full: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(full), "visible", property(lambda self: 5))
    for number in range(150):
        full.set({f"kept/{number}": b"x", "kept/again": bytes(100)}, ME)
    for number in range(8):
        full.set({f"kept/large{number}": bytes(10_000)}, ME)
    with pytest.raises(OutOfMemory):
        full.set({"kept/again": bytes(80_000)}, ME)
    assert full.store.window.oldest_readable <= 5


def test_a_transaction_conflicts_if_its_own_eviction_takes_a_key_that_it_read(full: Database) -> None:
    number = 0
    while full.store.counters.evicted_keys == 0:
        full.set({f"c/{number}": bytes(1_000)}, ME)
        number += 1
    oldest = min((head.version, key) for part in full.store.parts() for key, head in part.items() if head.value)
    version, key = oldest
    others = {f"c/new{n}": bytes(1_000) for n in range(100)}
    with pytest.raises(Conflict):
        full.commit(others, {key: version}, [], full.store.version, ME)
    assert full.store.get("c/new0") is None


@pytest.mark.parametrize("evict", [True, False])
def test_a_quota_holds(database: Database, evict: bool) -> None:
    database.memory.set_rules(PrefixRules([PrefixRule(prefix="q/", max_keys=3, evict=evict)]))
    database.set({"q/1": b"", "q/2": b"", "q/3": b"", "other": b""}, ME)
    database.set({"q/1": b"again"}, ME)
    if evict:
        database.set({"q/4": b""}, ME)
        assert database.store.get("q/1") == b"again", "a key that was read stays"
    else:
        with pytest.raises(OutOfMemory, match="there are 3 keys under 'q/', and there may be 3"):
            database.set({"q/4": b""}, ME)
        database.delete(["q/2"], ME, missing_ok=False)
        database.set({"q/4": b""}, ME)
    assert database.memory.quotas()[0][1] <= 3
    assert database.store.get("other") == b""


def test_a_limit_of_keys_holds(database: Database) -> None:
    database.memory.configure(0, 3, 0)
    database.set({"a": b"", "b": b"", "c": b""}, ME)
    with pytest.raises(OutOfMemory, match="there are 3 keys, and there may be 3"):
        database.set({"a": b"", "d": b""}, ME)
    database.set({"a": b"new"}, ME)
    with pytest.raises(OutOfMemory):
        database.set_each([{"e": b""}, {"f": b""}], ME)
    with pytest.raises(OutOfMemory):
        database.increment("g", 1, ME)
    assert database.store.counters.keys == 3


def test_rules_that_are_set_later_count_the_keys_that_are_there(database: Database) -> None:
    database.set({f"c/{number}": bytes(100) for number in range(10)}, ME)
    database.memory.set_rules(PrefixRules([PrefixRule(prefix="c/", max_keys=5, evict=True)]))
    assert database.memory.quotas() == recount(database)
    database.set({"c/new": b""}, ME)
    assert database.memory.quotas()[0][1] <= 5


def test_keys_grouped_by_rule_agree_with_the_rule_of_each_key() -> None:
    outer, inner = PrefixRule(prefix="a", max_keys=1), PrefixRule(prefix="a/b", evict=True)
    keys = ["a/b/c", "b", "a/c", "a/bc", "", "a"]
    found = dict(PrefixRules([outer, inner]).by_rule(keys))
    assert found == {inner: ["a/b/c", "a/bc"], outer: ["a/c", "a"], None: ["b", ""]}
    everything = PrefixRule(prefix="", evict=True)
    assert list(PrefixRules([everything]).by_rule(keys)) == [(everything, keys)]
    assert list(PrefixRules([]).by_rule(["a"])) == [(None, ["a"])]


def test_only_the_longest_prefix_decides() -> None:
    outer, inner = PrefixRule(prefix="a", max_keys=1), PrefixRule(prefix="a/b", evict=True)
    rules = PrefixRules([outer, inner])
    assert [rules.rule_of(key) for key in ("a/b/c", "a/bc", "a/c", "a", "b", "")] == [
        inner,
        inner,
        outer,
        outer,
        None,
        None,
    ]


def test_used_memory_is_exact_after_any_change(clocks: "Clocks") -> None:
    """The window drops all the time, tombstones are forgotten, and keys lie outside the first dict."""
    chosen = random.Random(3)  # noqa: S311  # to be repeatable
    database = clocks.database(WindowLimits(max_commits=20))
    for _ in range(2_000):
        keys = [f"ключ{chosen.randrange(60)}" for _ in range(3)]
        if chosen.random() < 0.4:
            database.delete(keys, ME, missing_ok=True)
        else:
            database.set(dict.fromkeys(keys, bytes(chosen.randrange(50))), ME)
    assert database.store.memory_bytes == actual_bytes(database)


def test_a_quota_holds_if_a_write_evicts_the_key_that_it_replaces(database: Database) -> None:
    keys, size = PrefixRule(prefix="k/", max_keys=2, evict=True), PrefixRule(prefix="s/", max_bytes=700, evict=True)
    database.memory.set_rules(PrefixRules([keys, size]))
    database.set({"k/a": b"", "k/b": b""}, ME)
    database.set({"k/a": b"new", "k/c": b"new"}, ME)
    database.set({"s/a": b"", "s/b": b"", "s/c": b""}, ME)
    database.set({"s/a": bytes(KEY_BYTES)}, ME)
    assert database.memory.quotas() == recount(database)
    assert database.memory.quotas()[0][1] == 2
    assert database.memory.quotas()[1][2] <= 700
    assert database.store.get_many(["k/a", "k/c", "s/a"]) == [b"new", b"new", bytes(KEY_BYTES)]


def test_a_limit_of_keys_holds_if_a_write_evicts_the_key_that_it_replaces(database: Database) -> None:
    database.memory.configure(0, 2, 0)
    database.memory.set_rules(PrefixRules([CACHE]))
    database.set({"c/a": b"", "c/b": b""}, ME)
    database.set({"c/a": b"new", "c/c": b"new"}, ME)
    assert database.store.counters.keys == 2
    assert database.store.get_many(["c/a", "c/c"]) == [b"new", b"new"]


@pytest.mark.parametrize("rule", [PrefixRule(prefix="c/", max_keys=3, evict=True),
                                  PrefixRule(prefix="c/", max_bytes=4 * KEY_BYTES, evict=True)])  # fmt: skip
def test_a_write_larger_than_its_quota_evicts_nothing(database: Database, rule: PrefixRule) -> None:
    database.memory.set_rules(PrefixRules([rule]))
    database.set({"c/a": b"", "c/b": b"", "c/c": b""}, ME)
    before = state(database)
    with pytest.raises(OutOfMemory):
        database.set(dict.fromkeys(("c/a", "c/d", "c/e", "c/f"), b"x"), ME)
    assert state(database) == before


@pytest.mark.parametrize("max_keys", [0, 2])
def test_a_transaction_that_deletes_as_much_as_it_adds_needs_no_room(database: Database, max_keys: int) -> None:
    database.memory.configure(0, max_keys, 0)
    database.memory.set_rules(PrefixRules([PrefixRule(prefix="q/", max_keys=2, max_bytes=2 * KEY_BYTES + 20)]))
    database.set({"q/a": b"long", "q/b": b"long"}, ME)
    database.commit({"q/a": None, "q/c": b"more"}, {}, [], database.store.version, ME)
    assert database.store.get_many(["q/a", "q/c"]) == [None, b"more"]
    assert database.memory.quotas() == recount(database)
    with pytest.raises(OutOfMemory):
        database.commit({"q/none": None, "q/d": b""}, {}, [], database.store.version, ME)


def test_evictions_that_may_not_be_shown_yet_make_room_and_no_more_keys_go_than_needed(
    full: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a commit log: an eviction stays in the history until the disk has it."""
    for number in range(150):
        full.set({f"c/{number}": bytes(1_000)}, ME)
    shown = full.store.version
    monkeypatch.setattr(type(full), "visible", property(lambda self: shown))
    for number in range(150, 180):
        full.set({f"c/{number}": bytes(1_000)}, ME)
        assert full.store.counters.keys > 80
    assert full.store.counters.evicted_keys > 0
    shown = full.store.version
    full._on_visible()
    assert full.memory.used_bytes() <= MAX_BYTES
    full.set({"c/last": bytes(1_000)}, ME)
    assert full.memory.used_bytes() <= MAX_BYTES


def test_memory_has_a_bound_while_evictions_may_not_be_shown(full: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(800):
        full.set({f"c/{number}": b""}, ME)
    shown = full.store.version
    monkeypatch.setattr(type(full), "visible", property(lambda self: shown))
    while full.memory.used_bytes() + 600 <= MAX_BYTES * 5 // 4:
        full.set({f"c/{full.store.version}": b""}, ME)
    for number in range(500):
        with pytest.raises(OutOfMemory, match="until the disk has"):
            full.set({f"c/new{number}": b""}, ME)
    eviction = 500  # the last one, which came before it was known that it would not do
    assert full.memory.used_bytes() <= MAX_BYTES * 5 // 4 + eviction
    assert full.store.counters.keys > 200, "a refused write evicts no more than an accepted one"
    shown = full.store.version
    full.set({"c/again": bytes(1_000)}, ME)
    assert full.memory.used_bytes() <= MAX_BYTES


def test_the_memory_of_deadlines_counts(database: Database) -> None:
    max_bytes = 2_000_000
    database.memory.configure(max_bytes, 0, 10_000)
    expiry = database.expiry(10**9, keep=False, owner=None)
    with contextlib.suppress(OutOfMemory):
        for number in range(7_000):
            database.set({f"{number:05d}": b""}, ME, expiry)
    assert max_bytes - 1_000 < database.memory.used_bytes() <= max_bytes


def test_touching_keeps_the_history_within_the_memory(full: Database) -> None:
    full.set({f"kept/{number}": bytes(1_000) for number in range(60)}, ME)
    for _ in range(300):
        full.touch(["kept/1", "kept/2"], 10**9, ME)
        assert full.memory.used_bytes() <= MAX_BYTES


def test_a_deadline_needs_room_and_its_removal_does_not(database: Database) -> None:
    database.memory.configure(MAX_BYTES, 0, MAX_BYTES)
    keys = [f"{number:03d}" for number in range(400)]
    database.set(dict.fromkeys(keys, b""), ME)
    touched = 0
    with contextlib.suppress(OutOfMemory):
        for key in keys:
            database.touch([key], 10**9, ME)
            touched += 1
    assert 50 < touched < 400
    assert database.memory.used_bytes() <= MAX_BYTES
    before = state(database), database.count_deadlines()
    with pytest.raises(OutOfMemory):
        database.touch(keys, 10**9, ME)
    assert (state(database), database.count_deadlines()) == before
    assert database.touch(keys[:touched], None, ME) == [True] * touched
    assert database.count_deadlines() == 0


def test_a_write_with_a_deadline_needs_room_for_the_deadline(database: Database) -> None:
    database.memory.configure(MAX_BYTES, 0, MAX_BYTES)
    entries = {f"{number:03d}": b"" for number in range(400)}
    expiry = database.expiry(10**9, keep=False, owner=None)
    for write in (database.set, lambda entries, author, expiry: database.commit(entries, {}, [], 0, author, expiry)):
        with pytest.raises(OutOfMemory):
            write(entries, ME, expiry)
    assert database.store.version == 0
    database.set(entries, ME)


def test_transactions_that_only_read_or_delete_need_no_room(clocks: "Clocks") -> None:
    database = clocks.database()
    database.memory.configure(MAX_BYTES, 0, MAX_BYTES)
    with contextlib.suppress(OutOfMemory):
        for number in range(1_000):
            database.set({f"{number}": bytes(1_000)}, ME)
    database.memory.configure(MAX_BYTES - 5_000, 0, MAX_BYTES)
    assert database.memory.used_bytes() > MAX_BYTES - 5_000
    version = database.store.version
    assert database.commit({}, {"none": 0}, [("", None)], version, ME) == version
    database.commit({f"{number}": None for number in range(10)}, {}, [], version, ME)
    assert database.store.get("0") is None
    assert database.memory.used_bytes() <= MAX_BYTES


def test_a_key_that_is_set_again_after_a_reload_counts_as_new(database: Database) -> None:
    database.memory.set_rules(PrefixRules([PrefixRule(prefix="c/", max_keys=2, evict=True)]))
    for key in ("c/a", "c/b", "c/c"):
        database.set({key: b""}, ME)
    assert database.store.get("c/a") is None
    database.memory.set_rules(PrefixRules([PrefixRule(prefix="c/", max_keys=3, evict=True)]))
    database.set({"c/a": b"again"}, ME)
    database.set({"c/d": b""}, ME)
    assert database.store.get_many(["c/a", "c/b"]) == [b"again", None]


def test_a_quota_holds_if_a_batch_sets_a_key_several_times(database: Database) -> None:
    database.memory.configure(0, 3, 0)
    database.memory.set_rules(PrefixRules([PrefixRule(prefix="q/", max_bytes=2_000)]))
    database.set({"q/a": bytes(1_000), "q/b": bytes(500)}, ME)
    with pytest.raises(OutOfMemory):
        database.set_each([{"q/a": b""}, {"q/a": bytes(1_700)}], ME)
    with pytest.raises(OutOfMemory):
        database.set_each([{"q/a": bytes(1_700)}, {"q/a": b""}], ME)
    database.set_each([{"c": b"1"}, {"c": b"2"}], ME)
    assert database.store.get_many(["q/a", "c"]) == [bytes(1_000), b"2"]
    assert database.memory.quotas() == recount(database)


def test_a_key_that_is_set_and_deleted_again_and_again_does_not_fill_the_queue(clocks: "Clocks") -> None:
    """Even if it is the same object each time, because decoders keep short keys."""
    database, key = clocks.database(WindowLimits(max_commits=0)), "c/again"
    database.memory.set_rules(PrefixRules([CACHE]))
    for _ in range(20_000):
        database.set({key: b""}, ME)
        database.delete([key], ME, missing_ok=False)
    assert sum(map(len, database.memory._quotas.sieves)) < 3_000
