"""The whole database against a plain model, in random histories of everything that it can do.

With an index, pages, bounds and windows so small that each way through it is taken. KVD_TEST_SCALE multiplies the
number of histories; a rule, or an outcome, that came too rarely fails the test.
"""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from kvd.engine import expiry as expiry_module
from kvd.store import isolation
from kvd.store import lifetimes as lifetimes_module
from kvd.store import schedule as schedule_module
from kvd.store import store as store_module
from kvd.store import window as window_module
from kvd.store.authors import NO_AUTHOR
from kvd.store.history import commits_from, newest_commits, versions
from kvd.store.window import WindowLimits
from tests.engine.machine import EXPIRED_TOGETHER, SHORT, Machine, counted_rule, keys, reached, wide, window_limits
from tests.engine.machine_transactions import Transacting
from tests.engine.machine_writes import Writing
from tests.engine.model import Gone
from tests.harness.scale import SCALE

HISTORIES = max(20, int(400 * SCALE))
STEPS = 50
# How often each rule fires, and each outcome comes, at the least for each history; the rarest do five times as often.
PER_HISTORY = 0.02


class TimeAndHistory(Machine):
    """The clocks, the window, and reads of the past."""

    # ------------------------------------------------------------------ time

    @rule(us=st.integers(1, 120))
    @counted_rule
    def time_passes(self, us: int) -> None:
        self.wall += us
        self.even += us

    @rule(us=st.integers(-3_000, 3_000))
    @counted_rule
    def the_wall_clock_is_set(self, us: int) -> None:
        self.wall += us

    @precondition(lambda self: self.timer is not None)
    @rule()
    @counted_rule
    def the_timer_fires(self) -> None:
        """Expire by the timer alone, without any request."""
        assert self.timer is not None
        self.even = max(self.even, self.timer)
        self.timer = None
        self.expire_all_due()
        due_us = self.database.next_look_us()
        if self.timer is None and due_us is not None:
            self.timer = self.even + due_us

    @rule(limits=window_limits)
    @counted_rule
    def change_limits(self, limits: WindowLimits) -> None:
        self.store.window.limits = limits
        if limits.max_pinned_bytes < wide:
            self.promised.clear()

    @rule(chosen=st.lists(keys.filter(lambda key: key.startswith(SHORT)), min_size=1, unique=True))
    @counted_rule
    def superseded_values_grow_old(self, chosen: list[str]) -> None:
        for value in (b"old", b"new"):
            self.prepare_write()
            entries = dict.fromkeys(chosen, value)
            assert self.database.set(entries, NO_AUTHOR) == self.model.write(
                dict(entries), NO_AUTHOR, None, False, None
            )
        self.time_passes(1_100)
        self.drop_old_history()

    @rule(age_ms=st.sampled_from([1, 2, 0]))
    @counted_rule
    def change_rules(self, age_ms: int) -> None:
        self.set_short_history(age_ms)

    @rule()
    @counted_rule
    def drop_old_history(self) -> None:
        self.model.advance(self.wall)
        while self.database.upkeep.drop_old(3):
            pass
        self.note_forgotten()
        window, limits = self.store.window, self.store.window.limits
        if not self.pins:
            assert window.bytes <= limits.max_bytes
            assert window.commits <= limits.max_commits
        assert window.bytes <= max(limits.max_bytes, limits.max_pinned_bytes)
        kept = self.superseded_values() - self.model.forgotten_values
        assert not [(key, version) for key, version in kept if self.is_old(key, version)]

    # ------------------------------------------------------------------ reading

    @rule(chosen=st.lists(keys, max_size=4), data=st.data())
    @counted_rule
    def fetch(self, chosen: list[str], data: st.DataObject) -> None:
        self.expire_all_due()
        self.check_fetch(chosen, data.draw(st.none() | st.integers(0, self.model.version)))
        for key in chosen:
            left = None if key not in self.model.deadlines else self.model.deadlines[key] - self.even
            assert self.database.time_to_live_us(key) == left
            assert left is None or left > 0, "a key that is due still exists"

    @rule(key=keys, limit=st.integers(1, 4), max_bytes=st.sampled_from([1, 200, wide]))
    @counted_rule
    def history(self, key: str, limit: int, max_bytes: int) -> None:
        self.expire_all_due()
        found, before = [], None
        while page := versions(self.store, key, limit, before, max_bytes):
            assert len(page) <= limit
            found += [(each.version, each.value, each.time, each.author) for each in page]
            before = page[-1].version
        changed = self.model.changed(key)
        newer = [version for version in changed if version > self.model.oldest]
        wanted = newer + changed[len(newer) : len(newer) + 1]  # and the one that is seen from the oldest version
        forgotten = [version for version in wanted if (key, version) in self.model.forgotten_values]
        wanted = [version for version in wanted if version > max(forgotten, default=-1)]
        expected = [
            (version, self.model.commits[version].writes[key], *self.model.origin(version)) for version in wanted
        ]
        if expected and len(found) < len(expected) and expected[-1][0] <= self.model.oldest and expected[-1][1] is None:
            expected.pop()  # an old deletion, which may be forgotten
        assert found == expected

    @rule(data=st.data(), limit=st.integers(1, 6))
    @counted_rule
    def log(self, data: st.DataObject, limit: int) -> None:
        self.expire_all_due()
        model = self.model
        from_version = data.draw(st.none() | st.integers(0, model.version + 1))

        def actual() -> list[tuple[object, ...]]:
            page = (
                newest_commits(self.store, limit, wide)
                if from_version is None
                else commits_from(self.store, from_version, limit, wide)
            )
            return [(each.version, each.time, each.author, sorted(each.keys)) for each in page]

        def wanted() -> list[tuple[object, ...]]:
            if from_version is None:
                first = max(model.oldest, model.version - limit) + 1
            elif max(from_version - 1, 0) < model.oldest:
                raise Gone
            else:
                first = max(from_version, 1)
            known = list(enumerate(model.commits))[first:][:limit]
            return [(version, each.time, each.author, sorted(each.writes)) for version, each in known]

        self.same_answer(actual, wanted)

    @rule(data=st.data(), off_us=st.integers(-3, 3))
    @counted_rule
    def version_at(self, data: st.DataObject, off_us: int) -> None:
        self.expire_all_due()
        time = data.draw(st.sampled_from([each.time for each in self.model.commits])) + off_us
        if time >= 0:
            self.same_answer(lambda: self.store.window.version_at(time), lambda: self.model.version_at(time))


