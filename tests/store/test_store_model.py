"""The store against a plain model: a list of dicts, one for each version.

Random histories of every operation, with tiny shards, blocks and pages, so that each way through the store is taken.
KVD_TEST_SCALE multiplies the number of histories; a rule that fired too rarely fails the test.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kvd.store import store as store_module
from kvd.store.errors import KeysNotFound, SnapshotGone, VersionAhead
from kvd.store.store import Store
from kvd.store.window import GROUP_BYTES, PLACE_BYTES, SUPERSEDED_BYTES, Group, WindowLimits
from tests.harness.scale import SCALE

HISTORIES = max(20, int(200 * SCALE))
STEPS = 50
# The least number of times that each rule must fire per history; the rarest fires five times as often on average.
FIRED_PER_HISTORY = 0.05

KEYS = ["a", "b", "ba", "bb", "c", "é", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0001f382", "z"]
keys = st.sampled_from(KEYS)
values = st.binary(max_size=6)
entries = st.dictionaries(keys, values, max_size=5)
wide = 10**6
bounds = st.integers(0, 1500) | st.just(wide)
window_limits = st.builds(
    WindowLimits, max_age_us=bounds, max_bytes=bounds, max_commits=st.integers(0, 12) | st.just(wide),
    max_pinned_bytes=bounds,
)  # fmt: skip

# What one version looked like: key → (value, version that wrote it).
Snapshot = dict[str, tuple[bytes, int]]
Method = TypeVar("Method", bound=Callable[..., Any])
fired: Counter[str] = Counter()


def counted(method: Method) -> Method:
    """Count how often a rule fires. Put this below ``@rule``, which reads the names of the arguments."""
    from functools import wraps

    @wraps(method)
    def counting(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        fired[method.__name__] += 1
        return method(*arguments, **named)

    return counting  # type: ignore[return-value]


class Model(RuleBasedStateMachine):
    """The store and ``snapshots``, a plain model; after each step they must agree."""

    @initialize(limits=window_limits)
    def begin(self, limits: WindowLimits) -> None:
        self.store = Store(limits)
        self.snapshots: list[Snapshot] = [{}]
        self.now = 1_000
        self.latest = 0  # the store's time: it never goes back
        self.kept_bytes = 0  # of history, after the last drop
        self.pins: Counter[int] = Counter()
        self.gets = self.sets = self.deletes = self.largest = 0

    # ------------------------------------------------------------------ the model's side

    @property
    def live(self) -> Snapshot:
        return self.snapshots[-1]

    def commit(self, changes: dict[str, bytes | None]) -> int:
        """Do to the model what a commit does; return its version."""
        if changes:
            version = len(self.snapshots)
            after = {key: item for key, item in self.live.items() if key not in changes}
            after |= {key: (value, version) for key, value in changes.items() if value is not None}
            self.snapshots.append(after)
            self.largest = max([self.largest, *(len(value) for value in changes.values() if value is not None)])
        return len(self.snapshots) - 1

    def size(self, group: Group) -> int:
        """Return the size of a group of commits, by what its commits changed."""
        replaced = [
            len(self.snapshots[head.version - 1][head.key][0])
            for head in group.heads
            if head.key in self.snapshots[head.version - 1]
        ]
        return GROUP_BYTES + PLACE_BYTES * len(group.heads) + SUPERSEDED_BYTES * len(replaced) + sum(replaced)

    def droppable(self, groups: "deque[Group]") -> bool:
        """Whether the oldest of ``groups`` may be dropped, and must be."""
        if not groups:
            return False
        limits, size = self.store.window.limits, sum(map(self.size, groups))
        commits = len({head.version for group in groups for head in group.heads})
        over = size > limits.max_bytes or commits > limits.max_commits
        over = over or groups[0].time < self.latest - limits.max_age_us
        pinned = any(pin < groups[0].heads[-1].version for pin in self.pins)
        return over and (not pinned or size > limits.max_pinned_bytes)

    def dropping(self, call: Callable[[], object]) -> int:
        """Make a call that may drop history; check that it dropped only droppable groups, and return their number."""
        left = deque(self.store.window.groups)
        call()
        after = list(self.store.window.groups)
        dropped = 0
        while len(left) > len(after):
            assert self.droppable(left), "dropped although nothing said so"
            left.popleft()
            dropped += 1
        assert [id(group) for group in left] == [id(group) for group in after], "dropped from the middle"
        self.kept_bytes = self.store.window.bytes
        return dropped

    def write(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Make a batch of commits as the daemon does: set the time first."""
        self.latest = max(self.latest, self.now)
        self.dropping(lambda: self.store.advance(self.now))
        return call()

    # ------------------------------------------------------------------ writing

    @rule(key=keys, value=values)
    @counted
    def set_one(self, key: str, value: bytes) -> None:
        self.sets += 1
        assert self.write(lambda: self.store.set({key: value}, "me")) == self.commit({key: value})

    @rule(entries=entries)
    @counted
    def set_many(self, entries: dict[str, bytes]) -> None:
        self.sets += len(entries)
        assert self.write(lambda: self.store.set(entries)) == self.commit(dict(entries))

    @rule(batch=st.lists(st.dictionaries(keys, values, max_size=2), max_size=5))
    @counted
    def set_each(self, batch: list[dict[str, bytes]]) -> None:
        self.sets += sum(map(len, batch))
        assert self.write(lambda: self.store.set_each(batch)) == [self.commit(dict(entries)) for entries in batch]

    @precondition(lambda self: len(self.live) > 1)
    @rule(data=st.data(), value=values)
    @counted
    def replace_each(self, data: st.DataObject, value: bytes) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.live)), min_size=1, max_size=5, unique=True))
        self.set_each([{key: value * 2} for key in chosen])

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    @counted
    def delete_some(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.live)), min_size=1, max_size=5))  # with duplicates
        self.deletes += len(set(chosen))
        version = self.commit(dict.fromkeys(chosen))
        assert self.write(lambda: self.store.delete(chosen)) == (version, len(set(chosen)))

    @rule(chosen=st.lists(keys, min_size=1, max_size=4))
    @counted
    def delete_whatever_is_there(self, chosen: list[str]) -> None:
        there = set(chosen) & self.live.keys()
        self.deletes += len(there)
        version = self.commit(dict.fromkeys(there))
        assert self.write(lambda: self.store.delete(chosen, missing_ok=True)) == (version, len(there))

    @precondition(lambda self: len(self.live) < len(KEYS))
    @rule(data=st.data(), others=st.lists(keys, max_size=3))
    @counted
    def delete_with_a_missing_key(self, data: st.DataObject, others: list[str]) -> None:
        absent = data.draw(st.sampled_from([key for key in KEYS if key not in self.live]))
        with pytest.raises(KeysNotFound) as refused:
            self.write(lambda: self.store.delete([*others, absent]))
        assert refused.value.keys == [key for key in dict.fromkeys([*others, absent]) if key not in self.live]

    # ------------------------------------------------------------------ time and history

    @rule(passed=st.integers(-2_000, 2_000))
    @counted
    def time_passes(self, passed: int) -> None:
        self.now += passed

    @rule()
    @counted
    def pin(self) -> None:
        version = self.store.pin()
        assert version == len(self.snapshots) - 1
        self.pins[version] += 1

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    @counted
    def unpin(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.pins)))
        self.store.unpin(version)
        self.pins[version] -= 1
        self.pins += Counter()  # forget those at zero

    @rule(limits=window_limits)
    @counted
    def change_limits(self, limits: WindowLimits) -> None:
        self.store.window.limits = limits

    @rule(budget=st.integers(0, 4))
    @counted
    def drop_a_little(self, budget: int) -> None:
        window = self.store.window
        before, bytes_left = deque(window.groups), window.bytes
        max_bytes = max(window.limits.max_bytes, self.kept_bytes)
        dropped = self.dropping(lambda: self.store.drop_history(budget))
        for group in list(before)[:dropped]:
            assert budget > 0 or bytes_left > max_bytes, "went on past its budget"
            budget -= len(group.heads)
            bytes_left -= group.size
        ended_early = budget > 0 or window.bytes > max_bytes
        assert not (ended_early and self.droppable(deque(window.groups))), "ended before its budget"

    @rule()
    @counted
    def drop_until_the_limits_hold(self) -> None:
        while self.dropping(lambda: self.store.drop_history(3)):
            pass
        window, limits = self.store.window, self.store.window.limits
        assert not self.droppable(window.groups)
        if not self.pins:
            assert window.bytes <= limits.max_bytes
            assert window.commits <= limits.max_commits
            assert all(group.time >= self.latest - limits.max_age_us for group in window.groups)

    @precondition(lambda self: len(self.store.window.groups) >= 5)  # only once there is much to forget
    @rule()
    @counted
    def empty_the_window(self) -> None:
        """Without history, only the live keys are left."""
        for version, times in self.pins.items():
            for _ in range(times):
                self.store.unpin(version)
        self.pins.clear()
        limits, self.store.window.limits = self.store.window.limits, WindowLimits(max_commits=0)
        while self.dropping(lambda: self.store.drop_history(5)):
            pass
        self.store.window.limits = limits
        assert (self.store.window.bytes, self.store.window.commits, len(self.store.window.groups)) == (0, 0, 0)
        assert sorted(self.store._keyspace) == sorted(self.live)
        assert list(self.store.keys_between("", None)) == sorted(self.live)
        assert all(self.store.find(key).previous is None for key in self.live)  # type: ignore[union-attr]

    # ------------------------------------------------------------------ reading

    @rule(key=keys)
    @counted
    def get(self, key: str) -> None:
        self.gets += 1
        assert self.store.get(key) == self.live.get(key, (None,))[0]

    @rule(chosen=st.lists(keys, max_size=6), data=st.data())
    @counted
    def get_many(self, chosen: list[str], data: st.DataObject) -> None:
        at = data.draw(st.none() | st.integers(self.store.window.oldest_readable, self.store.version))
        snapshot = self.live if at is None else self.snapshots[at]
        assert self.store.get_many(chosen, at) == [snapshot.get(key, (None,))[0] for key in chosen]
        self.gets += len(chosen)

    @rule(by=st.integers(1, 2**40))
    @counted
    def read_ahead(self, by: int) -> None:
        for read in (self.store.get_many, self.store.scan):
            with pytest.raises(VersionAhead):
                read(*(["a"],) if read == self.store.get_many else ("", None, 1), at=self.store.version + by)  # type: ignore[operator]

    @precondition(lambda self: self.store.window.oldest_readable > 0)
    @rule(data=st.data())
    @counted
    def read_what_has_gone(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(-1, self.store.window.oldest_readable - 1))
        with pytest.raises(SnapshotGone):
            self.store.get_many(["a"], at)
        with pytest.raises(SnapshotGone):
            self.store.scan("", None, 1, at=at)

    @rule(
        start=st.just("") | keys, end=st.none() | keys, limit=st.integers(1, 5), max_bytes=st.integers(1, 20),
        keys_only=st.booleans(), data=st.data(),
    )  # fmt: skip
    @counted
    def scan(
        self, start: str, end: str | None, limit: int, max_bytes: int, keys_only: bool, data: st.DataObject
    ) -> None:
        at = data.draw(st.none() | st.integers(self.store.window.oldest_readable, self.store.version))
        snapshot = self.live if at is None else self.snapshots[at]
        found: list[tuple[str, bytes | None, int]] = []
        following: str | None = start
        while following is not None:
            page = self.store.scan(following, end, limit, at=at, keys_only=keys_only, max_bytes=max_bytes)
            assert len(page.items) <= limit
            assert page.next is None or page.next > following or not page.items
            found += [(item.key, item.value, item.version) for item in page.items]
            following = page.next
        wanted = sorted(key for key in snapshot if key >= start and (end is None or key < end))
        assert wanted == sorted(wanted, key=str.encode)
        assert found == [(key, None if keys_only else snapshot[key][0], snapshot[key][1]) for key in wanted]

    # ------------------------------------------------------------------ after each step

    @invariant()
    def versions_only_rise(self) -> None:
        assert self.store.version == len(self.snapshots) - 1
        assert self.store.time == self.latest

    @invariant()
    def the_counters_are_exact(self) -> None:
        counters = self.store.counters
        assert counters.keys == len(self.live)
        assert counters.value_bytes == sum(len(value) for value, _ in self.live.values())
        assert counters.set_operations == self.sets
        assert counters.get_operations == self.gets
        assert counters.delete_operations == self.deletes
        assert self.store.largest_value_bytes == self.largest

    @invariant()
    def every_version_from_the_oldest_readable_on_reads_as_it_was(self) -> None:
        for version in range(self.store.window.oldest_readable, len(self.snapshots)):
            snapshot = self.snapshots[version]
            assert self.store.get_many(KEYS, version) == [snapshot.get(key, (None,))[0] for key in KEYS]
            self.gets += len(KEYS)

    @invariant()
    def the_window_is_the_sum_of_its_commits(self) -> None:
        window = self.store.window
        versions = [head.version for group in window.groups for head in group.heads]
        assert versions == sorted(versions)
        assert sorted(set(versions)) == list(range(window.oldest_readable + 1, self.store.version + 1))
        assert window.commits == len(set(versions)) == sum(group.commits for group in window.groups)
        assert [group.size for group in window.groups] == list(map(self.size, window.groups))
        assert window.bytes == sum(group.size for group in window.groups)

    @invariant()
    def only_keys_that_can_be_read_are_held(self) -> None:
        """The store holds live keys, and those whose tombstone is in the window."""
        deleted = {head.key for group in self.store.window.groups for head in group.heads if head.value is None}
        assert set(self.store._keyspace) == self.live.keys() | deleted
        assert list(self.store.living_between("", None)) == sorted(self.live)
        assert list(self.store.keys_between("", None)) == sorted(self.store._keyspace)


