"""How long keys live: which keys are due when, which owner has which keys, and how many entries that takes."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvd.store import lifetimes as lifetimes_module
from kvd.store import schedule as schedule_module
from kvd.store.lifetimes import KEEP_TTL, NO_EXPIRY, Expiry, Lifetimes
from kvd.store.schedule import Entry, Schedule
from kvd.store.sharded import SHARDS
from tests.store.deadlines import all_deadlines, scheduled

MANY = 1_000


def until(deadline: int | None, **how: object) -> Expiry:
    return Expiry(deadline=deadline, **how)  # type: ignore[arg-type]


def with_deadlines(**deadlines: int) -> Lifetimes:
    lifetimes = Lifetimes()
    for key, deadline in deadlines.items():
        lifetimes.record_write([key], until(deadline))
    return lifetimes


def taken(lifetimes: Lifetimes, now: int) -> list[str]:
    """Take and return all keys that are due at ``now``."""
    return lifetimes.take_due(now, MANY)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the limits so small that a few keys fill shards, and runs of four entries that are merged early."""
    monkeypatch.setattr(lifetimes_module, "FIRST_KEYS", 2)
    monkeypatch.setattr(schedule_module, "RUN_ENTRIES", 4)
    monkeypatch.setattr(schedule_module, "_FEW_RUNS", 1)


# ---------------------------------------------------------------------- deadlines


def test_without_deadlines_no_key_is_due() -> None:
    lifetimes = Lifetimes()
    lifetimes.record_write(["a"], NO_EXPIRY)
    assert (lifetimes.next_wake_at, lifetimes.take_due(10**18, MANY), bool(lifetimes)) == (None, [], False)


def test_a_key_is_due_from_its_deadline_on_and_not_before() -> None:
    lifetimes = with_deadlines(a=10)
    assert (lifetimes.next_wake_at, lifetimes.take_due(9, MANY)) == (10, [])
    assert taken(lifetimes, 10) == ["a"]
    assert (lifetimes.next_wake_at, taken(lifetimes, 11), all_deadlines(lifetimes)) == (None, [], {})


def test_keys_are_due_in_the_order_of_their_deadlines() -> None:
    lifetimes = with_deadlines(a=30, b=10, c=20)
    assert lifetimes.next_wake_at == 10
    assert (taken(lifetimes, 25), taken(lifetimes, 35)) == (["b", "c"], ["a"])


def test_no_more_keys_are_taken_than_allowed_and_the_others_stay_due() -> None:
    lifetimes = with_deadlines(a=1, b=2, c=3)
    due = lifetimes.take_due(5, 2)
    assert (due, lifetimes.next_wake_at, taken(lifetimes, 5)) == (["a", "b"], 3, ["c"])


@pytest.mark.parametrize("later", [True, False], ids=["later", "earlier"])
def test_a_new_deadline_replaces_the_old_one(later: bool) -> None:
    lifetimes = with_deadlines(a=50)
    new = 80 if later else 20
    lifetimes.set_deadline(["a"], new)
    assert all_deadlines(lifetimes) == {"a": new}
    assert taken(lifetimes, new - 1) == []
    assert taken(lifetimes, new) == ["a"]
    assert taken(lifetimes, 100) == []


def test_a_key_without_its_deadline_is_never_due() -> None:
    lifetimes = with_deadlines(touched=10, written=10, ended=10)
    lifetimes.set_deadline(["touched"], None)
    lifetimes.record_write(["written"], until(None))
    lifetimes.clear(["ended"])
    assert (all_deadlines(lifetimes), taken(lifetimes, 100), lifetimes.next_wake_at) == ({}, [], None)


def test_a_cleared_key_with_another_deadline_is_due_at_that_one() -> None:
    lifetimes = with_deadlines(a=10, b=10)
    lifetimes.clear(["a", "b"])
    lifetimes.record_write(["a"], until(30))
    lifetimes.record_write(["b"], until(5))
    assert [taken(lifetimes, now) for now in (4, 5, 10, 29, 30)] == [[], ["b"], [], [], ["a"]]


# ---------------------------------------------------------------------- keep


def test_a_kept_key_keeps_its_deadline_and_a_new_key_takes_the_given_one() -> None:
    lifetimes = with_deadlines(old=10)
    lifetimes.record_write(["old", "endless", "new"], until(99, keep=True), existing={"old", "endless"})
    assert all_deadlines(lifetimes) == {"old": 10, "new": 99}


