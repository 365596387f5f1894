"""What all rules of the model share: the strategies, the database and its model, and the invariants of each step."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from kvd.engine.database import Database
from kvd.engine.expiry import TIMER_GRAIN_S, Expirer
from kvd.engine.scheduler import NullHandle
from kvd.store.authors import EXPIRED, Author
from kvd.store.errors import SnapshotGone
from kvd.store.heads import FORGOTTEN, Head
from kvd.store.isolation import Range
from kvd.store.lifetimes import Expiry
from kvd.store.prefixes import PrefixRule, PrefixRules
from kvd.store.window import GROUP_BYTES, PLACE_BYTES, SUPERSEDED_BYTES, WindowLimits
from tests.engine.model import Gone, Model
from tests.store.deadlines import all_deadlines

KEYS = ["a", "b", "ba", "c", "é", "\ud7ff", "\uffff", "\U00010000", "z"]
SHORT = "b"  # values below this prefix may have a shorter history
AUTHORS = [Author(1, 2, "me"), Author(3, 4, "you"), Author(None, None, "tcp")]
OWNERS = ["session 1", "session 2"]
IDS = [bytes([number]) * 16 for number in range(6)]
REMEMBERED = 4

keys = st.sampled_from(KEYS)
values = st.binary(max_size=4) | st.integers(-3, 3).map(lambda number: b"%d" % number)
entries = st.dictionaries(keys, values, max_size=4)
writes = st.dictionaries(keys, st.none() | values, max_size=4)
ranges = st.lists(st.tuples(st.just("") | keys, st.none() | keys), max_size=4)
authors = st.sampled_from(AUTHORS)
wide = 10**6
bounds = st.integers(0, 2500) | st.just(wide)
window_limits = st.builds(
    WindowLimits, max_age_us=bounds, max_bytes=bounds, max_commits=st.integers(0, 12) | st.just(wide),
    max_pinned_bytes=bounds,
)  # fmt: skip
# (ttl in µs, keep, owner)
expiries = st.tuples(st.none() | st.integers(1, 200), st.booleans(), st.sampled_from([None, *OWNERS]))
DrawnExpiry = tuple[int | None, bool, str | None]

# One commit of expiries.
EXPIRED_TOGETHER = 2

Method = TypeVar("Method", bound=Callable[..., Any])
reached: Counter[str] = Counter()


def counted_rule(method: Method) -> Method:
    """Count how often a rule runs. It stands below ``@rule``, which reads the names of the arguments."""

    @wraps(method)
    def counting(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        reached[method.__name__] += 1
        return method(*arguments, **named)

    return counting  # type: ignore[return-value]


class Txn:
    """The client's side of a transaction."""

    def __init__(self, snapshot: int, pinned: bool) -> None:
        self.snapshot = snapshot
        self.pinned = pinned
        self.reads: dict[str, int] = {}
        self.ranges: list[Range] = []


