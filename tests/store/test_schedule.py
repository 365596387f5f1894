"""The schedule: due keys are found in time, stale entries are removed, and no step costs work for many entries."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvd.store import schedule as schedule_module
from kvd.store.schedule import NEVER, Entry, Schedule
from tests.store.deadlines import scheduled

RUN = 4
MANY = 1_000


@pytest.fixture(autouse=True)
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_module, "RUN_ENTRIES", RUN)
    monkeypatch.setattr(schedule_module, "_FEW_RUNS", 1)


def schedule_of(*deadlines: int) -> tuple[Schedule, list[Entry]]:
    """Return a schedule with a key for each deadline, named by its index here; and its entries."""
    schedule = Schedule()
    entries = [Entry(deadline, str(number), deadline) for number, deadline in enumerate(deadlines)]
    for entry in entries:
        schedule.add(entry)
    return schedule, entries


def test_an_empty_schedule_has_no_entry() -> None:
    assert (Schedule().next_wake_at, Schedule().take_due(10**18, MANY)) == (NEVER, [])


@pytest.mark.parametrize("deadlines", [[5, 3, 4], [5, 3, 4, 9, 1], [*range(20)], [*range(20, 0, -1)], [7] * 10])
def test_keys_are_due_from_their_deadlines_on(deadlines: list[int]) -> None:
    schedule, _ = schedule_of(*deadlines)
    assert schedule.next_wake_at == min(deadlines)
    for now in range(25):
        due = [str(number) for number, deadline in enumerate(deadlines) if deadline == now]
        assert sorted(schedule.take_due(now, MANY)) == sorted(due)
        assert schedule.next_wake_at == min((deadline for deadline in deadlines if deadline > now), default=NEVER)


def test_the_keys_that_have_waited_longest_are_taken_first() -> None:
    schedule, _ = schedule_of(*range(100, 140), *range(50, 90), 1)
    assert schedule.take_due(200, 2 * RUN) == [str(number) for number in range(40, 40 + 2 * RUN)]
    assert schedule.next_wake_at == 1, "but for those in the open heap, which are never many"
    assert len(schedule._open) < RUN


def test_no_more_entries_are_visited_than_allowed() -> None:
    schedule, entries = schedule_of(*range(20))
    for entry in entries[:10]:
        entry.deadline = 30
    schedule.cancel(entries[10])
    found = [schedule.take_due(25, 4) for _ in range(6)]
    assert list(map(len, found)) == [0, 0, 1, 4, 4, 0]
    assert (schedule.stale, schedule.next_wake_at) == (0, 30)
    assert len(schedule.take_due(30, MANY)) == 10


def test_an_entry_with_a_later_deadline_is_visited_at_the_old_time_and_scheduled_again() -> None:
    schedule, [entry] = schedule_of(10)
    entry.deadline = 20
    assert (schedule.next_wake_at, schedule.take_due(10, MANY), schedule.next_wake_at) == (10, [], 20)
    assert (schedule.take_due(19, MANY), schedule.take_due(20, MANY), schedule.next_wake_at) == ([], ["0"], NEVER)


def test_a_cancelled_entry_is_skipped() -> None:
    schedule, [first, _] = schedule_of(10, 10)
    schedule.cancel(first)
    schedule.add(Entry(10, "0", 10))  # equal in all fields
    assert sorted(schedule.take_due(10, MANY)) == ["0", "1"]
    assert (schedule.stale, scheduled(schedule)) == (0, [])


def test_the_oldest_run_is_merged_while_most_entries_are_stale() -> None:
    schedule, entries = schedule_of(*range(100, 140))
    for number, entry in enumerate(entries[::2]):
        schedule.cancel(entry)
        schedule.compact(39 - number, 1)
    assert (schedule.stale, len(scheduled(schedule))) == (20, 40), (
        "stale entries stay until there are more of them than others"
    )
    for number, entry in enumerate(entries[1::2]):
        schedule.cancel(entry)
        schedule.compact(19 - number, 1)
        assert schedule.stale <= RUN + 19 - number + RUN
    assert len(scheduled(schedule)) <= 2 * RUN
    assert schedule.take_due(MANY, MANY) == []
    assert schedule.stale == 0


def test_runs_that_are_nearly_used_up_are_merged() -> None:
    short_and_long = [number if number % RUN else 1_000 + number for number in range(100)]
    schedule, _ = schedule_of(*short_and_long)
    assert len(schedule.take_due(100, MANY)) == 75
    assert len(schedule._runs) == 25, "of one entry each"
    for _ in range(25):
        before = len(schedule._runs)
        schedule.compact(25, 1)
        assert len(schedule._runs) >= before - 1, "one at a time"
    assert len(schedule._runs) <= 1 + 2 * 25 // RUN
    assert len(schedule.take_due(2_000, MANY)) == 25


def test_compacting_keeps_pace_with_many_changes() -> None:
    """However many keys each step changes, the number of stale entries stays bounded."""
    schedule, most = Schedule(), 0
    entries: list[Entry] = []
    for step in range(50):
        for entry in entries:
            schedule.cancel(entry)
        entries = [Entry(1_000 - step, str(number), 1_000 - step) for number in range(10 * RUN)]
        for entry in entries:
            schedule.add(entry)
        schedule.compact(len(entries), len(entries))
        most = max(most, len(scheduled(schedule)))
    assert most <= 4 * len(entries)


steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "prolong", "cancel", "take"]), st.integers(0, 30), st.integers(1, 6)
    ),
    min_size=20, max_size=120,
)  # fmt: skip


@settings(deadline=None)
@given(steps, st.randoms(use_true_random=False))
def test_a_schedule_is_a_dict_of_deadlines(steps: list[tuple[str, int, int]], rng: random.Random) -> None:
    schedule, now = Schedule(), 0
    entries: dict[str, Entry] = {}
    for number, (what, in_, most) in enumerate(steps):
        some = rng.choice([*entries.values()]) if entries else None
        if what == "add":
            entry = entries[str(number)] = Entry(now + in_, str(number), now + in_)
            schedule.add(entry)
        elif what == "prolong" and some is not None:
            some.deadline += in_
        elif what == "cancel" and some is not None:
            schedule.cancel(entries.pop(some.key))
        elif what == "take":
            now += in_
            due = {key for key, entry in entries.items() if entry.deadline <= now}
            found: list[str] = []
            while schedule.next_wake_at <= now:
                before = len(found)
                found += schedule.take_due(now, most)
                assert len(found) - before <= most
            assert sorted(found) == sorted(due)
            for key in due:
                del entries[key]
        schedule.compact(len(entries), 1)
        there = scheduled(schedule)
        assert sum(entries.get(entry.key) is entry for entry in there) == len(entries)
        assert schedule.stale == len(there) - len(entries)
        assert schedule.next_wake_at <= min((entry.deadline for entry in entries.values()), default=NEVER)
        for run in schedule._runs:
            places = [entry.wake_at for entry in run]
            assert places == sorted(places, reverse=True)
