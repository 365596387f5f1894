"""What happens around a commit: validation, exactly-once, the end of ephemeral keys, and which watches are woken."""

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from kvd.engine import commit as commit_module
from kvd.engine.burial import BURIED_KEYS
from kvd.engine.database import Database
from kvd.store.authors import EXPIRED, Author
from kvd.store.errors import Conflict, KeysNotFound, NotANumber, OutcomeUnknown, SnapshotGone
from kvd.store.history import commits_from, newest_commits
from kvd.store.prefixes import PrefixRule, PrefixRules
from kvd.store.window import WindowLimits
from tests.store.deadlines import all_deadlines

if TYPE_CHECKING:
    from tests.engine.conftest import Clocks

ME, YOU = Author(1, 2, "me"), Author(3, 4, "you")
FIRST, SECOND = b"1" * 16, b"2" * 16


def everything(database: Database) -> tuple[object, ...]:
    """Return all that a refused write must not change."""
    store, lifetimes = database.store, database.store.lifetimes
    counters = [getattr(store.counters, name) for name in store.counters.__slots__]
    items = store.scan("", None, 10**6).items
    return store.version, counters, items, store.window.commits, all_deadlines(lifetimes), len(database.outcomes)


# ---------------------------------------------------------------------- commits


def test_a_transaction_commits_if_its_reads_are_unchanged(database: Database) -> None:
    database.set({"a": b"1", "b": b"1"}, ME)
    assert database.commit({"a": b"2", "b": None}, {"a": 1, "no": 0}, [("a", "c")], 1, YOU) == 2
    assert database.store.get_many(["a", "b"]) == [b"2", None]
    assert newest_commits(database.store, 1, 1)[0].author == YOU


def test_a_transaction_whose_reads_have_changed_writes_nothing(database: Database) -> None:
    database.set({"a": b"1"}, ME)
    database.set({"a": b"2"}, ME)
    before = everything(database)
    for reads, ranges in (({"a": 1}, []), ({"a": 2, "b": 7}, []), ({}, [("", None)])):
        with pytest.raises(Conflict):
            database.commit({"a": b"3", "b": b"3"}, reads, ranges, 1, YOU, database.expiry(5, keep=False, owner="me"))
    assert everything(database) == before


def test_a_transaction_without_writes_only_validates(database: Database) -> None:
    database.set({"a": b"1"}, ME)
    before = everything(database)
    assert database.commit({}, {"a": 1}, [("", None)], 1, ME) == 1
    with pytest.raises(Conflict):
        database.commit({}, {"a": 0}, [], 0, ME)
    assert everything(database) == before


def test_a_range_read_at_a_dropped_snapshot_is_refused(clocks: "Clocks") -> None:
    database = clocks.database(WindowLimits(max_commits=0))
    for _ in range(3):
        database.set({"a": b"1"}, ME)
    before = everything(database)
    with pytest.raises(SnapshotGone):
        database.commit({"b": b""}, {}, [("b", None)], 1, ME)
    assert everything(database) == before


def test_write_skew_is_refused(database: Database) -> None:
    """Two doctors are on call, and each of them signs off because the other one is there."""
    database.set({"doctor/a": b"on call", "doctor/b": b"on call"}, ME)
    reads = {"doctor/a": 1, "doctor/b": 1}
    database.commit({"doctor/a": None}, reads, [], 1, ME)
    with pytest.raises(Conflict) as refused:
        database.commit({"doctor/b": None}, reads, [], 1, YOU)
    assert [(change.key, change.author) for change in refused.value.changes] == [("doctor/a", ME)]


# ---------------------------------------------------------------------- exactly once


def test_a_write_that_is_sent_again_gets_its_first_answer_and_is_not_repeated(database: Database) -> None:
    answers = [database.run_once(1, FIRST, 0, lambda: database.increment("n", 5, ME)) for _ in range(3)]
    assert answers == [(5, 1)] * 3
    assert (database.store.get("n"), database.store.version) == (b"5", 1)
    assert database.run_once(1, SECOND, 0, lambda: database.increment("n", 5, ME)) == (10, 2)