class Machine(RuleBasedStateMachine):
    """The database and its model, which must agree after each step."""

    @initialize(limits=window_limits, age_ms=st.sampled_from([1, 0]))
    def begin_history(self, limits: WindowLimits, age_ms: int) -> None:
        self.wall = self.even = 10_000
        self.timer: int | None = None  # when the database has asked to be called for an expiry
        self.database = Database(limits, clock=lambda: self.wall, timer=lambda: self.even, scheduler=self)
        self.store = self.database.store
        self.database.outcomes.limit = REMEMBERED
        self.model = Model(REMEMBERED)
        self.noted: list[list[str]] = []
        self.database.wakeups.add(self, self.note_commit)
        self.pins: Counter[int] = Counter()
        self.promised: set[int] = set()  # pinned versions that no limit may drop
        self.txns: list[Txn] = []
        self.gets = 0
        self.set_short_history(age_ms)

    # ------------------------------------------------------------------ a scheduler that only notes the time

    def now(self) -> float:
        return 0.0

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> NullHandle:
        if isinstance(getattr(callback, "__self__", None), Expirer):
            self.timer = self.even + round((delay_s - TIMER_GRAIN_S) * 1_000_000)
        return NullHandle()

    # ------------------------------------------------------------------ helpers

    def set_short_history(self, age_ms: int) -> None:
        """Give values below SHORT a history of ``age_ms``, or the usual one if that is 0."""
        self.short_history_us = age_ms * 1000 or None
        self.database.memory.set_rules(PrefixRules([PrefixRule(prefix=SHORT, history_ms=age_ms)]))

    def expire_all_due(self) -> None:
        """Expire what is due: all of it, nothing else, in commits that are not too large."""
        model, before = self.model, self.store.version
        due = {key for key, deadline in model.deadlines.items() if deadline <= self.even}
        self.noted.clear()
        self.database.expire_all_due()
        self.note_forgotten()
        if not due:
            assert self.store.version == before
            return
        model.advance(self.wall)
        expired = list(self.noted)
        assert len(expired) == self.store.version - before
        assert all(1 <= len(keys) <= EXPIRED_TOGETHER for keys in expired)
        assert sorted(key for keys in expired for key in keys) == sorted(due)
        for keys in expired:
            reached["expired"] += 1
            for key in keys:
                model.end(key)
            model.commit(dict.fromkeys(keys), EXPIRED)

    def note_commit(self) -> None:
        """Note the keys of the last commit, which may leave the history at once."""
        newest = next(self.store.window.newest(), None)
        self.noted.append(sorted(head.key for head in newest.heads) if newest else [])

    def note_forgotten(self) -> None:
        """Tell the model how much history is left, which may have become shorter, but never longer."""
        assert self.store.window.oldest_readable >= self.model.oldest
        self.model.oldest = self.store.window.oldest_readable
        gone = {(key, head.version) for key in KEYS for head in self.chain(key) if head.value is FORGOTTEN}
        for key, version in gone - self.model.forgotten_values:
            reached["forgotten"] += 1
            assert self.is_old(key, version)
        assert not (self.model.forgotten_values - gone) & self.superseded_values(), "a forgotten value came back"
        self.model.forgotten_values |= gone

    def chain(self, key: str) -> Iterator[Head]:
        """Yield all heads that the store has of ``key``, newest first."""
        head = self.store.find(key)
        while head is not None:
            yield head
            head = head.previous

    def superseded_values(self) -> set[tuple[str, int]]:
        """Return key and version of each superseded value that the store has."""
        return {(key, head.version) for key in KEYS for head in list(self.chain(key))[1:] if head.value is not None}

    def is_old(self, key: str, version: int) -> bool:
        """Whether this superseded value may be forgotten: no snapshot pins it, and it is too old."""
        if self.short_history_us is None or not key.startswith(SHORT):
            return False
        after = self.model.superseded(key, version)
        is_pinned = any(pinned < after for pinned in self.pins)
        return not is_pinned and self.model.commits[after].time < self.store.time - self.short_history_us

    def prepare_write(self) -> None:
        """Do what precedes every change: expire what is due, and set the time of the batch."""
        self.expire_all_due()
        self.model.advance(self.wall)

    def life(self, drawn: DrawnExpiry) -> tuple[Expiry, tuple[int | None, bool, str | None]]:
        """Return what was drawn as the database takes it, and as the model takes it."""
        ttl_us, keep, owner = drawn
        deadline = None if ttl_us is None else self.even + ttl_us
        return self.database.expiry(ttl_us, keep=keep, owner=owner), (deadline, keep, owner)

    def same_answer(self, call: Callable[[], Any], wanted: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Check that both answer the same or both refuse; return the answer, None if they refuse."""
        try:
            answer = wanted()
        except Gone:
            reached["snapshot gone"] += 1
            with pytest.raises(SnapshotGone):
                call()
            return None
        assert call() == answer
        return answer

    # ------------------------------------------------------------------ reading

    def check_fetch(self, chosen: list[str], at: int | None) -> list[tuple[bytes | None, int, int | None]] | None:
        snapshot = self.model.snapshots[self.model.version if at is None else at]

        def wanted() -> list[tuple[bytes | None, int, int | None]]:
            if at is not None and (at < self.model.oldest or any(self.model.is_forgotten(key, at) for key in chosen)):
                raise Gone
            self.gets += len(chosen)
            deadlines = self.model.deadlines if at is None else {}
            return [(*snapshot.get(key, (None, 0)), deadlines.get(key)) for key in chosen]

        return self.same_answer(lambda: self.store.fetch(chosen, at), wanted)

    def check_scan(
        self, start: str, end: str | None, limit: int, at: int
    ) -> list[tuple[str, bytes | None, int]] | None:
        def all_pages() -> list[tuple[str, bytes | None, int]]:
            found, following = [], start
            while following is not None:
                page = self.store.scan(following, end, limit, at=at, max_bytes=12)
                found += [(item.key, item.value, item.version) for item in page.items]
                following = page.next
            return found

        def wanted() -> list[tuple[str, bytes | None, int]]:
            if at < self.model.oldest:
                raise Gone
            snapshot = self.model.snapshots[at]
            found = [key for key in sorted(snapshot) if start <= key and (end is None or key < end)]
            if any(self.model.is_forgotten(key, at) for key in found):
                raise Gone
            return [(key, *snapshot[key]) for key in found]

        return self.same_answer(all_pages, wanted)

    # ------------------------------------------------------------------ after each step

    @invariant()
    def the_counters_are_exact(self) -> None:
        self.note_forgotten()
        counters, model = self.store.counters, self.model
        assert (self.store.version, self.store.time) == (model.version, model.time)
        assert counters.keys == len(model.live)
        assert counters.value_bytes == sum(len(value) for value, _ in model.live.values())
        assert (counters.set_operations, counters.delete_operations) == (model.counts["set"], model.counts["delete"])
        assert counters.get_operations == self.gets
        metrics = dict(self.database.metrics())
        assert metrics["history_commits"] == model.version - model.oldest
        assert metrics["keys_with_deadline"] == len(model.deadlines)

    @invariant()
    def every_readable_version_reads_as_it_was(self) -> None:
        self.note_forgotten()
        for version in range(self.model.oldest, self.model.version + 1):
            known = [key for key in KEYS if not self.model.is_forgotten(key, version)]
            found = [head and (head.value, head.version) for head in self.store._heads_at(known, version)]
            seen = {key: item for key, item in zip(known, found, strict=True) if item and item[0] is not None}
            assert seen == {key: item for key, item in self.model.snapshots[version].items() if key in known}
            for key in {*KEYS} - {*known}:
                with pytest.raises(SnapshotGone):
                    self.store._heads_at([key], version)

    @invariant()
    def what_is_pinned_can_be_read(self) -> None:
        assert self.store.window.oldest_readable <= min(self.promised, default=self.model.version)
        for version in self.promised:
            assert not any(self.model.is_forgotten(key, version) for key in KEYS)

    @invariant()
    def the_window_counts_what_it_has(self) -> None:
        window = self.store.window
        assert window.bytes == sum(group.size for group in window.newest())
        for group in window.newest():
            before = [old.value for head in group.heads if (old := head.previous) is not None and old.value is not None]
            # A touch keeps the value: it is counted once, as the current one.
            known = 0 if group.keeps else sum(len(value) for value in before if value is not FORGOTTEN)
            assert group.size == GROUP_BYTES + PLACE_BYTES * len(group.heads) + SUPERSEDED_BYTES * len(before) + known

    @invariant()
    def expiries_agree_with_the_model(self) -> None:
        lifetimes = self.store.lifetimes
        assert all_deadlines(lifetimes) == self.model.deadlines
        assert lifetimes.owners == self.model.owners
        if self.model.deadlines:
            assert self.timer is not None
            assert self.timer <= min(self.model.deadlines.values()), "the timer is set too late"

    @invariant()
    def as_many_ids_are_remembered_as_in_the_model(self) -> None:
        assert len(self.database.outcomes) == len(self.model.outcomes)
