"""Values that go before the window drops their commits: no value too early, and no read returns a wrong one."""

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest

from kvd.store.errors import Conflict, SnapshotGone
from kvd.store.heads import FORGOTTEN, Head
from kvd.store.history import Version, commits_from, newest_commits, versions
from kvd.store.isolation import validate
from kvd.store.prefixes import PrefixRule, PrefixRules
from kvd.store.store import Store
from kvd.store.window import WindowLimits

AGE_US = 1_000
PLENTY = 10**9
MS = 1_000


def keeping(*rules: tuple[str, int]) -> Store:
    """Return a store that keeps values below these prefixes for the given ms; 0: as long as all others."""
    store = Store(WindowLimits(max_age_us=PLENTY, max_bytes=PLENTY))
    keep(store, *rules)
    return store


def keep(store: Store, *rules: tuple[str, int]) -> None:
    store.retention.set_rules(PrefixRules([PrefixRule(prefix=prefix, history_ms=ms) for prefix, ms in rules]))


def later(store: Store, us: int) -> None:
    store.advance(store.time + us)


def set_three_times(store: Store, *keys: str) -> None:
    """Make versions v+1 to v+3, one microsecond after the other."""
    for value in (b"one", b"two", b"three"):
        later(store, 1)
        store.set(dict.fromkeys(keys, value))


def forget_all(store: Store) -> None:
    while store.drop_history(3):
        pass


def values_at(store: Store, version: int, *keys: str) -> list[bytes | None]:
    return store.get_many(list(keys), at=version)


# ---------------------------------------------------------------------- what goes and what stays


def test_a_superseded_value_goes_at_its_age_and_not_before() -> None:
    store = keeping(("cache/", 1))
    set_three_times(store, "cache/a")  # superseded at 2 and 3 µs
    store.advance(3 + AGE_US)
    assert values_at(store, 2, "cache/a") == [b"two"]
    with pytest.raises(SnapshotGone) as gone:
        values_at(store, 1, "cache/a")
    assert (gone.value.version, gone.value.oldest_readable) == (1, 2)
    store.advance(4 + AGE_US)
    with pytest.raises(SnapshotGone) as gone:
        values_at(store, 1, "cache/a")
    assert gone.value.oldest_readable == 3
    assert values_at(store, 3, "cache/a") == [b"three"]


def test_values_of_other_keys_stay_and_so_do_those_below_a_longer_prefix_without_a_history() -> None:
    store = keeping(("cache/", 1), ("cache/kept/", 0), ("cache/long/", 2))
    names = ["other", "cache/kept/a", "cache/long/a"]
    set_three_times(store, "cache/a", *names)
    later(store, AGE_US + 10)
    assert values_at(store, 1, *names) == [b"one"] * 3
    with pytest.raises(SnapshotGone):
        values_at(store, 1, "other", "cache/a")
    later(store, AGE_US)
    assert values_at(store, 1, *names[:2]) == [b"one"] * 2
    with pytest.raises(SnapshotGone):
        values_at(store, 1, "cache/long/a")


def test_absent_and_deleted_keys_read_as_none_at_every_version() -> None:
    store = keeping(("", 1))
    store.set({"before": b""})
    store.set({"a": b"1"})
    store.delete(["a"])
    store.set({"a": b"2"})
    later(store, AGE_US + 10)
    later(store, 1)
    assert values_at(store, 1, "a") == [None]
    assert values_at(store, 3, "a") == [None]
    assert values_at(store, 4, "a") == [b"2"]
    with pytest.raises(SnapshotGone):
        values_at(store, 2, "a")


def test_the_window_gets_the_bytes_back_and_keeps_the_commits() -> None:
    store = keeping(("cache/", 1))
    for number in range(100):
        store.set({"cache/a": b"x" * 10_000, "b": b"%d" % number})
    commits, before = store.window.commits, store.window.bytes
    later(store, AGE_US + 1)
    forget_all(store)
    assert store.window.commits == commits
    assert before - store.window.bytes == 99 * 10_000
    assert [commit.version for commit in newest_commits(store, PLENTY, PLENTY)] == list(range(1, 101))
    assert commits_from(store, 1, 1, PLENTY)[0].keys == ["cache/a", "b"]
    store.window.limits = WindowLimits(max_commits=0)
    forget_all(store)
    assert store.window.bytes == 0


