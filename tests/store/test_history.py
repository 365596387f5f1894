"""Reads of the past: the versions of a key, and the commits, a page at a time."""

import sys
from types import FrameType

import pytest

from kvd.store import history as history_module
from kvd.store.authors import NO_AUTHOR, Author
from kvd.store.errors import SnapshotGone
from kvd.store.heads import Head
from kvd.store.history import Commit, Version, commits_from, newest_commits, versions
from kvd.store.store import Store
from kvd.store.window import WindowLimits

ME, YOU = Author(1, 2, "me"), Author(None, None, "tcp 127.0.0.1:9")
PLENTY = 10**9


def history(
    store: Store, key: str, limit: int = 1000, before: int | None = None, max_bytes: int = PLENTY
) -> list[Version]:
    return versions(store, key, limit, before, max_bytes)


def committing(count: int) -> Store:
    """Version n sets "k" to n, at time 10 * n."""
    store = Store()
    for number in range(1, count + 1):
        store.advance(10 * number)
        store.set({"k": b"%d" % number}, ME)
    return store


def forget(store: Store, commits: int) -> None:
    """Drop the oldest commits until only ``commits`` are left."""
    store.window.limits = WindowLimits(max_commits=commits)
    store.drop_history(PLENTY)


def log_of(commits: list[Commit]) -> list[int]:
    return [commit.version for commit in commits]


# ---------------------------------------------------------------------- the versions of a key


def test_a_key_has_its_versions_newest_first_with_time_and_author() -> None:
    store = Store()
    store.advance(10)
    store.set({"a": b"1", "b": b"1"}, ME)
    store.advance(20)
    store.delete(["a"], YOU)
    store.set({"b": b"3"}, ME)
    store.advance(30)
    store.set({"a": b"4"}, ME)
    assert history(store, "a") == [Version(4, b"4", 30, ME), Version(2, None, 20, YOU), Version(1, b"1", 10, ME)]
    assert history(store, "never") == []


def test_versions_of_one_batch_of_commits_are_distinct() -> None:
    store = committing(2)
    store.set({"other": b""})
    store.set_each([{"k": b"4"}, {"other": b"5"}], YOU)
    store.set_each([{"other": b"6"}, {"k": b"7"}], YOU)
    assert [(each.version, each.value, each.author) for each in history(store, "k")] == [
        (7, b"7", YOU), (4, b"4", YOU), (2, b"2", ME), (1, b"1", ME),
    ]  # fmt: skip


def test_pages_of_versions_together_are_all_of_them() -> None:
    store = committing(10)
    found: list[int] = []
    before = None
    while page := history(store, "k", 3, before):
        found += [each.version for each in page]
        before = page[-1].version
    assert found == list(range(10, 0, -1))


@pytest.mark.parametrize(
    ("before", "first"), [(None, 10), (11, 10), (99, 10), (10, 9), (2, 1), (1, None), (0, None)], ids=str
)
def test_before_a_version_means_below_it(before: int | None, first: int | None) -> None:
    page = history(committing(10), "k", 1, before)
    assert [each.version for each in page] == ([] if first is None else [first])


def test_before_may_name_a_version_at_which_the_key_did_not_change() -> None:
    store = committing(2)
    store.set({"other": b""})
    store.set({"k": b"4"})
    assert [each.version for each in history(store, "k", before=4)] == [2, 1]
    assert [each.version for each in history(store, "k", before=3)] == [2, 1]


def test_a_page_of_versions_has_one_and_ends_once_it_is_large_enough() -> None:
    store = Store()
    for _ in range(10):
        store.set({"k": b"x" * 936})  # 1000 bytes with what each version counts
    assert [len(history(store, "k", max_bytes=size)) for size in (1, 1000, 1001, 5000)] == [1, 1, 2, 5]


def test_a_page_of_deletions_ends() -> None:
    store = Store()
    for _ in range(50):
        store.set({"k": b""})
        store.delete(["k"])
    assert 1 < len(history(store, "k", max_bytes=1000)) < 50


def test_the_version_before_the_history_is_there_without_time_and_author() -> None:
    store = committing(5)
    forget(store, 2)
    assert history(store, "k") == [Version(5, b"5", 50, ME), Version(4, b"4", 40, ME), Version(3, b"3", None, None)]


def test_a_key_deleted_before_the_history_has_none() -> None:
    store = committing(2)
    store.delete(["k"])
    store.set({"other": b""})
    forget(store, 1)
    assert history(store, "k") == []


def test_the_value_before_a_deletion_is_listed_as_long_as_it_can_be_read() -> None:
    store = committing(2)
    store.delete(["k"])
    forget(store, 1)
    assert [each.value for each in history(store, "k")] == [None, b"2"]