def test_the_first_answer_survives_later_writes(database: Database) -> None:
    database.run_once(1, FIRST, 0, lambda: database.set({"a": b"mine"}, ME))
    database.set({"a": b"theirs"}, YOU)
    assert database.run_once(1, FIRST, 0, lambda: database.set({"a": b"mine"}, ME)) == 1
    assert database.store.get("a") == b"theirs"


def test_the_same_id_of_another_user_is_another_id(database: Database) -> None:
    assert database.run_once(1, FIRST, 0, lambda: database.increment("n", 1, ME)) == (1, 1)
    assert database.run_once(None, FIRST, 0, lambda: database.increment("n", 1, ME)) == (2, 2)


def test_a_refused_write_is_not_remembered_and_may_be_tried_again(database: Database) -> None:
    for refused in (
        lambda: database.increment("text", 1, ME),
        lambda: database.delete(["missing"], ME, missing_ok=False),
        lambda: database.commit({"a": b""}, {"text": 0}, [], 0, ME),
    ):
        database.set({"text": b"none"}, ME)
        with pytest.raises((NotANumber, KeysNotFound, Conflict)):
            database.run_once(1, FIRST, 0, refused)
        assert len(database.outcomes) == 0
    assert database.run_once(1, FIRST, 0, lambda: database.set({"a": b""}, ME)) == 4


def test_a_write_that_changes_nothing_is_not_remembered(database: Database) -> None:
    assert database.run_once(1, FIRST, 0, lambda: database.touch(["missing"], 5, ME)) == [False]
    assert database.run_once(1, FIRST, 0, lambda: database.delete(["missing"], ME, missing_ok=True)) == (0, 0)
    assert len(database.outcomes) == 0


def test_a_forgotten_id_is_refused_as_unknown(database: Database) -> None:
    database.outcomes.limit = 1
    database.run_once(1, FIRST, 0, lambda: database.increment("n", 1, ME))
    database.run_once(1, SECOND, 0, lambda: database.increment("n", 1, ME))
    with pytest.raises(OutcomeUnknown) as refused:
        database.run_once(1, FIRST, 0, lambda: database.increment("n", 1, ME))
    assert (refused.value.version, database.store.get("n")) == (2, b"2")
    assert database.run_once(1, FIRST, 2, lambda: database.increment("n", 1, ME)) == (3, 3)


def test_an_id_from_a_version_that_does_not_exist_is_refused(database: Database) -> None:
    with pytest.raises(OutcomeUnknown):
        database.run_once(1, FIRST, 1, lambda: database.set({"a": b""}, ME))
    assert database.store.version == 0


# ---------------------------------------------------------------------- many writes with ids at once


def test_a_batch_of_writes_with_ids_is_remembered_write_by_write(database: Database) -> None:
    ids: list[tuple[bytes, int | None]] = [(FIRST, 0), (SECOND, None)]
    assert database.set_each_once(1, ids, [{"a": b"1"}, {"b": b"2"}], ME) == [1, 2]
    assert database.run_once(1, FIRST, 0, lambda: database.set({"a": b"again"}, ME)) == 1
    assert database.run_once(1, SECOND, 0, lambda: database.set({"b": b"again"}, ME)) == 2
    assert database.store.get_many(["a", "b"]) == [b"1", b"2"]


@pytest.mark.parametrize(
    ("ids", "batch"),
    [
        ([(FIRST, 0), (SECOND, 0)], [{"a": b"new"}, {"b": b"new"}]),  # SECOND has committed
        ([(FIRST, 0), (FIRST, 0)], [{"a": b"new"}, {"b": b"new"}]),
        ([(FIRST, 9)], [{"a": b"new"}]),  # a version that is not this store's
        ([(FIRST, 0), (b"3" * 16, 0)], [{"a": b"new"}, {}]),  # which would be no commit
    ],
    ids=["one has committed", "the same twice", "outcome unknown", "one of nothing"],
)
def test_a_batch_with_a_doubtful_id_changes_nothing(
    ids: list[tuple[bytes, int | None]], batch: list[dict[str, bytes]], database: Database
) -> None:
    database.run_once(1, SECOND, 0, lambda: database.set({"x": b""}, ME))
    before = everything(database)
    assert database.set_each_once(1, ids, batch, ME) is None
    assert everything(database) == before