def test_a_touched_key_keeps_its_value() -> None:
    """A touch supersedes a value by the same value."""
    store = keeping(("", 1))
    store.set({"a": b"value"})
    store.touch(["a"], None)
    later(store, AGE_US + 1)
    forget_all(store)
    assert store.get("a") == b"value"
    assert values_at(store, 2, "a") == [b"value"]


def test_forgetting_goes_in_small_steps() -> None:
    store = keeping(("", 1))
    for number in range(100):
        store.set({"a": b"%d" % number})
    store.time += AGE_US + 1
    assert [store.retention.forget(store.time, 30) for _ in range(5)] == [30, 30, 30, 10, 0]


def test_later_rules_apply_to_existing_values_and_removed_rules_bring_no_value_back() -> None:
    store = keeping()
    set_three_times(store, "a", "b")
    later(store, AGE_US + 1)
    assert values_at(store, 1, "a") == [b"one"]
    keep(store, ("a", 1))
    later(store, 1)
    keep(store, ("b", 1_000))
    later(store, 1)
    with pytest.raises(SnapshotGone):
        values_at(store, 1, "a")
    assert values_at(store, 1, "b") == [b"one"]


def test_when_the_next_value_is_due() -> None:
    store = keeping(("a", 1), ("b", 5))
    assert store.retention.due_at() is None
    store.advance(100)
    store.set({"a": b""})
    assert store.retention.due_at() == 100 + 1 * MS
    store.advance(101 + 1 * MS)
    forget_all(store)
    assert store.retention.due_at() == 100 + 5 * MS


# ---------------------------------------------------------------------- who needs it


def test_a_pinned_version_keeps_its_values_until_it_is_unpinned() -> None:
    store = keeping(("", 1))
    set_three_times(store, "a")
    pinned = store.pin()
    set_three_times(store, "a")
    later(store, AGE_US + 10)
    forget_all(store)
    assert values_at(store, pinned, "a") == [b"three"]
    with pytest.raises(SnapshotGone):
        values_at(store, pinned - 1, "a")
    store.unpin(pinned)
    forget_all(store)
    with pytest.raises(SnapshotGone):
        values_at(store, pinned, "a")


def test_a_scan_at_a_version_does_not_skip_forgotten_values() -> None:
    store = keeping(("cache/", 1))
    set_three_times(store, "a", "cache/a", "z")
    later(store, AGE_US + 10)
    forget_all(store)
    assert [item.value for item in store.scan("a", "b", 10, at=1).items] == [b"one"]
    assert [item.value for item in store.scan("d", None, 10, at=1).items] == [b"one"]
    assert [item.key for item in store.scan("", None, 10, at=1, keys_only=True).items] == ["a", "cache/a", "z"]
    with pytest.raises(SnapshotGone) as gone:
        store.scan("", None, 10, at=1)
    assert gone.value.oldest_readable == 3


def test_a_keys_history_ends_where_values_are_forgotten() -> None:
    store = keeping(("", 1))
    set_three_times(store, "a")
    later(store, AGE_US + 10)
    set_three_times(store, "a")
    forget_all(store)
    assert [(each.version, each.value) for each in versions(store, "a", 10, None, PLENTY)] == [
        (6, b"three"), (5, b"two"), (4, b"one"), (3, b"three"),
    ]  # fmt: skip
    assert versions(store, "a", 10, 3, PLENTY) == list[Version]()


def test_a_commit_is_validated_as_if_no_value_were_forgotten() -> None:
    store = keeping(("", 1))
    set_three_times(store, "a", "b")
    later(store, AGE_US + 10)
    forget_all(store)
    validate(store, {"a": 3}, [("", None)], 3)
    for reads, ranges in (({"a": 1}, []), ({}, [("a", "b")])):
        with pytest.raises(Conflict) as refused:
            validate(store, reads, ranges, 1)
        assert [(each.key, each.expected, each.found) for each in refused.value.changes] == [("a", 1, 3)]


