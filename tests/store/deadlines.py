"""All deadlines that the store knows, and whether its parts agree on them."""

from kvd.store.lifetimes import Lifetimes
from kvd.store.schedule import Entry, Schedule


def scheduled(schedule: Schedule) -> list[Entry]:
    """Return all entries, stale ones included."""
    return [entry for run in [schedule._open, *schedule._runs] for entry in run]


def all_deadlines(lifetimes: Lifetimes) -> dict[str, int]:
    """Return the deadline of each key that expires.

    Check that each key has one entry in the schedule, that this entry is early enough, and that all others are stale.
    """
    entries: dict[str, Entry] = {}
    for part in lifetimes._entries.parts():
        assert not entries.keys() & part.keys(), "in two dicts"
        entries |= part
    schedule = lifetimes._schedule
    counting = [entry for entry in scheduled(schedule) if entries.get(entry.key) is entry]
    assert len(counting) == len(entries) == lifetimes.count
    assert len(scheduled(schedule)) - len(counting) == schedule.stale
    assert all(entry.wake_at <= entry.deadline for entry in counting)
    deadlines = {key: entry.deadline for key, entry in entries.items()}
    assert (
        lifetimes.deadlines_of(list(deadlines)) == list(map(lifetimes.deadline_of, deadlines)) == [*deadlines.values()]
    )
    return deadlines