# ---------------------------------------------------------------------- the commits


def test_each_commit_has_its_time_its_author_and_its_keys() -> None:
    store = Store()
    store.advance(10)
    store.set({"b": b"", "a": b""}, ME)
    store.advance(20)
    store.delete(["a"], YOU)
    store.write({"c": b"", "b": None, "never": None})
    expected = [Commit(1, 10, ME, ["b", "a"]), Commit(2, 20, YOU, ["a"]), Commit(3, 20, NO_AUTHOR, ["c", "b"])]
    assert commits_from(store, 0, 10, PLENTY) == newest_commits(store, 10, PLENTY) == expected


def test_a_call_that_changes_nothing_is_no_commit() -> None:
    store = committing(1)
    store.set({})
    store.write({"never": None})
    store.delete(["never"], missing_ok=True)
    store.touch(["never"], 5)
    assert log_of(newest_commits(store, 10, PLENTY)) == [1]


def test_commits_of_one_batch_are_listed_one_by_one() -> None:
    store = committing(1)
    store.set({"a": b"", "b": b""})
    store.set_each([{"k": b""}, {"a": b""}, {"b": b""}], YOU)
    assert len(store.window.groups) == 3
    commits = commits_from(store, 2, 10, PLENTY)
    assert [(commit.version, commit.keys) for commit in commits] == [
        (2, ["a", "b"]),
        (3, ["k"]),
        (4, ["a"]),
        (5, ["b"]),
    ]


@pytest.mark.parametrize("version", range(12))
def test_the_commits_from_a_version_on_begin_with_it_also_within_a_batch(version: int) -> None:
    store = committing(3)
    store.set({"a": b"", "b": b"", "c": b""})
    store.set_each([{"a": b""}, {"b": b""}, {"c": b""}, {"k": b""}])
    store.set({"a": b""})
    assert log_of(commits_from(store, version, 100, PLENTY)) == list(range(max(1, version), 10))
    assert log_of(commits_from(store, version, 2, PLENTY)) == list(range(max(1, version), 10))[:2]


def test_the_newest_commits_are_listed_oldest_first() -> None:
    store = committing(3)
    store.set({"a": b"", "b": b"", "c": b""})
    store.set_each([{"a": b""}, {"b": b""}, {"c": b""}, {"k": b""}])
    assert [log_of(newest_commits(store, limit, PLENTY)) for limit in (1, 3, 6, 100)] == [
        [8], [6, 7, 8], [3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8],
    ]  # fmt: skip
    assert newest_commits(Store(), 10, PLENTY) == commits_from(Store(), 0, 10, PLENTY) == []


def test_commits_that_have_left_the_history_are_an_error_and_not_skipped() -> None:
    store = committing(5)
    forget(store, 2)
    assert log_of(commits_from(store, 4, 10, PLENTY)) == log_of(newest_commits(store, 10, PLENTY)) == [4, 5]
    for version in (0, 1, 3):
        with pytest.raises(SnapshotGone) as refused:
            commits_from(store, version, 10, PLENTY)
        assert refused.value.oldest_readable == 3


def test_a_page_of_commits_names_at_most_log_keys_keys_unless_one_commit_has_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(history_module, "LOG_KEYS", 5)
    store = Store()
    for count in (2, 3, 1, 9, 1):
        store.set({str(number): b"" for number in range(count)})
    assert [log_of(commits_from(store, version, 10, PLENTY)) for version in range(1, 6)] == [
        [1, 2], [2, 3], [3], [4], [5]
    ]  # fmt: skip
    assert log_of(newest_commits(store, 10, PLENTY)) == [5]


def test_a_page_of_commits_has_one_and_ends_once_it_is_large_enough() -> None:
    store = Store()
    for number in range(5):
        store.set({f"{number:0936}": b""})  # 1000 bytes with what each commit counts
    for page in (commits_from, lambda store, _, limit, size: newest_commits(store, limit, size)):
        assert [len(page(store, 1, 10, size)) for size in (1, 1000, 1001, 9999)] == [1, 1, 2, 5]


def test_a_key_that_is_named_often_is_searched_for_once() -> None:
    """A request may name 65,536 keys, and a key may have a million versions: searching each time took a day."""
    store, walks = committing(10), 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal walks
        walks += event == "call" and frame.f_code is Head.at.__code__

    sys.setprofile(count)
    try:
        values, found = store.get_many(["k", "none"] * 1_000, 3), store.fetch(["k"] * 1_000, 3)
    finally:
        sys.setprofile(None)
    assert values == [b"3", None] * 1_000
    assert found == [(b"3", 3, None)] * 1_000
    assert walks == 2