# ---------------------------------------------------------------------- against a model, at random


class Script:
    """A store, and a dict for each of its versions; random writes, pins and pauses."""

    KEYS = ("a", "b", "ba", "c")

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  # to be repeatable
        self.store = keeping(("b", 1), ("ba", self.random.choice([0, 1, 2])))
        self.states: list[dict[str, bytes]] = [{}]
        self.times = [0]
        self.pins: list[int] = []

    def step(self) -> None:
        store, pick = self.store, self.random.choice
        later(store, pick([0, 1, 100, 700]))
        what = pick(["set", "set", "set", "batch", "delete", "touch", "pin", "unpin", "forget"])
        if what == "set":
            self.note(store.set(entries := {key: self.value() for key in self.some_keys()}), entries)
        elif what == "batch":
            batch = [{key: self.value()} for key in self.some_keys() * 2]
            for version, entries in zip(store.set_each(batch), batch, strict=True):
                self.note(version, entries)
        elif what == "delete":
            there = [key for key in self.some_keys() if store.exists(key)]
            if there:
                self.note(store.delete(there)[0], dict.fromkeys(there))
        elif what == "touch":
            there = [key for key in self.some_keys() if store.exists(key)]
            store.touch(there, None)
            if there:
                self.note(store.version, {})
        elif what == "pin":
            self.pins.append(store.pin())
        elif what == "unpin" and self.pins:
            store.unpin(self.pins.pop(self.random.randrange(len(self.pins))))
        elif what == "forget":
            forget_all(store)
            assert not list(self.forgettable()), "a value that should be forgotten is still there"

    def some_keys(self) -> list[str]:
        return self.random.sample(self.KEYS, self.random.randint(1, 3))

    def value(self) -> bytes:
        return b"%d" % self.random.randrange(10**6)

    def note(self, version: int, changes: "dict[str, bytes | None] | dict[str, bytes]") -> None:
        assert version == len(self.states)
        state = {**self.states[-1], **changes}
        self.states.append({key: value for key, value in state.items() if value is not None})
        self.times.append(self.store.time)

    def chain(self, key: str) -> list[Head]:
        found, head = [], self.store.find(key)
        while head is not None:
            found.append(head)
            head = head.previous
        return found

    def forgettable(self) -> Iterator[tuple[str, int]]:
        """Yield the values that the store still has although the rules say to forget them."""
        for key in self.KEYS:
            chain = self.chain(key)
            for after, head in pairwise(chain):
                if head.value not in (None, FORGOTTEN) and self.may_go(key, after.version):
                    yield key, head.version

    def may_go(self, key: str, superseded: int) -> bool:
        rule = self.store.retention._rules.rule_of(key)
        if rule is None or not rule.history_ms or min(self.pins, default=superseded) < superseded:
            return False
        return self.times[superseded] < self.store.time - rule.history_ms * MS

    def check(self, gone_before: set[tuple[str, int]]) -> set[tuple[str, int]]:
        """Read everything at each version: it is as it was committed, or it is gone and may be gone."""
        gone = set()
        for version, state in enumerate(self.states):
            for key in self.KEYS:
                try:
                    assert values_at(self.store, version, key) == [state.get(key)]
                    assert (key, version) not in gone_before, "it came back"
                except SnapshotGone:
                    gone.add((key, version))
                    superseded = min(head.version for head in self.chain(key) if head.version > version)
                    assert (key, version) in gone_before or self.may_go(key, superseded)
        for pinned in self.pins:
            assert not any((key, pinned) in gone for key in self.KEYS)
        return gone


@pytest.mark.parametrize("seed", range(40))
def test_random_writes_pins_and_pauses(seed: int) -> None:
    script, gone = Script(seed), set[tuple[str, int]]()
    for _ in range(60):
        script.step()
        gone = script.check(gone)
    while script.pins:
        script.store.unpin(script.pins.pop())
    later(script.store, 2 * AGE_US + 1)
    forget_all(script.store)
    assert script.check(gone)
    assert not list(script.forgettable())
    for key in script.KEYS:
        assert script.store.get(key) == script.states[-1].get(key)
