"""The store, claim by claim. Random histories against a plain model are in test_store_model.py."""

import pytest

from kvd.store import store as store_module
from kvd.store.errors import KeysNotFound, SnapshotGone, VersionAhead
from kvd.store.store import DROP_BUDGET_KEYS, Page, Store
from kvd.store.window import GROUP_BYTES, PLACE_BYTES, SUPERSEDED_BYTES, WindowLimits

NO_HISTORY = WindowLimits(max_commits=0)


def counters(store: Store) -> dict[str, int]:
    return {name: getattr(store.counters, name) for name in store.counters.__slots__}


def keys_of(page: Page) -> list[str]:
    return [item.key for item in page.items]


def everything(store: Store) -> tuple[object, ...]:
    """Return everything that a refused operation must not change."""
    return (store.version, counters(store), store.window.bytes, store.window.commits, store.scan("", None, 10**6).items)


def a_page_at_a_time(store: Store, start: str = "", end: str | None = None, **how: int) -> list[Page]:
    pages = [store.scan(start, end, **{"limit": 1000, **how})]
    while (following := pages[-1].next) is not None:
        pages.append(store.scan(following, end, **{"limit": 1000, **how}))
    return pages


# ---------------------------------------------------------------------- commits


def test_an_empty_store_has_version_0_and_nothing_in_it() -> None:
    store = Store()
    assert (store.version, store.get("a"), store.get_many(["a", "b"])) == (0, None, [None, None])
    assert store.scan("", None, 10) == Page([], None)


def test_each_commit_takes_one_higher_version_however_many_keys_it_has() -> None:
    store = Store()
    assert [store.set({"a": b"1", "b": b"2"}), store.set({"c": b"3"}), store.delete(["a", "c"])[0]] == [1, 2, 3]
    assert store.set_each([{"b": b"4"}, {"b": b"5"}, {"d": b"6"}]) == [4, 5, 6]


def test_a_call_without_keys_is_no_commit() -> None:
    store = Store()
    store.set({"a": b"1"})
    before = everything(store)
    assert store.set({}) == 1
    assert store.set_each([]) == []
    assert store.set_each([{}, {}]) == [1, 1]
    assert store.delete([]) == (1, 0)
    assert store.delete(["missing"], missing_ok=True) == (1, 0)
    assert everything(store) == before


def test_a_delete_that_misses_one_key_deletes_nothing_and_names_the_missing_keys() -> None:
    store = Store()
    store.set({"a": b"1", "b": b"2", "was": b"3"})
    store.delete(["was"])
    before = everything(store)
    with pytest.raises(KeysNotFound) as refused:
        store.delete(["a", "no", "b", "was", "no"])
    assert refused.value.keys == ["no", "was"]
    assert everything(store) == before


def test_a_key_named_twice_is_deleted_once() -> None:
    store = Store()
    store.set({"a": b"1", "b": b"2"})
    assert store.delete(["a", "b", "a"]) == (2, 2)
    assert store.counters.delete_operations == 2


def test_missing_keys_are_ignored_with_missing_ok() -> None:
    store = Store()
    store.set({"a": b"1"})
    assert store.delete(["no", "a", "never"], missing_ok=True) == (2, 1)
    assert store.counters.delete_operations == 1


def test_the_counters_count_keys_and_the_bytes_of_values() -> None:
    store = Store()
    store.set({"cake": "🎂".encode(), "horns": "😈".encode(), "smiley": "😁".encode()})
    store.get_many(["cake", "horns", "smiley"])
    assert counters(store) == {
        "keys": 3, "value_bytes": 12, "set_operations": 3, "get_operations": 3, "delete_operations": 0,
            "expired_keys": 0, "evicted_keys": 0,
    }  # fmt: skip
    store.delete(["horns"])
    store.set({"cake": b"", "horns": b"x"})
    store.set_each([{"cake": b"four"}, {"horns": b"seventy"}])
    store.get("cake")
    assert counters(store) == {
        "keys": 3, "value_bytes": 4 + 7 + 4, "set_operations": 7, "get_operations": 4, "delete_operations": 1,
            "expired_keys": 0, "evicted_keys": 0,
    }  # fmt: skip


