"""The whole database against a plain model, through random histories of everything that it can do.

With an index, pages, bounds and windows so small that each way through it is taken. KVD_TEST_SCALE multiplies the
number of histories; a rule, or an outcome, that came too rarely fails the test.
"""

import os
from collections import Counter
from collections.abc import Callable
from functools import wraps
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

from kvd import database as database_module
from kvd.database import Database
from kvd.store import isolation
from kvd.store import lifetimes as lifetimes_module
from kvd.store import store as store_module
from kvd.store import window as window_module
from kvd.store.authors import EXPIRED, Author
from kvd.store.errors import Conflict, KeysNotFound, NotANumber, OutcomeUnknown, SnapshotGone
from kvd.store.history import commits_from, newest_commits, versions
from kvd.store.isolation import Range
from kvd.store.lifetimes import KEPT, Life
from kvd.store.window import WindowLimits
from tests.database.model import Gone, Model, Unknown, Writes

SCALE = float(os.environ.get("KVD_TEST_SCALE", "1"))
HISTORIES = max(20, int(400 * SCALE))
STEPS = 50
# How often each rule fires, and each outcome comes, at the least for each history; the rarest do five times as often.
PER_HISTORY = 0.02

KEYS = ["a", "b", "ba", "c", "é", "\ud7ff", "\uffff", "\U00010000", "z"]
AUTHORS = [Author(1, 2, "me"), Author(3, 4, "you"), Author(None, None, "tcp")]
OWNERS = ["session 1", "session 2"]
IDS = [bytes([number]) * 16 for number in range(6)]
REMEMBERED = 4
EXPIRED_TOGETHER = 2

keys = st.sampled_from(KEYS)
values = st.binary(max_size=4) | st.integers(-3, 3).map(lambda number: b"%d" % number)
entries = st.dictionaries(keys, values, max_size=4)
writes = st.dictionaries(keys, st.none() | values, max_size=4)
ranges = st.lists(st.tuples(st.just("") | keys, st.none() | keys), max_size=2)
authors = st.sampled_from(AUTHORS)
wide = 10**6
bounds = st.integers(0, 2500) | st.just(wide)
window_limits = st.builds(
    WindowLimits, max_age_us=bounds, max_bytes=bounds, max_commits=st.integers(0, 12) | st.just(wide),
    max_pinned_bytes=bounds,
)  # fmt: skip
# (ttl in µs, keep, owner)
lives = st.tuples(st.none() | st.integers(1, 200), st.booleans(), st.sampled_from([None, *OWNERS]))
LifeDrawn = tuple[int | None, bool, str | None]

Method = TypeVar("Method", bound=Callable[..., Any])
fired: Counter[str] = Counter()


