"""Memory, keys and quotas: never more than allowed, and a write that does not fit changes nothing."""

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
    """A database with little memory, and a prefix whose keys may go."""
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
    """The quotas from scratch."""
    counted = []
    for rule in database.memory.rules.rules:
        if rule.max_bytes or rule.max_keys:
            heads = [head for part in database.store.parts() for head in part.values() if head.value is not None]
            mine = [head for head in heads if database.memory.rules.rule_of(head.key) == rule]
            size = sum(KEY_BYTES + len(head.key) + len(head.value or b"") for head in mine)
            counted.append((rule.prefix, len(mine), size))
    return counted


def actual_bytes(database: Database) -> int:
    """Keys and values, counted one by one, and the history's own count."""
    heads = [head for part in database.store.parts() for head in part.values()]
    return sum(KEY_BYTES + len(head.key) + len(head.value or b"") for head in heads) + database.store.window.bytes


@pytest.mark.parametrize("seed", range(15))
def test_random_writes_stay_below_all_limits(
    full: Database, clocks: "Clocks", seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed % 2:
        monkeypatch.setattr(keyspace_module, "FIRST_KEYS", 20)
    chosen = random.Random(seed)  # noqa: S311  # to be repeatable
    kept: dict[str, bytes] = {}
    refused = 0
    for step in range(600):
        clocks.pass_(chosen.randrange(1000))
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
                assert all(key.startswith("c/") for key in gone), "room was made, and nothing else happened"
        else:
            if prefix != "c/":
                kept.update(entries)
        assert full.memory.used_bytes() <= MAX_BYTES, step
        assert full.store.memory_bytes == actual_bytes(full), step
        assert full.memory.quotas() == recount(full), step
        assert full.memory.quotas()[0][1] <= 20
        assert full.memory.quotas()[0][2] <= 20_000
        values = full.store.get_many(list(kept))
        assert values == list(kept.values()), "what may not be evicted never goes"
    assert full.store.counters.evicted_keys > 100
    assert refused > 5


def test_without_anything_to_evict_a_write_is_refused_and_changes_nothing(full: Database) -> None:
    number = 0
    while full.memory.used_bytes() < MAX_BYTES - 1_500:
        full.set({f"kept/{number}": bytes(1_000)}, ME)
        number += 1
    before = state(full)
    with pytest.raises(OutOfMemory, match="of memory are taken"):
        full.set({"kept/more": bytes(60_000)}, ME)
    after = state(full)
    assert before[:2] + before[3:] == after[:2] + after[3:], "only history has gone for it"
    full.delete([f"kept/{n}" for n in range(10)], ME, missing_ok=False)
    full.set({"kept/again": bytes(1_000)}, ME)


def test_one_write_larger_than_everything_evicts_nothing(full: Database) -> None:
    full.set({"c/1": b"x"}, ME)
    with pytest.raises(OutOfMemory, match="this would take"):
        full.set({"big": bytes(MAX_BYTES)}, ME)
    assert full.store.get("c/1") == b"x"


def test_history_goes_before_any_key(full: Database) -> None:
    full.set({"c/1": b"x"}, ME)
    for _ in range(1_000):
        full.set({"kept/1": bytes(1_000)}, ME)
    assert full.store.get("c/1") == b"x"
    assert full.memory.used_bytes() <= MAX_BYTES


def test_many_go_in_one_commit_and_their_versions_are_in_the_history(database: Database) -> None:
    database.memory.configure(0, 2_048, 0)
    database.memory.set_rules(PrefixRules([CACHE]))
    database.set({f"c/{number}": b"x" for number in range(2_048)}, ME)
    database.set_each([{f"c/new{number}": b"x"} for number in range(100)], ME)
    eviction, *sets = commits_from(database.store, 2, 1_000, 10**6)
    assert eviction.author == EVICTED
    assert eviction.keys == [f"c/{number}" for number in range(102)], "two more than had to"
    assert {commit.author for commit in sets} == {ME}
    gone = versions(database.store, "c/7", 10, None, 10**6)
    assert [(one.version, one.value, one.author) for one in gone] == [(2, None, EVICTED), (1, b"x", ME)]
    assert database.store.get_many(["c/7", "c/200"], 1) == [b"x", b"x"]
    assert database.store.get_many(["c/7", "c/200"], 2) == [None, b"x"]


def test_what_was_deleted_and_is_forgotten_is_counted_and_what_was_evicted_is_not(clocks: "Clocks") -> None:
    """So that the queue is swept for the first only: evicted keys have left it before."""
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


def test_a_key_that_stands_in_the_queue_twice_is_evicted_once(clocks: "Clocks") -> None:
    """Deleted and forgotten, and set again under the very same object, as decoders share those of short keys."""
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


def test_what_was_evicted_before_a_reload_stands_in_the_new_queue_once_when_it_comes_again(database: Database) -> None:
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


def test_evictions_are_commits_of_their_own(full: Database) -> None:
    version = full.store.version
    for number in range(300):
        full.set({f"c/{number}": bytes(1_000)}, ME)
    assert full.store.counters.evicted_keys > 0
    assert full.store.version > version + 300
    with pytest.raises(SnapshotGone):
        full.store.get_many(["c/0"], version + 1)
    newest = commits_from(full.store, full.store.window.oldest_readable + 1, 1_000, 10**6)
    assert {commit.author for commit in newest} <= {ME, EVICTED}


def test_an_old_version_of_an_evicted_key_is_gone_and_never_shown_as_absent(full: Database) -> None:
    full.set({"c/first": b"x"}, ME)
    snapshot = full.store.pin()
    for number in range(400):
        full.set({f"c/{number}": bytes(1_000)}, ME)
    assert full.store.get("c/first") is None
    with pytest.raises(SnapshotGone):
        full.store.get_many(["c/first"], snapshot)
    full.store.unpin(snapshot)


def test_what_is_evicted_ends_no_snapshot_of_others(full: Database) -> None:
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


def test_commits_that_are_not_shown_yet_stay(full: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(full), "visible", property(lambda self: 5))
    for number in range(150):
        full.set({f"kept/{number}": b"x", "kept/again": bytes(100)}, ME)
    for number in range(8):
        full.set({f"kept/large{number}": bytes(10_000)}, ME)
    with pytest.raises(OutOfMemory):
        full.set({"kept/again": bytes(80_000)}, ME)
    assert full.store.window.oldest_readable <= 5


def test_a_transaction_whose_own_eviction_takes_what_it_read_conflicts(full: Database) -> None:
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
        assert database.store.get("q/1") == b"again", "it was visited"
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


def test_rules_that_come_later_take_in_what_is_there(database: Database) -> None:
    database.set({f"c/{number}": bytes(100) for number in range(10)}, ME)
    database.memory.set_rules(PrefixRules([PrefixRule(prefix="c/", max_keys=5, evict=True)]))
    assert database.memory.quotas() == recount(database)
    database.set({"c/new": b""}, ME)
    assert database.memory.quotas()[0][1] <= 5


def test_keys_by_their_rules_are_what_each_is_told_alone() -> None:
    outer, inner = PrefixRule(prefix="a", max_keys=1), PrefixRule(prefix="a/b", evict=True)
    keys = ["a/b/c", "b", "a/c", "a/bc", "", "a"]
    found = dict(PrefixRules([outer, inner]).by_rule(keys))
    assert found == {inner: ["a/b/c", "a/bc"], outer: ["a/c", "a"], None: ["b", ""]}
    everything = PrefixRule(prefix="", evict=True)
    assert list(PrefixRules([everything]).by_rule(keys)) == [(everything, keys)]
    assert list(PrefixRules([]).by_rule(["a"])) == [(None, ["a"])]


def test_the_longest_prefix_decides_alone() -> None:
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


def test_what_is_used_is_counted_whatever_happens(clocks: "Clocks") -> None:
    """With a window that drops all the time, tombstones that are forgotten, and keys outside the first dict."""
    chosen = random.Random(3)  # noqa: S311  # to be repeatable
    database = clocks.database(WindowLimits(max_commits=20))
    for _ in range(2_000):
        keys = [f"ключ{chosen.randrange(60)}" for _ in range(3)]
        if chosen.random() < 0.4:
            database.delete(keys, ME, missing_ok=True)
        else:
            database.set(dict.fromkeys(keys, bytes(chosen.randrange(50))), ME)
    assert database.store.memory_bytes == actual_bytes(database)


def test_a_quota_holds_though_a_key_is_evicted_by_the_write_that_replaces_it(database: Database) -> None:
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


def test_a_limit_of_keys_holds_though_a_key_is_evicted_by_the_write_that_replaces_it(database: Database) -> None:
    database.memory.configure(0, 2, 0)
    database.memory.set_rules(PrefixRules([CACHE]))
    database.set({"c/a": b"", "c/b": b""}, ME)
    database.set({"c/a": b"new", "c/c": b"new"}, ME)
    assert database.store.counters.keys == 2
    assert database.store.get_many(["c/a", "c/c"]) == [b"new", b"new"]


@pytest.mark.parametrize("rule", [PrefixRule(prefix="c/", max_keys=3, evict=True),
                                  PrefixRule(prefix="c/", max_bytes=4 * KEY_BYTES, evict=True)])  # fmt: skip
def test_a_write_that_no_quota_has_room_for_evicts_nothing(database: Database, rule: PrefixRule) -> None:
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


def test_evictions_that_may_not_be_shown_yet_make_room_all_the_same_and_no_more_go_than_have_to(
    full: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a commit log: that it was evicted stays in the history until the disk has it."""
    for number in range(150):
        full.set({f"c/{number}": bytes(1_000)}, ME)
    shown = full.store.version
    monkeypatch.setattr(type(full), "visible", property(lambda self: shown))
    for number in range(150, 180):
        full.set({f"c/{number}": bytes(1_000)}, ME)
        assert full.store.counters.keys > 80
    assert full.store.counters.evicted_keys > 0
    shown = full.store.version
    full.memory.on_visible()
    assert full.memory.used_bytes() <= MAX_BYTES
    full.set({"c/last": bytes(1_000)}, ME)
    assert full.memory.used_bytes() <= MAX_BYTES


def test_while_evictions_may_not_be_shown_there_is_an_end_to_it_too(
    full: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert full.store.counters.keys > 200, "what is refused evicts no more than one that is not"
    shown = full.store.version
    full.set({"c/again": bytes(1_000)}, ME)
    assert full.memory.used_bytes() <= MAX_BYTES


def test_deadlines_count_before_memory_is_full_of_them(database: Database) -> None:
    most = 2_000_000
    database.memory.configure(most, 0, 10_000)
    life = database.expiry(10**9, keep=False, owner=None)
    with contextlib.suppress(OutOfMemory):
        for number in range(7_000):
            database.set({f"{number:05d}": b""}, ME, life)
    assert most - 1_000 < database.memory.used_bytes() <= most


def test_touching_leaves_no_more_history_than_there_is_room_for(full: Database) -> None:
    full.set({f"kept/{number}": bytes(1_000) for number in range(60)}, ME)
    for _ in range(300):
        full.touch(["kept/1", "kept/2"], 10**9, ME)
        assert full.memory.used_bytes() <= MAX_BYTES


def test_a_deadline_needs_room_and_a_life_without_end_none(database: Database) -> None:
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


def test_a_write_that_gives_keys_a_deadline_needs_room_for_that_too(database: Database) -> None:
    database.memory.configure(MAX_BYTES, 0, MAX_BYTES)
    entries = {f"{number:03d}": b"" for number in range(400)}
    life = database.expiry(10**9, keep=False, owner=None)
    for write in (database.set, lambda entries, author, life: database.commit(entries, {}, [], 0, author, life)):
        with pytest.raises(OutOfMemory):
            write(entries, ME, life)
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


def test_a_key_that_comes_again_after_a_reload_is_a_new_one_too(database: Database) -> None:
    database.memory.set_rules(PrefixRules([PrefixRule(prefix="c/", max_keys=2, evict=True)]))
    for key in ("c/a", "c/b", "c/c"):
        database.set({key: b""}, ME)
    assert database.store.get("c/a") is None
    database.memory.set_rules(PrefixRules([PrefixRule(prefix="c/", max_keys=3, evict=True)]))
    database.set({"c/a": b"again"}, ME)
    database.set({"c/d": b""}, ME)
    assert database.store.get_many(["c/a", "c/b"]) == [b"again", None]


def test_a_quota_holds_though_a_key_is_set_several_times_at_once(database: Database) -> None:
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


def test_a_key_that_comes_and_goes_for_ever_does_not_fill_the_queue(clocks: "Clocks") -> None:
    """Also if it is the very same object each time, as decoders keep short ones."""
    database, key = clocks.database(WindowLimits(max_commits=0)), "c/again"
    database.memory.set_rules(PrefixRules([CACHE]))
    for _ in range(20_000):
        database.set({key: b""}, ME)
        database.delete([key], ME, missing_ok=False)
    assert sum(map(len, database.memory._quotas.sieves)) < 3_000