def test_a_refused_read_is_not_counted() -> None:
    store = Store()
    with pytest.raises(VersionAhead):
        store.get_many(["a"], at=1)
    assert store.counters.get_operations == 0


def test_the_largest_value_ever_stored_is_remembered() -> None:
    store = Store()
    assert store.largest_value_bytes == 0
    store.set({"a": b"123", "b": b"1"})
    store.delete(["a"])
    assert store.largest_value_bytes == 3
    store.set_each([{"b": b"12345"}])
    store.set_each([{"b": b""}])
    assert store.largest_value_bytes == 5


@pytest.mark.parametrize("key", ["in the first dict", "in a shard"])
def test_a_key_may_lie_in_any_part_of_the_keyspace(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if key == "in a shard":
        monkeypatch.setattr("kvd.store.keyspace.FIRST_KEYS", 0)
    store = Store()
    store.set({key: b"1"})
    assert (key in store.first) == (key == "in the first dict")
    store.set_each([{key: b"2"}])
    assert (store.get(key), store.get_many(["no", key]), store.get_many([key], at=1)) == (b"2", [None, b"2"], [b"1"])
    store.delete([key])
    assert (store.get(key), store.get_many([key]), store.get_many([key], at=2)) == (None, [None], [b"2"])
    store.set({key: b"4", "new": b"4"})
    assert store.get_many([key, "new"]) == [b"4", b"4"]
    assert keys_of(store.scan("", None, 10)) == [key, "new"]


@pytest.mark.parametrize(
    "batch",
    [
        [{"a": b"new"}, {"b": b"newer"}],  # all exist, all different: the quick way
        [{"a": b""}, {"empty": b""}],
        [{"a": b"1"}, {"a": b"2"}],
        [{"a": b"1", "b": b"2"}, {}],
        [{"a": b"1"}, {"gone": b"2"}],
        [{"a": b"1"}, {"new": b"2"}],
        [{"a": b"1", "new": b"2"}, {"b": b"3"}],
        [{}],
    ],
    ids=str,
)
def test_a_batch_of_sets_is_one_commit_after_the_other(batch: list[dict[str, bytes]]) -> None:
    together, alone = Store(), Store()
    for store in (together, alone):
        store.set({"a": b"old", "b": b"old", "gone": b"x", "empty": b""})
        store.delete(["gone"])
    versions = together.set_each(batch)
    assert versions == [alone.set(entries) for entries in batch]
    for version in range(alone.version + 1):
        assert together.scan("", None, 100, at=version) == alone.scan("", None, 100, at=version)
    assert (together.version, counters(together)) == (alone.version, counters(alone))
    assert together.window.commits == alone.window.commits
    assert together.largest_value_bytes == alone.largest_value_bytes


def test_commits_of_one_batch_stand_in_the_window_as_one_group() -> None:
    store = Store()
    store.advance(5)
    store.set({"a": b"123", "b": b"45"}, "me")
    store.set_each([{"a": b"6"}, {"b": b"7"}], "you")
    first, second = store.window.groups
    assert [(group.time, group.author, group.commits) for group in (first, second)] == [(5, "me", 1), (5, "you", 2)]
    assert first.size == GROUP_BYTES + 2 * PLACE_BYTES
    assert second.size == GROUP_BYTES + 2 * PLACE_BYTES + 2 * SUPERSEDED_BYTES + 3 + 2
    assert store.window.bytes == first.size + second.size


# ---------------------------------------------------------------------- versions and history


def test_every_version_reads_as_it_was_committed() -> None:
    store = Store()
    store.set({"a": b"1"})
    store.set({"a": b"2", "b": b"2"})
    store.delete(["a"])
    store.set({"a": b"4"})
    seen = [store.get_many(["a", "b"], at=version) for version in range(5)]
    assert seen == [[None, None], [b"1", None], [b"2", b"2"], [None, b"2"], [b"4", b"2"]]


def test_a_future_version_cannot_be_read() -> None:
    store = Store()
    store.set({"a": b"1"})
    for read in (lambda: store.get_many(["a"], at=2), lambda: store.scan("", None, 1, at=2)):
        with pytest.raises(VersionAhead) as refused:
            read()
        assert (refused.value.version, refused.value.newest) == (2, 1)


def test_a_version_before_the_window_cannot_be_read() -> None:
    store = Store(NO_HISTORY)
    for value in (b"1", b"2", b"3"):
        store.set({"a": value})
    store.advance(0)
    for read in (lambda: store.get_many(["a"], at=2), lambda: store.scan("", None, 1, at=2)):
        with pytest.raises(SnapshotGone) as refused:
            read()
        assert (refused.value.version, refused.value.oldest_readable) == (2, 3)
    assert store.get_many(["a"], at=3) == [b"3"]


def test_a_negative_version_counts_as_gone() -> None:
    with pytest.raises(SnapshotGone):
        Store().get_many(["a"], at=-1)


def test_time_never_goes_back() -> None:
    store = Store(WindowLimits(max_age_us=10))
    for now in (100, 50, 105):
        store.advance(now)
        store.set({"a": b"1"})
    assert [group.time for group in store.window.groups] == [100, 100, 105]
    store.advance(112)
    assert [group.time for group in store.window.groups] == [105]


def test_a_batch_drops_a_little_more_history_than_the_last_one_added() -> None:
    store = Store()
    for number in range(100):
        store.set({"a": b"%d" % number})
    store.advance(0)
    store.window.limits = NO_HISTORY
    store.set({"a": b"", "b": b"", "c": b""})
    store.advance(0)
    assert store.window.oldest_readable == 3 + DROP_BUDGET_KEYS
    store.advance(0)
    assert store.window.oldest_readable == 3 + 2 * DROP_BUDGET_KEYS


def test_a_pinned_version_stays_readable() -> None:
    store = Store(NO_HISTORY)
    store.set({"a": b"1"})
    assert store.pin() == 1
    store.set({"a": b"2"})
    store.advance(0)
    assert store.get_many(["a"], at=1) == [b"1"]
    store.unpin(1)
    store.advance(0)
    with pytest.raises(SnapshotGone):
        store.get_many(["a"], at=1)


def test_a_deleted_key_is_removed_once_no_readable_version_has_it() -> None:
    store = Store()
    store.set({"stays": b"", "goes": b"", "returns": b""})
    store.delete(["goes", "returns"])
    store.set({"returns": b"again"})
    assert len(store._keyspace) == 3
    store.window.limits = NO_HISTORY
    store.drop_history(100)
    assert sorted(store._keyspace) == list(store.keys_between("", None)) == ["returns", "stays"]
    assert all(store.find(key).previous is None for key in ("returns", "stays"))  # type: ignore[union-attr]


def test_values_that_left_the_window_are_freed() -> None:
    store = Store(NO_HISTORY)
    for number in range(20):
        store.set({"a": b"%d" % number})
        store.advance(0)
    head = store.find("a")
    assert head is not None
    assert (head.value, head.previous, store.window.bytes) == (b"19", None, 0)


def test_drop_history_returns_whether_it_dropped_anything() -> None:
    store = Store(NO_HISTORY)
    store.set({"a": b"1"})
    store.set({"a": b"2"})
    assert [store.drop_history(1), store.drop_history(1), store.drop_history(1)] == [1, 1, 0]


def test_new_keys_are_added_to_the_index_in_bulk_once_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvd.store.contents.PENDING_KEYS", 3)
    store = Store()
    store.set({"a": b"", "b": b""})
    store.advance(0)
    assert store._living.pending == 2
    store.set({"c": b""})
    assert store._living.pending == 0, "paid by the commit that notes the last of them, not by the next one"


# ---------------------------------------------------------------------- scans


def test_a_scan_shows_keys_values_and_versions_in_order() -> None:
    store = Store()
    store.set({"b": b"1", "a": b"2"})
    store.set({"c": b"3"})
    found = [(item.key, item.value, item.version) for item in store.scan("", None, 10).items]
    assert found == [("a", b"2", 1), ("b", b"1", 1), ("c", b"3", 2)]
    assert [(item.key, item.value) for item in store.scan("b", "c", 10, keys_only=True).items] == [("b", None)]


def test_a_scan_of_a_version_shows_the_keys_of_that_version() -> None:
    store = Store()
    store.set({"a": b"1", "b": b"1"})
    store.delete(["a"])
    store.set({"c": b"3"})
    then = [keys_of(store.scan("", None, 10, at=version)) for version in range(4)]
    assert then == [[], ["a", "b"], ["b"], ["b", "c"]]


def test_a_page_that_ends_with_the_last_key_has_no_next() -> None:
    store = Store()
    store.set({"a": b"", "b": b""})
    assert [store.scan("", None, limit).next for limit in (1, 2, 3)] == ["b", None, None]


@pytest.mark.parametrize(
    ("how", "max_keys"),
    [({"limit": 3}, 3), ({"max_bytes": 30}, 3), ({"max_bytes": 5, "keys_only": True}, 3), ({}, 4)],
    ids=["by the limit", "by the bytes", "by the bytes of keys", "by the visited keys"],
)
def test_pages_together_are_all_live_keys_in_order_wherever_they_are_cut(
    how: dict[str, int], max_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not how:
        monkeypatch.setattr(store_module, "SCAN_VISITS", max_keys)
    store = Store()
    store.set({f"{number:02}": b"x" * 10 for number in range(50)})
    store.delete([f"{number:02}" for number in range(10, 30)])
    then = store.version
    store.set({"99": b"later"})
    pages = a_page_at_a_time(store, at=then, **how)
    assert [key for page in pages for key in keys_of(page)] == [f"{n:02}" for n in range(50) if not 10 <= n < 30]
    assert max(len(page.items) for page in pages) == max_keys
    empty = [page for page in pages if page.next is not None and not page.items]
    assert bool(empty) == (not how), "of the past, a stretch of deleted keys gives pages without keys"


def test_a_scan_of_the_present_visits_no_deleted_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SCAN_VISITS", 4)
    store = Store()
    store.set({f"{number:02}": b"" for number in range(50)})
    store.delete([f"{number:02}" for number in range(48)])
    assert store.scan("", None, 10) == store.scan("", None, 10, at=store.version)
    assert keys_of(store.scan("", None, 10)) == ["48", "49"]
    store.set({"00": b"back"})
    assert keys_of(store.scan("", None, 10)) == ["00", "48", "49"]


@pytest.mark.parametrize("messages", [10, 10_000])
def test_a_queue_costs_the_same_visits_however_long_it_has_run(messages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    store, visited = Store(), list[str]()
    living, everything = store.living_between, store.keys_between
    noted = lambda walk: lambda *range_: (visited.append(key) or key for key in walk(*range_))  # noqa: E731
    monkeypatch.setattr(store, "living_between", noted(living))
    monkeypatch.setattr(store, "keys_between", noted(everything))
    for number in range(messages):
        store.advance(number)
        store.set({f"q/{number:06}": b"message"})
        (first,) = store.scan("q/", "q0", 1).items
        store.delete([first.key])
    assert len(visited) == messages, "each scan looks at the message that it finds, and at nothing else"


def test_a_page_holds_at_least_one_key_however_large_its_value_is() -> None:
    store = Store()
    store.set({"a": b"x" * 100, "b": b"x" * 100})
    assert [keys_of(page) for page in a_page_at_a_time(store, max_bytes=1)] == [["a"], ["b"]]