# ---------------------------------------------------------------------- the end of an owner


def test_the_keys_of_an_owner_are_deleted_with_it(database: Database) -> None:
    expiry = database.expiry(None, keep=False, owner="session")
    database.set({"a": b"1", "b": b"2"}, ME, expiry)
    database.set({"c": b"3"}, ME)
    assert database.count_owned("session") == 2
    database.delete_owned("session", ME)
    assert (database.store.get_many(["a", "b", "c"]), database.count_owned("session")) == ([None, None, b"3"], 0)
    (commit,) = commits_from(database.store, 3, 10, 10**6)
    assert (commit.author, sorted(commit.keys)) == (ME, ["a", "b"])


def test_the_end_of_an_owner_without_keys_is_no_commit(database: Database) -> None:
    database.set({"a": b""}, ME, database.expiry(None, keep=False, owner="session"))
    database.set({"a": b"another's now"}, YOU)
    database.delete_owned("session", ME)
    database.delete_owned("without keys", ME)
    assert (database.store.version, database.store.get("a")) == (2, b"another's now")


def test_an_owned_key_that_is_due_expires_before_its_owner_ends(database: Database, clocks: "Clocks") -> None:
    database.set({"due": b""}, ME, database.expiry(10, keep=False, owner="session"))
    database.set({"not due": b""}, ME, database.expiry(99, keep=False, owner="session"))
    clocks.advance(10)
    database.delete_owned("session", ME)
    commits = [(commit.author, commit.keys) for commit in commits_from(database.store, 3, 10, 10**6)]
    assert commits == [(EXPIRED, ["due"]), (ME, ["not due"])]
    assert all_deadlines(database.store.lifetimes) == {}


# ---------------------------------------------------------------------- who is woken


def test_every_commit_wakes_watches_including_expiries_and_ends_of_owners(database: Database, clocks: "Clocks") -> None:
    woken: list[int] = []
    database.wakeups.add("watch", lambda: woken.append(database.visible))
    database.set({"a": b"1"}, ME, database.expiry(10, keep=False, owner=None))
    database.set({"b": b"1"}, ME, database.expiry(None, keep=False, owner="session"))
    database.set_each([{"c": b"1"}, {"d": b"1"}], ME)
    database.increment("n", 1, ME)
    database.touch(["c"], None, ME)
    database.commit({"d": None}, {}, [], 0, ME)
    database.delete(["c"], ME, missing_ok=False)
    clocks.advance(10)
    database.expire_all_due()
    database.delete_owned("session", ME)
    assert woken == [1, 2, 4, 5, 6, 7, 8, 9, 10]


def test_a_refused_write_wakes_no_watch(database: Database) -> None:
    woken: list[None] = []
    database.wakeups.add("watch", lambda: woken.append(None))
    with pytest.raises(KeysNotFound):
        database.delete(["a"], ME, missing_ok=False)
    with pytest.raises(Conflict):
        database.commit({"a": b""}, {"a": 1}, [], 0, ME)
    assert woken == []


def test_the_first_commit_of_an_empty_history_starts_its_upkeep_once(database: Database, clocks: "Clocks") -> None:
    assert not database.upkeep.is_armed
    database.set({"a": b""}, ME)
    database.set({"a": b""}, ME)
    assert (len(clocks.scheduler.calls_of(database.upkeep)), database.upkeep.is_armed) == (1, True)


def test_growth_is_reported_each_time_the_store_has_grown_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_module, "GROWTH_KEYS", 10)
    woken: list[int] = []
    database = Database(on_growth=lambda: woken.append(database.store.counters.keys))
    for number in range(35):
        database.set({str(number): b""}, ME)
    assert woken == [10, 20, 30]


# ---------------------------------------------------------------------- history that grows old, and figures