def counted(method: Method) -> Method:
    """Count how often a rule fires. Goes below ``@rule``, which looks at the arguments' names."""

    @wraps(method)
    def counting(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        fired[method.__name__] += 1
        return method(*arguments, **named)

    return counting  # type: ignore[return-value]


class Txn:
    """What a client holds of a transaction."""

    def __init__(self, snapshot: int, pinned: bool) -> None:
        self.snapshot = snapshot
        self.pinned = pinned
        self.reads: dict[str, int] = {}
        self.ranges: list[Range] = []


class Machine(RuleBasedStateMachine):
    """The database in the left hand, the model in the right; after each step they must tell the same."""

    @initialize(limits=window_limits)
    def begin_history(self, limits: WindowLimits) -> None:
        self.wall = self.even = 10_000
        self.database = Database(limits, clock=lambda: self.wall, timer=lambda: self.even)
        self.store = self.database.store
        self.database.outcomes.limit = REMEMBERED
        self.model = Model(REMEMBERED)
        self.timer: int | None = None  # as a service sets it that does what it is told
        self.database.on_deadline = lambda in_us: setattr(self, "timer", self.even + in_us)
        self.noted: list[list[str]] = []
        self.database.on_commit = self.note_commit
        self.pins: Counter[int] = Counter()
        self.promised: set[int] = set()  # those pinned that no limit may take
        self.txns: list[Txn] = []
        self.gets = 0

    # ------------------------------------------------------------------ helpers

    def settle(self) -> None:
        """What is due expires: all of it, nothing else, in commits that are not too large."""
        model, before = self.model, self.store.version
        due = {key for key, deadline in model.deadlines.items() if deadline <= self.even}
        self.noted.clear()
        self.database.settle()
        self.forgetting()
        if not due:
            assert self.store.version == before
            return
        model.advance(self.wall)
        expired = list(self.noted)
        assert len(expired) == self.store.version - before
        assert all(len(keys) == EXPIRED_TOGETHER for keys in expired[:-1])
        assert sorted(key for keys in expired for key in keys) == sorted(due)
        for keys in expired:
            fired["expired"] += 1
            for key in keys:
                model.end(key)
            model.commit(dict.fromkeys(keys), EXPIRED)

    def note_commit(self) -> None:
        """What has been written last; its commit may leave the history at once."""
        newest = next(self.store.window.newest(), None)
        self.noted.append(sorted(head.key for head in newest.heads) if newest else [])

    def forgetting(self) -> None:
        """The history may have become shorter, but never longer."""
        assert self.store.window.oldest_readable >= self.model.oldest
        self.model.oldest = self.store.window.oldest_readable

    def ready(self) -> None:
        """What comes before every change: expiry, and the time of the batch."""
        self.settle()
        self.model.advance(self.wall)

    def life(self, drawn: LifeDrawn) -> tuple[Life, tuple[int | None, bool, str | None]]:
        """For the database, and for the model."""
        ttl_us, keep, owner = drawn
        deadline = None if ttl_us is None else self.even + ttl_us
        return self.database.life(ttl_us, keep=keep, owner=owner), (deadline, keep, owner)

    def same_refusal(self, call: Callable[[], Any], wanted: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Both do it, or both refuse; the answer, None if refused."""
        try:
            answer = wanted()
        except Gone:
            fired["snapshot gone"] += 1
            with pytest.raises(SnapshotGone):
                call()
            return None
        assert call() == answer
        return answer

    # ------------------------------------------------------------------ plain writes

    @rule(entries=entries, author=authors, drawn=lives)
    @counted
    def set(self, entries: dict[str, bytes], author: Author, drawn: LifeDrawn) -> None:
        self.ready()
        life, modelled = self.life(drawn)
        assert self.database.set(entries, author, life) == self.model.write(dict(entries), author, *modelled)

    @rule(entries=entries, author=authors)
    @counted
    def set_plainly(self, entries: dict[str, bytes], author: Author) -> None:
        self.ready()
        assert self.database.set(entries, author) == self.model.write(dict(entries), author, None, False, None)

    @rule(batch=st.lists(st.dictionaries(keys, values, min_size=0, max_size=2), max_size=4), author=authors)
    @counted
    def set_each(self, batch: list[dict[str, bytes]], author: Author) -> None:
        self.ready()
        wanted = [self.model.write(dict(entries), author, None, False, None) for entries in batch]
        assert self.database.set_each(batch, author) == wanted

    @precondition(lambda self: len(self.model.live) > 1)
    @rule(data=st.data(), author=authors)
    @counted
    def replace_each(self, data: st.DataObject, author: Author) -> None:
        self.settle()
        live = sorted(self.model.live) or KEYS
        chosen = data.draw(st.lists(st.sampled_from(live), min_size=1, max_size=5, unique=True))
        self.set_each([{key: b"new"} for key in chosen], author)

    @rule(chosen=st.lists(keys, max_size=4), missing_ok=st.booleans(), author=authors)
    @counted
    def delete(self, chosen: list[str], missing_ok: bool, author: Author) -> None:
        self.ready()
        there = {key: None for key in chosen if key in self.model.live}
        if len(there) < len({*chosen}) and not missing_ok:
            with pytest.raises(KeysNotFound):
                self.database.delete(chosen, author, missing_ok=False)
            return
        wanted = self.model.write(dict(there), author, None, False, None), len(there)
        assert self.database.delete(chosen, author, missing_ok=missing_ok) == wanted

    @rule(key=keys, by=st.integers(-5, 5) | st.just(2**63 - 1), author=authors, drawn=st.none() | lives)
    @counted
    def increment(self, key: str, by: int, author: Author, drawn: LifeDrawn | None) -> None:
        self.ready()
        life, modelled = (KEPT, (None, True, None)) if drawn is None else self.life(drawn)
        value = self.model.live.get(key, (b"0", 0))[0]
        is_number = value.removeprefix(b"-").isdigit() and len(value) < 20
        if not is_number or not -(2**63) <= int(value) + by < 2**63:
            fired["not a number"] += 1
            with pytest.raises(NotANumber):
                self.database.increment(key, by, author, life)
            return
        total = int(value) + by
        wanted = total, self.model.write({key: b"%d" % total}, author, *modelled)
        assert self.database.increment(key, by, author, life) == wanted

    @rule(chosen=st.lists(keys, max_size=4), ttl_us=st.none() | st.integers(1, 300), author=authors)
    @counted
    def touch(self, chosen: list[str], ttl_us: int | None, author: Author) -> None:
        self.ready()
        wanted = self.model.touch(chosen, None if ttl_us is None else self.even + ttl_us, author)
        assert self.database.touch(chosen, ttl_us, author) == wanted

    @rule(owner=st.sampled_from(OWNERS), author=authors)
    @counted
    def bury(self, owner: str, author: Author) -> None:
        if owner in self.model.owners.values():
            self.settle()  # as the database does itself, but so that the model can follow
            self.model.advance(self.wall)
        owned = [key for key, who in self.model.owners.items() if who == owner]
        assert self.database.count_owned(owner) == len(owned)
        self.database.bury(owner, author)
        if owned:
            fired["buried"] += 1
            self.model.write(dict.fromkeys(owned), author, None, False, None)

    # ------------------------------------------------------------------ exactly once

    @rule(who=st.sampled_from([1, None]), id_=st.sampled_from(IDS), data=st.data(), author=authors)
    @counted
    def send_with_id(self, who: int | None, id_: bytes, data: st.DataObject, author: Author) -> None:
        self.settle()
        since = data.draw(st.none() | st.integers(0, self.model.version + 1))
        try:
            known = self.model.find((who, id_), since)
        except Unknown:
            fired["outcome unknown"] += 1
            with pytest.raises(OutcomeUnknown):
                self.database.once(who, id_, since, lambda: self.database.set({"a": b"unknown"}, author))
            return
        answer: object
        if known is not None:
            fired["answered again"] += 1
            answer = known
        else:
            fired["done once"] += 1
            self.model.advance(self.wall)
            answer = self.model.write({"a": b"once", "b": id_[:1]}, author, None, False, None)
            self.model.remember((who, id_), self.model.version, answer)
        done = self.database.once(who, id_, since, lambda: self.database.set({"a": b"once", "b": id_[:1]}, author))
        assert done == answer

    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=3), data=st.data(), author=authors)
    @counted
    def send_many_with_ids(self, ids: list[bytes], data: st.DataObject, author: Author) -> None:
        self.settle()
        since = data.draw(st.none() | st.integers(0, self.model.version + 1))
        batch = [{key: id_[:1]} for key, id_ in zip(KEYS, ids, strict=False)]
        made = self.database.set_each_once(1, [(id_, since) for id_ in ids], batch, author)
        try:
            fresh = all(self.model.find((1, id_), since) is None for id_ in ids) and len({*ids}) == len(ids)
        except Unknown:
            fresh = False
        if not fresh:
            assert made is None
            return
        fired["many done once"] += 1
        self.model.advance(self.wall)
        wanted = [self.model.write(dict(entries), author, None, False, None) for entries in batch]
        for id_, version in zip(ids, wanted, strict=True):
            self.model.remember((1, id_), version, version)
        assert made == wanted

    # ------------------------------------------------------------------ transactions

    def committing(
        self, writes: Writes, reads: dict[str, int], ranges: list[Range], snapshot: int, author: Author,
        drawn: LifeDrawn = (None, False, None),
    ) -> None:  # fmt: skip
        """Commit in the database and judge in the model."""
        self.settle()
        life, modelled = self.life(drawn)

        def commit() -> int:
            return self.database.commit(writes, reads, ranges, snapshot, author, life)

        try:
            conflicts = self.model.conflicts(reads, ranges, snapshot)
        except Gone:
            fired["range at a snapshot gone"] += 1
            with pytest.raises(SnapshotGone):
                commit()
            return
        if conflicts:
            fired["conflict"] += 1
            with pytest.raises(Conflict) as refused:
                commit()
            assert {change.key: change for change in refused.value.changes} == conflicts
            assert len(refused.value.changes) == len(conflicts)
            return
        fired["committed with reads"] += bool(reads or ranges) and bool(writes)
        self.model.advance(self.wall)
        wanted = self.model.write(writes, author, *modelled)
        assert commit() == wanted

    @rule(writes=writes, author=authors, drawn=lives)
    @counted
    def commit_blindly(self, writes: Writes, author: Author, drawn: LifeDrawn) -> None:
        self.committing(writes, {}, [], 0, author, drawn)

    @rule(writes=writes, chosen=st.lists(keys, max_size=3), ranges=ranges, data=st.data(), author=authors)
    @counted
    def commit_whatever(
        self, writes: Writes, chosen: list[str], ranges: list[Range], data: st.DataObject, author: Author
    ) -> None:
        """Also what no transaction could have read."""
        self.settle()
        version = self.model.version
        at = st.integers(max(0, self.model.oldest - 3), version) | st.just(version)
        reads = {key: self.model.seen(key, data.draw(at)) for key in chosen}
        self.committing(writes, reads, ranges, data.draw(at), author)

    @precondition(lambda self: len(self.txns) < 4)
    @rule(pinned=st.booleans())
    @counted
    def begin(self, pinned: bool) -> None:
        self.settle()
        if pinned:
            assert self.store.pin() == self.model.version
            self.pins[self.model.version] += 1
            if self.store.window.limits.max_pinned_bytes == wide:
                self.promised.add(self.model.version)
        self.txns.append(Txn(self.model.version, pinned))

    @precondition(lambda self: self.txns)
    @rule(data=st.data(), chosen=st.lists(keys, min_size=1, max_size=3))
    @counted
    def read_in_a_txn(self, data: st.DataObject, chosen: list[str]) -> None:
        self.settle()
        txn = data.draw(st.sampled_from(self.txns))
        found = self.fetching(chosen, txn.snapshot)
        if found is not None:
            txn.reads |= {key: version for key, (_, version, _) in zip(chosen, found, strict=True)}

    @precondition(lambda self: self.txns)
    @rule(data=st.data(), start=st.just("") | keys, end=st.none() | keys, limit=st.integers(1, 4))
    @counted
    def scan_in_a_txn(self, data: st.DataObject, start: str, end: str | None, limit: int) -> None:
        self.settle()
        txn = data.draw(st.sampled_from(self.txns))
        found = self.scanning(start, end, limit, txn.snapshot)
        if found is not None:
            txn.ranges.append((start, end))

    @precondition(lambda self: self.txns)
    @rule(data=st.data(), writes=writes, author=authors, drawn=lives, is_wanted=st.sampled_from([True, True, False]))
    @counted
    def end_a_txn(self, data: st.DataObject, writes: Writes, author: Author, drawn: LifeDrawn, is_wanted: bool) -> None:
        txn = data.draw(st.sampled_from(self.txns))
        if is_wanted:
            self.committing(writes, txn.reads, txn.ranges, txn.snapshot, author, drawn)
        self.txns.remove(txn)
        if txn.pinned:
            self.store.unpin(txn.snapshot)
            self.pins[txn.snapshot] -= 1
            self.pins += Counter()  # forget those at zero
            self.promised &= self.pins.keys()

    @rule(chosen=st.lists(keys, min_size=1, max_size=4, unique=True), data=st.data(), author=authors)
    @counted
    def roll_back(self, chosen: list[str], data: st.DataObject, author: Author) -> None:
        """Give keys the values of a version, if nobody has changed them meanwhile."""
        self.settle()
        at = data.draw(st.integers(self.model.oldest, self.model.version))
        then = self.fetching(chosen, at)
        assert then is not None
        reads = {key: self.model.seen(key, self.model.version) for key in chosen}
        self.committing({key: value for key, (value, _, _) in zip(chosen, then, strict=True)}, reads, [], 0, author)
        after = self.store.get_many(chosen)
        self.gets += len(chosen)
        assert after == [self.model.snapshots[at].get(key, (None, 0))[0] for key in chosen]

    # ------------------------------------------------------------------ time

    @rule(us=st.integers(1, 120))
    @counted
    def time_passes(self, us: int) -> None:
        self.wall += us
        self.even += us

    @rule(us=st.integers(-3_000, 3_000))
    @counted
    def the_wall_clock_is_set(self, us: int) -> None:
        self.wall += us

    @precondition(lambda self: self.timer is not None)
    @rule()
    @counted
    def the_timer_fires(self) -> None:
        """A service that looks when it was told to, and nobody else asks."""
        assert self.timer is not None
        self.even = max(self.even, self.timer)
        self.timer = None
        self.settle()
        due_us = self.database.next_look_us()
        if self.timer is None and due_us is not None:
            self.timer = self.even + due_us

    @rule(limits=window_limits)
    @counted
    def change_limits(self, limits: WindowLimits) -> None:
        self.store.window.limits = limits
        if limits.max_pinned_bytes < wide:
            self.promised.clear()

    @rule()
    @counted
    def tidy(self) -> None:
        self.model.advance(self.wall)
        while self.database.tidy(3):
            pass
        self.forgetting()
        window, limits = self.store.window, self.store.window.limits
        if not self.pins:
            assert window.bytes <= limits.max_bytes
            assert window.commits <= limits.max_commits
        assert window.bytes <= max(limits.max_bytes, limits.max_pinned_bytes)

    # ------------------------------------------------------------------ reading

    def fetching(self, chosen: list[str], at: int | None) -> list[tuple[bytes | None, int, int | None]] | None:
        snapshot = self.model.snapshots[self.model.version if at is None else at]

        def wanted() -> list[tuple[bytes | None, int, int | None]]:
            if at is not None and at < self.model.oldest:
                raise Gone
            self.gets += len(chosen)
            deadlines = self.model.deadlines if at is None else {}
            return [(*snapshot.get(key, (None, 0)), deadlines.get(key)) for key in chosen]

        return self.same_refusal(lambda: self.store.fetch(chosen, at), wanted)

    def scanning(self, start: str, end: str | None, limit: int, at: int) -> list[tuple[str, bytes | None, int]] | None:
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
            return [(key, *snapshot[key]) for key in sorted(snapshot) if start <= key and (end is None or key < end)]

        return self.same_refusal(all_pages, wanted)

    @rule(chosen=st.lists(keys, max_size=4), data=st.data())
    @counted
    def fetch(self, chosen: list[str], data: st.DataObject) -> None:
        self.settle()
        self.fetching(chosen, data.draw(st.none() | st.integers(0, self.model.version)))
        for key in chosen:
            left = None if key not in self.model.deadlines else self.model.deadlines[key] - self.even
            assert self.database.time_to_live_us(key) == left
            assert left is None or left > 0, "a key that is due is still there"

    @rule(key=keys, limit=st.integers(1, 4), max_bytes=st.sampled_from([1, 200, wide]))
    @counted
    def history(self, key: str, limit: int, max_bytes: int) -> None:
        self.settle()
        found, before = [], None
        while page := versions(self.store, key, limit, before, max_bytes):
            assert len(page) <= limit
            found += [(each.version, each.value, each.time, each.author) for each in page]
            before = page[-1].version
        changed = self.model.changed(key)
        newer = [version for version in changed if version > self.model.oldest]
        wanted = newer + changed[len(newer) : len(newer) + 1]  # and the one that is seen from the oldest version
        told = [(version, self.model.commits[version].writes[key], *self.model.told(version)) for version in wanted]
        if told and len(found) < len(told) and told[-1][0] <= self.model.oldest and told[-1][1] is None:
            told.pop()  # an old deletion, which may be forgotten
        assert found == told

    @rule(data=st.data(), limit=st.integers(1, 6))
    @counted
    def log(self, data: st.DataObject, limit: int) -> None:
        self.settle()
        model = self.model
        from_version = data.draw(st.none() | st.integers(0, model.version + 1))

        def told() -> list[tuple[object, ...]]:
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

        self.same_refusal(told, wanted)

    @rule(data=st.data(), off_us=st.integers(-3, 3))
    @counted
    def version_at(self, data: st.DataObject, off_us: int) -> None:
        self.settle()
        time = data.draw(st.sampled_from([each.time for each in self.model.commits])) + off_us
        if time >= 0:
            self.same_refusal(lambda: self.store.window.version_at(time), lambda: self.model.version_at(time))

    # ------------------------------------------------------------------ after each step

    @invariant()
    def the_counters_are_exact(self) -> None:
        self.forgetting()
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
        self.forgetting()
        for version in range(self.model.oldest, self.model.version + 1):
            snapshot = self.model.snapshots[version]
            found = [head and (head.value, head.version) for head in self.store._heads_at(KEYS, version)]
            seen = {key: item for key, item in zip(KEYS, found, strict=True) if item and item[0] is not None}
            assert seen == snapshot

    @invariant()
    def what_is_pinned_can_be_read(self) -> None:
        assert self.store.window.oldest_readable <= min(self.promised, default=self.model.version)

    @invariant()
    def lives_are_those_of_the_model(self) -> None:
        lifetimes = self.store.lifetimes
        assert lifetimes.deadlines == self.model.deadlines
        assert lifetimes._owners == self.model.owners
        if self.model.deadlines:
            assert self.timer is not None
            assert self.timer <= min(self.model.deadlines.values()), "nobody looks in time"

    @invariant()
    def ids_are_remembered_as_far_as_promised(self) -> None:
        assert len(self.database.outcomes) == len(self.model.outcomes)


RULES = [
    "set", "set_plainly", "set_each", "replace_each", "delete", "increment", "touch", "bury", "send_with_id",
    "send_many_with_ids", "commit_blindly", "commit_whatever", "begin", "read_in_a_txn", "scan_in_a_txn", "end_a_txn",
    "roll_back", "time_passes", "the_wall_clock_is_set", "the_timer_fires", "change_limits", "tidy", "fetch", "history",
    "log", "version_at",
]  # fmt: skip
OUTCOMES = [
    "answered again", "buried", "committed with reads", "conflict", "done once", "expired", "many done once",
    "not a number", "outcome unknown", "range at a snapshot gone", "snapshot gone",
]  # fmt: skip


def test_the_database_is_a_dict_for_each_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvd.store.keyspace.FIRST_KEYS", 4)
    monkeypatch.setattr("kvd.store.index.BLOCK_KEYS", 2)
    monkeypatch.setattr(store_module, "SCAN_VISITS", 5)
    monkeypatch.setattr(store_module, "PENDING_KEYS", 3)
    monkeypatch.setattr(store_module, "DROP_BUDGET_KEYS", 2)
    monkeypatch.setattr(window_module, "_COMPACT_PLACES", 4)
    monkeypatch.setattr(lifetimes_module, "_MOST_STALE", 2)
    monkeypatch.setattr(isolation, "COMMITTED_KEYS", 4)
    monkeypatch.setattr(database_module, "EXPIRED_KEYS", EXPIRED_TOGETHER)
    fired.clear()
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=HISTORIES, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    print(f"{HISTORIES} histories:", dict(sorted(fired.items())))
    assert sorted(fired) == sorted(RULES + OUTCOMES)
    floor = PER_HISTORY * HISTORIES
    assert {name: times for name, times in fired.items() if times < floor} == {}
