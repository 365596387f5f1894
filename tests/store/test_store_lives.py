"""The store's writes beyond set and delete: mixed ones, numbers, and keys with deadlines or owners."""

import pytest

from kvd.store.authors import EXPIRED, NO_AUTHOR, Author
from kvd.store.errors import NotANumber, SnapshotGone, VersionAhead
from kvd.store.history import newest_commits
from kvd.store.lifetimes import KEEP_TTL, Expiry
from kvd.store.store import Store
from kvd.store.window import WindowLimits
from tests.store.deadlines import all_deadlines

ME, YOU = Author(1, 2, "me"), Author(3, 4, "you")
MOST = 2**63 - 1


def counters(store: Store) -> dict[str, int]:
    return {name: getattr(store.counters, name) for name in store.counters.__slots__}


def deadlines(store: Store, *keys: str) -> list[int | None]:
    return [deadline for _, _, deadline in store.fetch(list(keys))]


def last_commit(store: Store) -> tuple[int, Author, list[str]]:
    commit = newest_commits(store, 1, 1)[0]
    return commit.version, commit.author, commit.keys


# ---------------------------------------------------------------------- write


def test_a_write_stores_and_deletes_in_one_commit() -> None:
    store = Store()
    store.set({"a": b"1", "b": b"22"})
    assert store.write({"a": None, "b": b"333", "c": b"4"}, YOU) == 2
    assert store.get_many(["a", "b", "c"]) == [None, b"333", b"4"]
    assert store.get_many(["a", "b", "c"], at=1) == [b"1", b"22", None]
    assert (last_commit(store)[:2], sorted(last_commit(store)[2])) == ((2, YOU), ["a", "b", "c"])
    store.counters.get_operations = 0
    assert counters(store) == {
        "keys": 2, "value_bytes": 4, "set_operations": 4, "get_operations": 0, "delete_operations": 1,
            "expired_keys": 0, "evicted_keys": 0,
    }  # fmt: skip


def test_a_write_ignores_missing_keys_that_it_would_delete() -> None:
    store = Store()
    store.set({"was": b"1"})
    store.delete(["was"])
    assert store.write({"never": None, "was": None}) == store.write({}) == 2
    assert store.write({"never": None, "a": b"1"}) == 3
    assert last_commit(store) == (3, NO_AUTHOR, ["a"])
    assert store.counters.delete_operations == 1


def test_a_write_sets_the_deadlines_of_the_keys_it_stores_and_clears_those_it_deletes() -> None:
    store = Store()
    store.set({"a": b"", "b": b"", "c": b""}, ME, Expiry(deadline=10, owner="me"))
    store.write({"a": None, "b": b"", "d": b""}, ME, Expiry(deadline=20, owner="you"))
    assert deadlines(store, "a", "b", "c", "d") == [None, 20, 10, 20]
    assert (store.lifetimes.owned("me"), sorted(store.lifetimes.owned("you"))) == (["c"], ["b", "d"])


# ---------------------------------------------------------------------- increment


def test_an_absent_key_counts_as_0() -> None:
    store = Store()
    assert [store.increment("n", 5), store.increment("n", -7, YOU)] == [(5, 1), (-2, 2)]
    store.delete(["n"])
    assert store.increment("n", 0) == (0, 4)
    assert store.get("n") == b"0"
    assert last_commit(store) == (4, NO_AUTHOR, ["n"])


def test_a_number_is_stored_as_plain_decimal_text() -> None:
    store = Store()
    store.set({"n": b"+007"})
    store.increment("n", 1)
    assert store.get("n") == b"8"


@pytest.mark.parametrize(
    ("value", "by"),
    [(b"", 1), (b"seven", 1), (b"%d" % MOST, 1), (b"%d" % -MOST, -2), (b"%d" % (MOST + 1), -1), (b"1" * 30, 0)],
)
def test_a_value_that_is_not_a_number_and_a_sum_that_is_too_large_are_refused_without_a_change(
    value: bytes, by: int
) -> None:
    store = Store()
    store.set({"n": value}, ME, Expiry(deadline=10))
    before = counters(store)
    with pytest.raises(NotANumber) as refused:
        store.increment("n", by, YOU, Expiry(deadline=99))
    assert refused.value.key == "n"
    assert (store.version, counters(store), store.fetch(["n"])) == (1, before, [(value, 1, 10)])


def test_the_whole_range_of_64_bits_is_reached() -> None:
    store = Store()
    assert store.increment("n", MOST)[0] == MOST
    assert store.increment("n", -(2**63))[0] == -1
    assert store.increment("n", -MOST)[0] == -(2**63)


def test_an_increment_keeps_the_deadline_of_its_key_unless_another_is_given() -> None:
    store = Store()
    store.set({"n": b"1"}, ME, Expiry(deadline=10, owner="me"))
    store.increment("n", 1)
    assert (deadlines(store, "n"), store.lifetimes.owned("me")) == ([10], ["n"])
    store.increment("n", 1, ME, Expiry(deadline=20))
    assert (deadlines(store, "n"), store.lifetimes.owned("me")) == ([20], [])


# ---------------------------------------------------------------------- deadlines and owners