def test_old_history_is_dropped_without_any_writes(clocks: "Clocks") -> None:
    database = clocks.database(WindowLimits(max_age_us=100))
    assert database.upkeep.due_us() is None
    for value in (b"1", b"2", b"3"):
        database.set({"a": value}, ME)
        clocks.advance(30)
    assert database.upkeep.due_us() == 10
    clocks.advance(10)
    assert (database.upkeep.drop_old(100), database.store.window.commits) == (False, 3), "none is too old"
    clocks.advance(31)
    database.upkeep.drop_old(100)
    assert (database.store.window.commits, database.upkeep.due_us()) == (1, 29)
    clocks.wall_us -= 10**9
    database.upkeep.drop_old(100)
    assert (database.store.window.commits, database.store.get("a")) == (1, b"3"), "setting the clock back drops nothing"


def test_a_prefix_with_a_shorter_history_needs_no_request_to_forget_however_far_apart_its_commits_are(
    clocks: "Clocks",
) -> None:
    """The look at the first commit finds nothing else to come, and must not put the next look off for an hour."""
    database = clocks.database(WindowLimits(max_age_us=3_600_000_000))
    database.memory.set_rules(PrefixRules([PrefixRule(prefix="cache/", history_ms=100)]))

    def let_pass(ms: int) -> None:
        for _ in range(ms):
            clocks.advance(1_000)
            clocks.scheduler.advance(0.001)

    read = database.store.get_many
    for number, value in enumerate((b"1", b"2", b"3")):
        version = database.set({"cache/a": value, "b": value}, ME)
        let_pass(50)
        if number:
            assert read(["cache/a", "b"], version - 1) == [b"%d" % number] * 2, "not older than it may be"
        let_pass(150)
    for old in (1, 2):
        assert read(["b"], old) == [b"%d" % old]
        with pytest.raises(SnapshotGone):
            read(["cache/a"], old)
    assert database.store.get("cache/a") == b"3"


def test_the_metrics_are_exact_and_begin_with_those_of_the_original_daemon(
    database: Database, clocks: "Clocks"
) -> None:
    database.set({"a": b"123", "b": b"45"}, ME)
    database.set({"c": b"6"}, ME, database.expiry(10, keep=False, owner=None))
    database.store.get_many(["a", "no"])
    database.touch(["a"], None, ME)
    database.delete(["b"], ME, missing_ok=False)
    metrics = database.metrics()
    assert metrics[:5] == [
        ("keys_stored", 2), ("value_bytes_stored", 4), ("set_operations", 4), ("get_operations", 2),
        ("delete_operations", 1),
    ]  # fmt: skip
    assert dict(metrics[5:]) == {
        "version": 4, "oldest_readable_version": 0, "history_commits": 4, "keys_with_deadline": 1,
        "history_bytes": database.store.window.bytes, "memory_bytes": database.memory.used_bytes(),
        "memory_bytes_max": 0, "expired_keys": 0, "evicted_keys": 0,
    }  # fmt: skip
    clocks.advance(10)
    database.expire_all_due()
    assert dict(database.metrics())["keys_with_deadline"] == 0
    assert dict(database.metrics())["expired_keys"] == 1


def test_very_many_ephemeral_keys_end_in_many_turns_and_a_few_at_once(database: Database, clocks: "Clocks") -> None:
    for owner, count in (("many", 3 * BURIED_KEYS + 5), ("more", 2 * BURIED_KEYS), ("few", 5)):
        keys = {f"{owner}{number}": b"x" for number in range(count)}
        database.set(keys, ME, database.expiry(None, keep=False, owner=owner))
    clocks.scheduler.calls.clear()
    left = [database.store.counters.keys]
    for owner in ("many", "more", "few"):
        database.delete_owned(owner, ME)
        left.append(database.store.counters.keys)
    while calls := [call for call in clocks.scheduler.calls if call.delay_s == 0]:
        assert len(calls) == 1
        clocks.scheduler.calls.clear()
        calls[0].run()
        left.append(database.store.counters.keys)
    at_once, later = [BURIED_KEYS, BURIED_KEYS, 5], [BURIED_KEYS] * 3 + [5]
    assert [before - after for before, after in pairwise(left)] == at_once + later
    assert not database.store.lifetimes
