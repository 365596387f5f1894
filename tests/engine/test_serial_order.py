"""Strict serializability: in any interleaving, the versions are a serial order with the same outcome.

Up to four transactions at a time read keys and ranges at their snapshots, see their own writes, and commit; they are
the only writers. The committed ones, run again one after the other in the order of their versions, read the same and
leave the same state. Each writes what it read, so that two with different reads cannot leave the same state.
"""

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvd.engine.database import Database
from kvd.store import isolation
from kvd.store.authors import Author
from kvd.store.errors import Conflict, SnapshotGone
from kvd.store.isolation import Range
from kvd.store.window import WindowLimits
from tests.harness.scale import SCALE

HISTORIES = max(100, int(600 * SCALE))
# At least this share of the transactions must commit, and conflict. Otherwise the test could find nothing.
MIN_SHARE = 0.04

KEYS = list("abcd")
# Half of them are there from the beginning, so that there is something to delete.
FIRST = {"a": b"first", "c": b"first"}
SLOTS = 4
ME = Author(1, 2, "me")

keys = st.sampled_from(KEYS)
ranges: st.SearchStrategy[Range] = st.tuples(st.sampled_from(["", *KEYS]), st.none() | keys)
steps = st.tuples(
    st.integers(0, SLOTS - 1),
    st.one_of(
        keys.map(lambda key: ("read", key)),
        ranges.map(lambda range_: ("scan", range_)),
        keys.map(lambda key: ("write", key)),
        keys.map(lambda key: ("delete", key)),
        st.just(("commit", None)),
        st.just(("commit", None)),
    ),
)
schedules = st.lists(steps, min_size=10, max_size=60)
Reads = list[tuple[object, ...]]


class Txn:
    """The client's side of a transaction: what it read, in order, and what it will write."""

    def __init__(self, database: Database, number: int) -> None:
        self.store = database.store
        self.snapshot = database.store.version
        self.number = number
        self.work: list[tuple[str, object]] = []
        self.seen: Reads = []
        self.reads: dict[str, int] = {}
        self.ranges: list[Range] = []
        self.writes: dict[str, bytes | None] = {}

    def do(self, what: str, of: object) -> None:
        """Make one step."""
        self.work.append((what, of))
        if what == "scan":
            self.seen.append(("scan", of, self.scan(*of)))  # type: ignore[misc]
        elif what == "read":
            self.seen.append(("read", of, self.read(str(of))))
        else:
            self.writes[str(of)] = None if what == "delete" else value_of(self.number, self.seen)

    def read(self, key: str) -> bytes | None:
        if key in self.writes:
            return self.writes[key]
        ((value, version, _),) = self.store.fetch([key], self.snapshot)
        self.reads[key] = version
        return value

    def scan(self, start: str, end: str | None) -> dict[str, bytes]:
        self.ranges.append((start, end))
        found = {item.key: item.value for item in self.store.scan(start, end, 100, at=self.snapshot).items}
        return overlay(found, self.writes, start, end)


def overlay(
    found: dict[str, bytes | None], writes: dict[str, bytes | None], start: str, end: str | None
) -> dict[str, bytes]:
    """Return what a range shows to a transaction that has made ``writes``."""
    mine = {key: value for key, value in writes.items() if start <= key and (end is None or key < end)}
    return {key: value for key, value in sorted((found | mine).items()) if value is not None}


def value_of(number: int, seen: Reads) -> bytes:
    """Return a value that contains the number of its writer and what the writer has read."""
    return f"{number}: {seen}"[-200:].encode()


def rerun(txn: Txn, state: dict[str, bytes]) -> tuple[Reads, dict[str, bytes]]:
    """Run the same work alone on ``state``; return what it reads, and the state that it leaves."""
    seen: Reads = []
    writes: dict[str, bytes | None] = {}
    for what, of in txn.work:
        if what == "scan":
            start, end = of  # type: ignore[misc]
            there = {key: value for key, value in state.items() if start <= key and (end is None or key < end)}
            seen.append(("scan", of, overlay(dict(there), writes, start, end)))
        elif what == "read":
            seen.append(("read", of, writes[of] if of in writes else state.get(of)))  # type: ignore[index, call-overload]
        else:
            writes[str(of)] = None if what == "delete" else value_of(txn.number, seen)
    after = {key: value for key, value in (state | writes).items() if value is not None}
    return seen, after


class Schedule:
    """Runs the interleaved steps of several transactions."""

    def __init__(self, database: Database) -> None:
        self.database = database
        database.set(FIRST, ME)
        self.running: dict[int, Txn] = {}
        self.committed: list[tuple[int, Txn]] = []  # in the order of their commits, with their versions
        self.outcomes: Counter[str] = Counter()
        self.number = 0

    def step(self, slot: int, what: str, of: object) -> None:
        """Make one step of the transaction in ``slot``; begin a new one if the slot is free."""
        txn = self.running.get(slot)
        if txn is None:
            self.number += 1
            txn = self.running[slot] = Txn(self.database, self.number)
        try:
            if what == "commit":
                del self.running[slot]
                self.commit(txn)
            else:
                txn.do(what, of)
        except SnapshotGone:
            self.outcomes["snapshot gone"] += 1
            self.running.pop(slot, None)

    def commit(self, txn: Txn) -> None:
        if not txn.writes:  # it is serialized where it read, and never conflicts
            self.committed.append((txn.snapshot, txn))
            self.outcomes["only read"] += 1
            return
        try:
            version = self.database.commit(txn.writes, txn.reads, txn.ranges, txn.snapshot, ME)
        except Conflict:
            self.outcomes["conflict"] += 1
            return
        self.committed.append((version, txn))
        self.outcomes["committed"] += 1


def check_serial(schedule: Schedule) -> None:
    """Replay the committed transactions in the order of versions, each read-only one after the version that it read."""
    state = dict(FIRST)
    order = sorted(schedule.committed, key=lambda each: each[0])  # stable: a writer comes before its readers
    for _, txn in order:
        seen, state = rerun(txn, state)
        assert seen == txn.seen, f"transaction {txn.number} at {txn.snapshot} read what it could not have read alone"
    left = {item.key: item.value for item in schedule.database.store.scan("", None, 100).items}
    assert left == state


@pytest.mark.parametrize("way", ["through the commits", "through the index"])
@pytest.mark.parametrize("history", ["a long history", "a short history"])
def test_committed_transactions_are_equal_to_a_serial_run(
    history: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "through the index":
        monkeypatch.setattr(isolation, "COMMITTED_KEYS", 0)
    limits = WindowLimits(max_commits=1) if history == "a short history" else WindowLimits()
    outcomes: Counter[str] = Counter()

    @settings(max_examples=HISTORIES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(schedules)
    def run(steps: list[tuple[int, tuple[str, object]]]) -> None:
        schedule = Schedule(Database(limits, clock=lambda: 0, timer=lambda: 0))
        for slot, (what, of) in steps:
            schedule.step(slot, what, of)
        for slot in list(schedule.running):
            schedule.step(slot, "commit", None)
        check_serial(schedule)
        outcomes.update(schedule.outcomes)

    run()
    print(f"{HISTORIES} histories:", dict(outcomes))
    wanted = {"committed", "conflict", "only read"} | ({"snapshot gone"} if history == "a short history" else set())
    assert set(outcomes) == wanted
    assert min(outcomes[each] for each in ("committed", "conflict")) > MIN_SHARE * outcomes.total()