def test_a_kept_key_keeps_its_owner_and_a_new_key_has_none() -> None:
    lifetimes = Lifetimes()
    lifetimes.record_write(["old"], until(None, owner="me"))
    lifetimes.record_write(["old", "new"], KEEP_TTL, existing={"old"})
    assert (lifetimes.owned("me"), lifetimes.is_owned("new")) == (["old"], False)


def test_a_write_that_keeps_nothing_removes_deadline_and_owner() -> None:
    lifetimes = Lifetimes()
    for expiry in (NO_EXPIRY, until(None), KEEP_TTL):
        lifetimes.record_write(["a"], until(10, owner="me"))
        assert (all_deadlines(lifetimes), lifetimes.count_owned("me")) == ({"a": 10}, 1)
        lifetimes.record_write(["a"], expiry)  # KEEP_TTL, but the key is not among the existing ones
        assert (all_deadlines(lifetimes), lifetimes.count_owned("me"), bool(lifetimes)) == ({}, 0, False)


def test_an_owner_that_is_given_with_keep_replaces_the_old_one() -> None:
    lifetimes = Lifetimes()
    lifetimes.record_write(["a"], until(10, owner="me"))
    lifetimes.record_write(["a"], until(99, keep=True, owner="you"), existing={"a"})
    assert (all_deadlines(lifetimes), lifetimes.owned("me"), lifetimes.owned("you")) == ({"a": 10}, [], ["a"])


# ---------------------------------------------------------------------- owners


def test_each_owner_has_its_keys() -> None:
    lifetimes = Lifetimes()
    lifetimes.record_write(["a", "b"], until(None, owner="me"))
    lifetimes.record_write(["c"], until(None, owner="you"))
    assert (sorted(lifetimes.owned("me")), lifetimes.owned("you"), lifetimes.owned("other")) == (["a", "b"], ["c"], [])
    assert [lifetimes.count_owned(owner) for owner in ("me", "you", "other")] == [2, 1, 0]
    assert [lifetimes.is_owned(key) for key in "acx"] == [True, True, False]


def test_a_key_has_one_owner_that_of_its_last_write() -> None:
    lifetimes = Lifetimes()
    lifetimes.record_write(["a"], until(None, owner="me"))
    lifetimes.record_write(["a"], until(None, owner="you"))
    assert (lifetimes.owned("me"), lifetimes.owned("you")) == ([], ["a"])


def test_a_key_with_a_new_deadline_keeps_its_owner() -> None:
    lifetimes = Lifetimes()
    lifetimes.record_write(["a"], until(None, owner="me"))
    lifetimes.set_deadline(["a"], 10)
    lifetimes.set_deadline(["a"], None)
    assert lifetimes.owned("me") == ["a"]


def test_a_cleared_key_has_no_owner_and_an_owner_without_keys_is_forgotten() -> None:
    lifetimes = Lifetimes()
    lifetimes.record_write(["a", "b"], until(None, owner="me"))
    lifetimes.clear(["a"])
    assert (lifetimes.owned("me"), bool(lifetimes.owners)) == (["b"], True)
    lifetimes.clear(["b", "never"])
    assert (lifetimes.owned("me"), bool(lifetimes.owners), lifetimes._of_owner) == ([], False, {})


# ---------------------------------------------------------------------- lookups


@pytest.mark.parametrize("first_keys", [1, 2, 3, 4, 100])
def test_deadlines_are_found_in_whichever_dict_they_are(first_keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetimes_module, "FIRST_KEYS", first_keys)
    lifetimes = Lifetimes()
    assert (lifetimes.deadlines_of(["a", "b"]), lifetimes.deadline_of("a"), lifetimes.count) == ([None, None], None, 0)
    lifetimes = with_deadlines(a=10, b=20, c=30)
    assert lifetimes.deadlines_of(["c", "x", "a", "c"]) == [30, None, 10, 30]
    assert [lifetimes.deadline_of(key) for key in "abcx"] == [10, 20, 30, None]
    assert (lifetimes.count, len(lifetimes), bool(lifetimes)) == (3, 3, True)
    lifetimes.clear(["a", "c", "x", "c", "a"])
    assert (all_deadlines(lifetimes), lifetimes.count) == ({"b": 20}, 1)
    lifetimes.set_deadline(["c", "b", "a"], 40)
    assert all_deadlines(lifetimes) == {"a": 40, "b": 40, "c": 40}
    assert (sorted(taken(lifetimes, 40)), lifetimes.count, bool(lifetimes)) == (["a", "b", "c"], 0, False)