class Everything(Writing, Transacting, TimeAndHistory):
    """All rules together."""


RULES = [
    "set", "set_plainly", "set_each", "replace_each", "delete", "increment", "touch", "delete_owned", "send_with_id",
    "send_many_with_ids", "commit_blindly", "commit_arbitrary_reads", "begin", "read_in_a_txn", "scan_in_a_txn",
    "end_a_txn", "roll_back", "time_passes", "the_wall_clock_is_set", "the_timer_fires", "change_limits",
    "drop_old_history", "fetch", "history", "log", "version_at", "change_rules", "superseded_values_grow_old",
]  # fmt: skip
OUTCOMES = [
    "answered again", "buried", "committed with reads", "conflict", "done once", "expired", "forgotten",
    "many done once", "not a number", "outcome unknown", "range at a snapshot gone", "snapshot gone",
]  # fmt: skip


def test_the_database_agrees_with_a_dict_for_each_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvd.store.keyspace.FIRST_KEYS", 4)
    monkeypatch.setattr("kvd.store.index.BLOCK_KEYS", 2)
    monkeypatch.setattr(store_module, "SCAN_VISITS", 5)
    monkeypatch.setattr("kvd.store.contents.PENDING_KEYS", 3)
    monkeypatch.setattr(store_module, "DROP_BUDGET_KEYS", 2)
    monkeypatch.setattr(window_module, "_COMPACT_PLACES", 4)
    monkeypatch.setattr(lifetimes_module, "FIRST_KEYS", 2)
    monkeypatch.setattr(schedule_module, "RUN_ENTRIES", 2)
    monkeypatch.setattr(schedule_module, "_FEW_RUNS", 1)
    monkeypatch.setattr(isolation, "COMMITTED_KEYS", 4)
    monkeypatch.setattr(expiry_module, "EXPIRED_KEYS", EXPIRED_TOGETHER)
    reached.clear()
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Everything,
        settings=settings(
            max_examples=HISTORIES, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    print(f"{HISTORIES} histories:", dict(sorted(reached.items())))
    assert sorted(reached) == sorted(RULES + OUTCOMES)
    floor = PER_HISTORY * HISTORIES
    assert {name: times for name, times in reached.items() if times < floor} == {}
