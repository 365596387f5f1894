"""Keys expire exactly at their deadlines, by the even clock alone, in commits that every client can see."""

from typing import TYPE_CHECKING

import pytest

from kvd.engine import expiry as expiry_module
from kvd.engine.database import Database
from kvd.store.authors import EXPIRED, Author
from kvd.store.errors import Conflict, NotANumber
from kvd.store.history import commits_from, versions
from kvd.store.lifetimes import KEEP_TTL
from tests.harness.in_memory import deadlines_us

if TYPE_CHECKING:
    from tests.engine.conftest import Clocks

ME = Author(1, 2, "me")
SECOND = 1_000_000


def set_for(database: Database, ttl_us: int, *keys: str) -> None:
    database.set(dict.fromkeys(keys, b"x"), ME, database.expiry(ttl_us, keep=False, owner=None))


def seen(database: Database, *keys: str) -> str:
    """Return those of ``keys`` that a read finds after what is due has expired, as before every request."""
    database.expire_all_due()
    values = database.store.get_many(list(keys))
    return "".join(key for key, value in zip(keys, values, strict=True) if value is not None)


def test_a_key_exists_until_its_deadline(database: Database, clocks: "Clocks") -> None:
    set_for(database, SECOND, "a")
    clocks.advance(SECOND - 1)
    assert (seen(database, "a"), database.time_to_live_us("a")) == ("a", 1)
    clocks.advance(1)
    assert (database.time_to_live_us("a"), seen(database, "a")) == (0, "")


@pytest.mark.parametrize("jump_us", [-(10**15), -1, 1, 10**15], ids=["far back", "back", "ahead", "far ahead"])
def test_a_jump_of_the_wall_clock_moves_no_deadline(database: Database, clocks: "Clocks", jump_us: int) -> None:
    set_for(database, SECOND, "a", "b")
    clocks.wall_us += jump_us
    set_for(database, SECOND, "c")
    database.touch(["b"], 2 * SECOND, ME)
    assert [database.time_to_live_us(key) for key in "abc"] == [SECOND, 2 * SECOND, SECOND]
    clocks.even_us += SECOND - 1
    assert seen(database, *"abc") == "abc"
    clocks.even_us += 1
    assert seen(database, *"abc") == "b"
    clocks.wall_us -= jump_us
    assert seen(database, *"abc") == "b"