def test_a_plain_write_clears_the_deadlines_of_its_keys() -> None:
    store = Store()
    for write in (
        lambda: store.set({"a": b"2"}),
        lambda: store.set_each([{"a": b"2"}]),
        lambda: store.set_each([{"a": b"2"}, {"b": b"2"}]),
        lambda: store.set_each([{"a": b"2", "new": b""}]),
        lambda: store.write({"a": b"2"}),
    ):
        store.set({"a": b"1", "b": b"1"}, ME, Expiry(deadline=10, owner="me"))
        write()
        assert (deadlines(store, "a"), "a" in store.lifetimes.owned("me")) == ([None], False)


def test_a_write_that_keeps_deadlines_gives_its_own_to_new_keys_only() -> None:
    store = Store()
    store.set({"old": b""}, ME, Expiry(deadline=10))
    store.set({"deleted": b""}, ME, Expiry(deadline=10))
    store.delete(["deleted"])
    store.set({"endless": b""})
    store.set(dict.fromkeys(["old", "endless", "deleted", "new"], b""), ME, Expiry(deadline=99, keep=True))
    assert deadlines(store, "old", "endless", "deleted", "new") == [10, None, 99, 99]
    store.set(dict.fromkeys(["old", "newer"], b""), ME, KEEP_TTL)
    assert deadlines(store, "old", "newer") == [10, None]


def test_a_deletion_clears_the_deadline() -> None:
    store = Store()
    store.set({"a": b""}, ME, Expiry(deadline=10, owner="me"))
    store.delete(["a"])
    assert (all_deadlines(store.lifetimes), store.lifetimes.owned("me")) == ({}, [])


def test_a_touched_key_keeps_its_value_and_gets_a_deadline_in_a_commit() -> None:
    store = Store()
    store.set({"a": b"1", "b": b"2"})
    store.delete(["b"])
    assert store.touch(["a", "never", "b", "a"], 50, YOU) == [True, False, False, True]
    assert store.fetch(["a", "b", "never"]) == [(b"1", 3, 50), (None, 0, None), (None, 0, None)]
    assert last_commit(store) == (3, YOU, ["a"])
    assert (store.counters.keys, store.counters.value_bytes, store.counters.set_operations) == (1, 1, 3)
    assert store.touch(["a"], None) == [True]
    assert deadlines(store, "a") == [None]


def test_touching_nothing_that_exists_is_no_commit() -> None:
    store = Store()
    assert (store.touch(["a"], 5), store.touch([], 5), store.version, all_deadlines(store.lifetimes)) == (
        [False],
        [],
        0,
        {},
    )


def test_keys_expire_in_one_commit_by_the_author_expired() -> None:
    store = Store()
    store.set({"a": b"1", "b": b"22"}, ME, Expiry(deadline=10))
    store.set({"c": b"3"})
    assert store.expire(store.lifetimes.take_due(10, 256)) == 3
    assert (last_commit(store), store.get_many(["a", "b", "c"])) == ((3, EXPIRED, ["a", "b"]), [None, None, b"3"])
    assert (store.counters.keys, store.counters.value_bytes, store.counters.delete_operations) == (1, 1, 0)
    assert store.get_many(["a", "b"], at=2) == [b"1", b"22"]
    assert all_deadlines(store.lifetimes) == {}


def test_expiring_deleted_keys_is_no_commit() -> None:
    store = Store()
    store.set({"a": b"1"})
    store.delete(["a"])
    assert store.expire(["a", "never"]) == store.expire([]) == 2


def test_the_keys_of_an_owner_are_deleted_in_one_commit_and_no_others() -> None:
    store = Store()
    store.set({"a": b"", "b": b"", "c": b""}, ME, Expiry(owner="me"))
    store.set({"b": b""}, YOU, Expiry(owner="you"))
    store.set({"c": b""}, YOU)
    store.set({"d": b""}, ME, Expiry(owner="me"))
    assert store.delete_owned("me", ME) == 2
    assert (last_commit(store)[:2], sorted(last_commit(store)[2])) == ((5, ME), ["a", "d"])
    assert store.get_many(["a", "b", "c", "d"]) == [None, b"", b"", None]
    assert (store.delete_owned("me"), store.delete_owned("other"), store.version) == (0, 0, 5)
    assert store.delete_owned("you") == 1


# ---------------------------------------------------------------------- fetch


def test_fetch_returns_value_version_and_deadline_of_one_instant() -> None:
    store = Store()
    store.set({"a": b"1"}, ME, Expiry(deadline=10))
    store.set({"a": b"2", "b": b""}, ME, Expiry(deadline=20))
    store.delete(["b"])
    assert store.fetch(["a", "b", "never", "a"]) == [(b"2", 2, 20), (None, 0, None), (None, 0, None), (b"2", 2, 20)]
    assert store.fetch(["a", "b"], at=2) == [(b"2", 2, None), (b"", 2, None)], "no deadlines of the past"
    assert store.fetch(["a", "b"], at=1) == [(b"1", 1, None), (None, 0, None)]
    assert store.counters.get_operations == 8


def test_a_refused_fetch_is_not_counted() -> None:
    store = Store(WindowLimits(max_commits=0))
    store.set({"a": b"1"})
    store.advance(0)
    for at, refusal in ((0, SnapshotGone), (2, VersionAhead)):
        with pytest.raises(refusal):
            store.fetch(["a"], at=at)
    assert store.counters.get_operations == 0