@pytest.mark.parametrize("first_keys", [1, 100])
def test_of_some_keys_the_due_ones_are_taken_and_no_others(first_keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetimes_module, "FIRST_KEYS", first_keys)
    lifetimes = with_deadlines(a=10, b=20, c=10, d=11)
    lifetimes.record_write(["c"], until(10, owner="me"))
    assert lifetimes.take_due_of(["d", "c", "b", "x", "c"], 10) == ["c"]
    assert (all_deadlines(lifetimes), lifetimes.owned("me")) == ({"a": 10, "b": 20, "d": 11}, [])
    assert taken(lifetimes, 20) == ["a", "d", "b"]


def test_a_key_taken_as_due_has_no_owner() -> None:
    lifetimes = Lifetimes()
    lifetimes.record_write(["a", "b"], until(10, owner="me"))
    lifetimes.set_deadline(["b"], None)
    assert (taken(lifetimes, 10), lifetimes.owned("me"), lifetimes.count_owned("me")) == (["a"], ["b"], 1)


# ---------------------------------------------------------------------- the number of entries


def test_a_key_prolonged_a_thousand_times_takes_one_entry() -> None:
    lifetimes = Lifetimes()
    for now in range(1_000):
        lifetimes.record_write(["session"], until(now + 100))
    assert len(scheduled(lifetimes._schedule)) == 1
    assert [taken(lifetimes, now) for now in (500, 1_098, 1_099)] == [[], [], ["session"]]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("shrinking", ["deadlines that come earlier", "keys that end"])
def test_stale_entries_are_removed(shrinking: str) -> None:
    lifetimes = Lifetimes()
    max_entries = 0
    for number in range(1_000):
        if shrinking == "keys that end":
            lifetimes.record_write([str(number)], until(5_000 + number))
            lifetimes.clear([str(number - 1)])
        else:
            lifetimes.record_write(["a"], until(5_000 - number))
        max_entries = max(max_entries, len(scheduled(lifetimes._schedule)))
    assert max_entries <= 4 + 2 * 2 + 4, "never more than two keys have a deadline"
    assert all_deadlines(lifetimes) in ({"999": 5_999}, {"a": 4_001})
    ((key, deadline),) = all_deadlines(lifetimes).items()
    assert (taken(lifetimes, deadline - 1), taken(lifetimes, deadline)) == ([], [key])