def test_commit_times_never_go_back_including_those_of_expiries(database: Database, clocks: "Clocks") -> None:
    set_for(database, SECOND // 2, "a")
    clocks.wall_us -= 500
    database.set({"b": b""}, ME)
    clocks.even_us += SECOND // 2
    database.expire_all_due()
    clocks.wall_us += 800
    database.delete(["b"], ME, missing_ok=False)
    times = [commit.time for commit in commits_from(database.store, 0, 10, 10**6)]
    assert times == [1_000_000, 1_000_000, 1_000_000, 1_000_300]


def test_an_expiry_is_a_commit_in_the_history_and_in_the_log(database: Database, clocks: "Clocks") -> None:
    set_for(database, SECOND, "a", "b")
    database.set({"c": b""}, ME)
    clocks.advance(SECOND)
    assert database.store.version == 2, "no request has come yet"
    database.expire_all_due()
    commit = commits_from(database.store, 3, 10, 10**6)
    assert [(each.version, each.time, each.author) for each in commit] == [(3, 2_000_000, EXPIRED)]
    assert sorted(commit[0].keys) == ["a", "b"]
    found = versions(database.store, "a", 10, None, 10**6)
    assert [(each.version, each.value, each.author) for each in found] == [(3, None, EXPIRED), (1, b"x", ME)]
    assert database.store.get_many(["a", "b"], at=2) == [b"x", b"x"]


def test_a_transaction_that_read_a_key_before_it_expired_conflicts(database: Database, clocks: "Clocks") -> None:
    set_for(database, SECOND, "a")
    clocks.advance(SECOND)
    database.expire_all_due()
    with pytest.raises(Conflict) as refused:
        database.commit({"b": b""}, {"a": 1}, [], 0, ME)
    assert [(change.key, change.found, change.author) for change in refused.value.changes] == [("a", 0, EXPIRED)]


def test_keys_that_are_due_together_expire_in_commits_of_a_bounded_size(
    database: Database, clocks: "Clocks", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry_module, "EXPIRED_KEYS", 10)
    set_for(database, SECOND, *(f"{number:02}" for number in range(25)))
    set_for(database, SECOND + 1, "later")
    clocks.advance(SECOND)
    database.expire_all_due()
    assert [len(commit.keys) for commit in commits_from(database.store, 3, 10, 10**6)] == [10, 10, 5]
    assert database.store.counters.keys == 1


def test_expiring_when_no_key_is_due_commits_nothing(database: Database, clocks: "Clocks") -> None:
    database.expire_all_due()
    set_for(database, SECOND, "a", "deleted", "endless", "later")
    database.delete(["deleted"], ME, missing_ok=False)
    database.set({"endless": b""}, ME)
    database.touch(["later"], 2 * SECOND, ME)
    version = database.store.version
    clocks.advance(SECOND - 1)
    database.expire_all_due()
    assert database.store.version == version
    clocks.advance(1)
    database.expire_all_due()
    assert commits_from(database.store, version + 1, 10, 10**6)[0].keys == ["a"]
    database.expire_all_due()
    assert database.store.version == version + 1


def test_a_ttl_counts_from_the_write(database: Database, clocks: "Clocks") -> None:
    expiry = database.expiry(SECOND, keep=True, owner="me")
    assert (expiry.deadline, expiry.keep, expiry.owner) == (clocks.even_us + SECOND, True, "me")
    assert database.expiry(None, keep=False, owner=None).deadline is None


def test_every_kind_of_write_may_give_a_deadline(database: Database, clocks: "Clocks") -> None:
    def expiry() -> object:
        return database.expiry(SECOND, keep=False, owner=None)

    database.set({"a": b""}, ME, expiry())  # type: ignore[arg-type]
    database.commit({"b": b""}, {}, [], 0, ME, expiry())  # type: ignore[arg-type]
    database.increment("c", 1, ME, expiry())  # type: ignore[arg-type]
    database.set({"d": b""}, ME)
    database.touch(["d"], SECOND, ME)
    assert [database.time_to_live_us(key) for key in "abcd"] == [SECOND] * 4
    clocks.advance(SECOND)
    assert seen(database, *"abcd") == ""


def test_a_kept_ttl_goes_on_and_a_touched_one_starts_again(database: Database, clocks: "Clocks") -> None:
    set_for(database, SECOND, "a", "b", "c")
    clocks.advance(SECOND // 2)
    database.set({"a": b"kept"}, ME, KEEP_TTL)
    database.increment("n", 1, ME, database.expiry(SECOND, keep=False, owner=None))
    database.increment("n", 1, ME)
    database.touch(["b"], SECOND, ME)
    database.touch(["c"], None, ME)
    assert [database.time_to_live_us(key) for key in "abcn"] == [SECOND // 2, SECOND, None, SECOND]


def test_a_refused_write_sets_no_deadline(database: Database) -> None:
    set_for(database, SECOND, "a")
    expiry = database.expiry(None, keep=False, owner="me")
    with pytest.raises(NotANumber):
        database.increment("a", 1, ME, expiry)
    with pytest.raises(Conflict):
        database.commit({"a": b""}, {"a": 0}, [], 0, ME, expiry)
    assert (database.time_to_live_us("a"), database.count_owned("me")) == (SECOND, 0)


# ---------------------------------------------------------------------- when the timer is set


def test_the_timer_is_set_anew_for_each_deadline_that_comes_first(database: Database, clocks: "Clocks") -> None:
    def timers() -> list[int]:
        return deadlines_us(database)

    database.set({"endless": b""}, ME)
    assert (timers(), database.next_look_us()) == ([], None)
    set_for(database, 50, "a")
    set_for(database, 80, "later")
    assert timers() == [50]
    clocks.advance(10)
    set_for(database, 30, "b")
    database.touch(["endless"], 20, ME)
    database.increment("n", 1, ME, database.expiry(10, keep=False, owner=None))
    database.commit({"c": b""}, {}, [], 0, ME, database.expiry(5, keep=False, owner=None))
    assert timers() == [50, 30, 20, 10, 5]
    assert [call.is_cancelled for call in clocks.scheduler.calls_of(database.expirer)] == [True] * 4 + [False]
    assert database.next_look_us() == 5


def test_after_an_expiry_the_timer_is_set_for_the_next_deadline(database: Database, clocks: "Clocks") -> None:
    for ttl_us in (10, 20, 40):
        set_for(database, ttl_us, str(ttl_us))
    clocks.advance(10)
    database.expire_all_due()
    assert deadlines_us(database) == [10, 10]
    clocks.advance(35)
    database.expire_all_due()
    assert (deadlines_us(database), database.next_look_us()) == ([10, 10], None)


def test_looking_only_when_the_database_asks_expires_every_key_on_time(database: Database, clocks: "Clocks") -> None:
    """The timer knows only when the database asks for it; keys whose deadline was moved make it look in vain."""
    set_for(database, 10, "a", "b")
    set_for(database, 25, "c")
    database.touch(["b"], 30, ME)
    expired: dict[int, list[str]] = {}
    start_us = clocks.even_us
    while (wait_us := database.next_look_us()) is not None:
        clocks.advance(wait_us)
        version = database.store.version
        database.expire_all_due()
        for commit in commits_from(database.store, version + 1, 10, 10**6):
            expired[clocks.even_us - start_us] = commit.keys
    assert expired == {10: ["a"], 25: ["c"], 30: ["b"]}