RULES = [
    "set_one", "set_many", "set_each", "replace_each", "delete_some", "delete_whatever_is_there",
    "delete_with_a_missing_key", "time_passes", "pin", "unpin", "change_limits", "drop_a_little",
    "drop_until_the_limits_hold", "empty_the_window", "get", "get_many", "read_ahead", "read_what_has_gone", "scan",
]  # fmt: skip


@pytest.mark.parametrize("first_keys", [4, 131_072], ids=["in shards too", "in the first dict only"])
def test_the_store_is_a_dict_for_each_version(first_keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvd.store.keyspace.FIRST_KEYS", first_keys)
    monkeypatch.setattr("kvd.store.index.BLOCK_KEYS", 2)
    monkeypatch.setattr(store_module, "SCAN_VISITS", 7)
    monkeypatch.setattr("kvd.store.contents.PENDING_KEYS", 3)
    monkeypatch.setattr(store_module, "DROP_BUDGET_KEYS", 2)
    fired.clear()
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Model,
        settings=settings(
            max_examples=HISTORIES, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    print(f"{HISTORIES} histories:", dict(sorted(fired.items())))
    assert sorted(fired) == sorted(RULES)
    floor = FIRED_PER_HISTORY * HISTORIES
    assert {name: times for name, times in fired.items() if times < floor} == {}