def test_new_keys_fill_the_first_dict_and_then_the_shards_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetimes_module, "FIRST_KEYS", 1_000)
    lifetimes = Lifetimes()
    lifetimes.record_write([f"key {number}" for number in range(1_000 + 20 * SHARDS)], until(10))
    assert len(lifetimes._entries.first) == 1_000
    assert max(map(len, lifetimes._entries.shards)) < 20 * 4, "no dict has many of them"
    assert len(all_deadlines(lifetimes)) == 1_000 + 20 * SHARDS


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    "change",
    [
        lambda lifetimes, key: lifetimes.set_deadline([key], 1_000),
        lambda lifetimes, key: lifetimes.set_deadline([key], 1_000_000),
        lambda lifetimes, key: lifetimes.clear([key]),
        lambda lifetimes, key: lifetimes.record_write([key], NO_EXPIRY),
        lambda lifetimes, _: lifetimes.take_due(15_000, 3),
    ],
    ids=["earlier", "later", "ended", "endless", "take"],
)
def test_no_change_of_one_key_costs_work_for_many(change: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 2,000 keys is changed: each change merges only a few entries."""
    lifetimes, rng = Lifetimes(), random.Random(1)  # noqa: S311
    names = [str(number) for number in range(2_000)]
    for number, name in enumerate(names):
        lifetimes.record_write([name], until(10_000 + number * 7 % 2_000))
    added: list[Entry] = []
    add = Schedule.add
    monkeypatch.setattr(Schedule, "add", lambda schedule, entry: (added.append(entry), add(schedule, entry)))
    rng.shuffle(names)
    for name in names:
        added.clear()
        change(lifetimes, name)  # type: ignore[operator]
        assert len(added) <= 3 + 2 * 4
    most = 4 + 2 * lifetimes.count + 2 * 4
    assert len(scheduled(lifetimes._schedule)) <= most
    assert len(lifetimes._schedule._runs) <= 1 + 2 * most // 4 + 1


def test_keys_that_were_prolonged_together_are_visited_a_few_at_a_time() -> None:
    lifetimes, names = Lifetimes(), [str(number) for number in range(100)]
    lifetimes.record_write(names, until(10))
    lifetimes.set_deadline(names, 50)
    lifetimes.set_deadline(["7"], 10)
    found: list[str] = []
    for _ in range(9):
        found += lifetimes.take_due(20, 10)
        assert lifetimes.next_wake_at == 10, "there are more"
        assert sum(entry.wake_at == 50 for entry in scheduled(lifetimes._schedule)) <= 90
    found += lifetimes.take_due(20, 10)
    assert (lifetimes.next_wake_at, lifetimes.take_due(49, 100)) == (50, [])
    assert sorted(found + lifetimes.take_due(50, 100)) == sorted(names)


work = st.lists(
    st.tuples(
        st.sampled_from(["write", "keep", "touch", "end", "take", "take"]),
        st.sampled_from("abcdef"), st.none() | st.integers(1, 40), st.none() | st.sampled_from(["me", "you"]),
    ),
    min_size=20, max_size=80,
)  # fmt: skip


@pytest.mark.parametrize(("first_keys", "run_entries"), [(1, 2), (3, 4), (100, 4_096)])
def test_lifetimes_are_two_dicts(first_keys: int, run_entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the plainest model: a deadline and an owner for each key, all of which it visits."""
    monkeypatch.setattr(lifetimes_module, "FIRST_KEYS", first_keys)
    monkeypatch.setattr(schedule_module, "RUN_ENTRIES", run_entries)
    monkeypatch.setattr(schedule_module, "_FEW_RUNS", 1)
    done: dict[str, int] = {}

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(work, st.integers(0, 2**32))
    def run(work: list[tuple[str, str, int | None, str | None]], seed: int) -> None:
        lifetimes, rng, now = Lifetimes(), random.Random(seed), 0  # noqa: S311
        alive: set[str] = set()
        deadlines: dict[str, int | None] = {}
        owners: dict[str, str | None] = {}
        for what, key, in_, owner in work:
            done[what] = done.get(what, 0) + 1
            deadline = None if in_ is None else now + in_
            if what == "write" or (what == "keep" and key not in alive):
                lifetimes.record_write([key], until(deadline, keep=what == "keep", owner=owner), alive)
                alive.add(key)
                deadlines[key], owners[key] = deadline, owner
            elif what == "keep":
                lifetimes.record_write([key], until(deadline, keep=True, owner=owner), alive)
                owners[key] = owner or owners[key]
            elif what == "touch" and key in alive:
                lifetimes.set_deadline([key], deadline)
                deadlines[key] = deadline
            elif what == "end":
                lifetimes.clear([key])
                alive.discard(key)
            elif what == "take":
                now += in_ or 0
                due = {each for each in alive if (end := deadlines[each]) is not None and end <= now}
                found: set[str] = set()
                while (look := lifetimes.next_wake_at) is not None and look <= now:
                    if rng.random() < 0.3:
                        found.update(lifetimes.take_due_of(rng.choices("abcdef", k=2), now))
                    else:
                        found.update(lifetimes.take_due(now, rng.randint(1, 3)))
                assert found == due
                alive -= due
            wanted = {each: end for each in alive if (end := deadlines[each]) is not None}
            assert all_deadlines(lifetimes) == wanted
            # What one change may add before it is swept out comes on top.
            assert len(scheduled(lifetimes._schedule)) <= 2 * len(wanted) + 2 * run_entries
            if wanted:
                assert lifetimes.next_wake_at is not None
                assert lifetimes.next_wake_at <= min(wanted.values()), "the schedule wakes too late for a deadline"
            for name in ("me", "you"):
                assert set(lifetimes.owned(name)) == {each for each in alive if owners[each] == name}

    run()
    print("done:", done)
    assert min(done.values()) >= 100, done


def test_keys_that_were_prolonged_are_put_back_in_steps_too() -> None:
    """A million sessions, begun together and prolonged since, must not keep everybody waiting when the first is due."""
    lifetimes, keys = Lifetimes(), [str(number) for number in range(5_000)]
    lifetimes.record_write(keys, Expiry(deadline=10))
    lifetimes.set_deadline(keys, 1_000)
    steps = 0
    while lifetimes.next_wake_at == 10:
        assert lifetimes.take_due(10, 100) == []
        steps += 1
    assert steps >= 10
    assert sorted(lifetimes.take_due(1_000, 5_000)) == sorted(keys)
    assert lifetimes.next_wake_at is None
