"""The commit rule, claim by claim: which changes of what was read conflict, and what a conflict names.

Each claim about ranges holds for both ways of finding what changed: through the commits since the snapshot, and
through the keys of the range.
"""

from itertools import repeat

import pytest

from kvd.store import isolation
from kvd.store.authors import Author
from kvd.store.errors import Change, Conflict, SnapshotGone, VersionAhead
from kvd.store.isolation import COMMITTED_KEYS, MAX_CHANGES, MAX_CHARACTERS, Range, Validation, validate
from kvd.store.steps import run_to_end
from kvd.store.store import Store
from kvd.store.window import WindowLimits

ME, YOU = Author(1, 2, "me"), Author(3, 4, "you")
NO_HISTORY = WindowLimits(max_commits=0)
EVERYTHING: Range = ("", None)
NOTHING_NAMED = Change("a conflict that names no key", 0, 0, None, None)


def validate_in_steps(store: Store, reads: dict[str, int], ranges: list[Range], snapshot: int) -> None:
    with Validation(store, reads, ranges, snapshot) as validation:
        run_to_end(validation.run())
        validation.check()


@pytest.fixture(params=["through the commits", "through the index", "in steps", "in steps through the index"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "through the index":
        monkeypatch.setattr(isolation, "COMMITTED_KEYS", 0)
    if "in steps" in request.param:
        monkeypatch.setattr(request.module, "validate", validate_in_steps)
    if request.param == "in steps through the index":
        monkeypatch.setattr(Validation, "_through_commits", lambda _: repeat(None))


either_way = pytest.mark.usefixtures("both_ways")


def filled(*keys: str) -> Store:
    """Return a store with each key in a commit of its own, the first at version 1, all at time 10."""
    store = Store()
    store.advance(10)
    for key in keys:
        store.set({key: b"old"}, ME)
    return store


def conflicts(
    store: Store, reads: dict[str, int] | None = None, ranges: list[Range] | None = None, snapshot: int = 0
) -> list[Change]:
    """Return the changes that refuse a commit with this read set; none if it may commit."""
    try:
        validate(store, reads or {}, ranges or [], snapshot)
    except Conflict as conflict:
        return conflict.changes or [NOTHING_NAMED]
    return []


def changed_in(store: Store, start: str, end: str | None, snapshot: int) -> list[str]:
    return [change.key for change in conflicts(store, ranges=[(start, end)], snapshot=snapshot)]


# ---------------------------------------------------------------------- keys


def test_a_blind_write_never_conflicts() -> None:
    store = filled("a")
    store.set({"a": b"new"})
    assert conflicts(store) == []


def test_unchanged_keys_are_no_conflict() -> None:
    store = filled("a", "b", "c")
    store.delete(["c"])
    store.set({"b": b"new"})
    assert conflicts(store, {"a": 1, "b": 5, "c": 0, "never": 0}) == []


def test_a_conflict_names_the_version_read_the_current_one_and_who_changed_it_when() -> None:
    store = filled("a")
    store.advance(20)
    store.set({"a": b"new"}, YOU)
    assert conflicts(store, {"a": 1}) == [Change("a", 1, 2, 20, YOU)]


def test_a_conflict_over_a_deleted_key_names_the_author_of_the_deletion() -> None:
    store = filled("a")
    store.advance(20)
    store.delete(["a"], YOU)
    assert conflicts(store, {"a": 1}) == [Change("a", 1, 0, 20, YOU)]


def test_a_key_read_as_absent_conflicts_once_it_exists() -> None:
    assert conflicts(filled("a"), {"a": 0}) == [Change("a", 0, 1, 10, ME)]


def test_a_key_read_as_absent_that_was_set_and_deleted_is_no_conflict() -> None:
    store = filled("a")
    store.delete(["a"])
    assert conflicts(store, {"a": 0}) == []


def test_a_key_that_was_deleted_and_set_again_conflicts_though_its_value_is_the_same() -> None:
    store = filled("a")
    store.delete(["a"])
    store.set({"a": b"old"})
    assert [change.found for change in conflicts(store, {"a": 1})] == [3]


def test_the_version_decides_and_not_the_value() -> None:
    store = filled("a")
    store.set({"a": b"old"})
    assert [change.key for change in conflicts(store, {"a": 1})] == ["a"]


def test_a_version_from_the_future_conflicts() -> None:
    assert conflicts(filled("a"), {"a": 7}) == [Change("a", 7, 1, 10, ME)]


def test_a_conflict_names_each_changed_key_in_the_order_of_reading_and_no_other() -> None:
    store = filled("a", "b", "c")
    store.set({"a": b"new", "c": b"new"})
    assert [change.key for change in conflicts(store, {"c": 3, "b": 2, "a": 1})] == ["c", "a"]


def test_a_key_is_validated_although_its_commit_has_left_the_history() -> None:
    store = filled("a")
    store.set({"a": b"new"}, YOU)
    store.window.limits = NO_HISTORY
    store.advance(10)
    assert conflicts(store, {"a": 2}) == []
    assert conflicts(store, {"a": 1}) == [Change("a", 1, 2, None, None)]


def test_a_key_whose_tombstone_is_gone_still_conflicts() -> None:
    store = filled("a")
    store.delete(["a"])
    store.window.limits = NO_HISTORY
    store.advance(10)
    assert store.find("a") is None
    assert conflicts(store, {"a": 1}) == [Change("a", 1, 0, None, None)]
    assert conflicts(store, {"a": 0}) == []


# ---------------------------------------------------------------------- ranges


@either_way
def test_an_unchanged_range_is_no_conflict() -> None:
    store = filled("a", "b", "c")
    snapshot = store.version
    assert changed_in(store, "", None, snapshot) == []
    store.set({"a": b"new"})
    store.delete(["c"])
    assert changed_in(store, "b", "c", snapshot) == []


@either_way
def test_a_key_added_to_a_range_is_a_phantom() -> None:
    store = filled("a", "c")
    store.advance(20)
    store.set({"b": b"new"}, YOU)
    assert conflicts(store, ranges=[("a", "c")], snapshot=2) == [Change("b", 0, 3, 20, YOU)]


@either_way
def test_a_key_that_changed_in_a_range_conflicts_with_the_version_of_the_snapshot() -> None:
    store = filled("a", "b")
    store.set({"b": b"new"})
    store.advance(20)
    store.set({"b": b"newer"}, YOU)
    assert conflicts(store, ranges=[EVERYTHING], snapshot=2) == [Change("b", 2, 4, 20, YOU)]


@either_way
def test_a_key_that_was_deleted_from_a_range_conflicts() -> None:
    store = filled("a", "b")
    store.advance(20)
    store.delete(["b"], YOU)
    assert conflicts(store, ranges=[EVERYTHING], snapshot=2) == [Change("b", 2, 0, 20, YOU)]


@either_way
def test_a_key_set_and_deleted_in_a_range_conflicts() -> None:
    store = filled("a")
    store.set({"b": b""})
    store.delete(["b"])
    assert changed_in(store, "", None, 1) == ["b"]


@either_way
def test_a_range_includes_its_start_and_excludes_its_end() -> None:
    store = filled()
    store.set(dict.fromkeys(["a", "b", "bb", "c", "\uffff", "\U00010000"], b""))
    assert sorted(changed_in(store, "b", "c", 0)) == ["b", "bb"]
    assert changed_in(store, "c", "c", 0) == changed_in(store, "c", "b", 0) == []
    assert sorted(changed_in(store, "\uffff", None, 0)) == ["\uffff", "\U00010000"]


@either_way
def test_commits_up_to_the_snapshot_are_no_conflict_though_later_ones_share_their_group() -> None:
    store = filled("a", "b", "c")
    store.set_each([{"a": b"4"}, {"b": b"5"}, {"c": b"6"}])
    assert len(store.window.groups) == 4, "the three are one group"
    assert [sorted(changed_in(store, "", None, snapshot)) for snapshot in (3, 4, 5, 6)] == [
        ["a", "b", "c"], ["b", "c"], ["c"], []
    ]  # fmt: skip


@either_way
def test_a_key_in_two_ranges_and_in_the_keys_read_is_named_once() -> None:
    store = filled("a", "b")
    store.set({"a": b"new", "b": b"new"})
    changes = conflicts(store, {"a": 1}, [("a", "b"), ("", "b"), EVERYTHING], 2)
    assert sorted(change.key for change in changes) == ["a", "b"]
    assert {change.key: change.expected for change in changes} == {"a": 1, "b": 2}


@either_way
@pytest.mark.parametrize(
    "ranges",
    [
        [("a", "e"), ("b", "c")],
        [("b", "c"), ("a", "e")],
        [("a", "b"), ("b", "e")],
        [("b", "a"), ("a", "e"), ("d", "b")],
        [("a", "c"), ("b", "d"), ("c", "e"), ("x", None), ("y", "z")],
    ],
    ids=str,
)
def test_nested_adjacent_and_empty_ranges_cover_the_keys_of_all(ranges: list[Range]) -> None:
    store = filled("a", "b", "c", "d", "e", "f")
    store.set(dict.fromkeys("abcdef", b"new"))
    assert sorted(change.key for change in conflicts(store, ranges=ranges, snapshot=6)) == ["a", "b", "c", "d"]


@either_way
def test_a_range_is_validated_at_its_snapshot_though_a_key_in_it_was_read_later() -> None:
    """Two reads at different instants cannot both be current."""
    store = filled("a")
    store.set({"a": b"new"})
    assert conflicts(store, {"a": 2}, [EVERYTHING], 1) == [Change("a", 1, 2, 10, store.window.groups[-1].author)]


@either_way
def test_keys_read_as_absent_that_were_set_and_deleted_hide_no_phantom() -> None:
    """There are more such keys than a conflict names."""
    store = filled()
    absent = [f"{number:03}" for number in range(MAX_CHANGES + 20)]
    store.set(dict.fromkeys(absent, b""))
    store.delete(absent)
    store.set({"zz": b"phantom"})
    assert conflicts(store, dict.fromkeys(absent, 0), [EVERYTHING], 0) != []


@either_way
def test_a_range_read_at_a_snapshot_that_has_left_the_history_cannot_be_validated() -> None:
    store = filled("a", "b")
    store.window.limits = NO_HISTORY
    store.advance(10)
    with pytest.raises(SnapshotGone) as refused:
        validate(store, {}, [EVERYTHING], 1)
    assert (refused.value.version, refused.value.oldest_readable) == (1, 2)
    assert conflicts(store, ranges=[EVERYTHING], snapshot=2) == []
    assert conflicts(store, {"a": 1}, snapshot=1) == [], "without ranges the snapshot does not matter"


@either_way
def test_a_range_read_at_a_future_version_is_refused() -> None:
    with pytest.raises(VersionAhead):
        validate(filled("a"), {}, [EVERYTHING], 2)


def test_validation_visits_the_keys_of_commits_up_to_a_bound_and_otherwise_the_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    walked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(isolation, "COMMITTED_KEYS", 3)
    store = filled("a", "b")
    through_the_index = store.keys_between
    store.keys_between = lambda start, end: walked.append((start, end)) or through_the_index(start, end)  # type: ignore[method-assign, func-returns-value]
    assert changed_in(store, "b", None, 0) == ["b"]
    assert walked == []
    store.set({"b": b"new"})
    assert changed_in(store, "b", None, 0) == ["b"]
    assert walked == [("b", None)]


# ---------------------------------------------------------------------- the size of a conflict


@either_way
@pytest.mark.parametrize("read", ["keys", "ranges"])
def test_a_conflict_names_at_most_max_changes_keys(read: str) -> None:
    store = filled()
    keys = [f"{number:04}" for number in range(MAX_CHANGES + 50)]
    store.set(dict.fromkeys(keys, b""))
    if read == "keys":
        assert [change.key for change in conflicts(store, dict.fromkeys(keys, 0))] == keys[:MAX_CHANGES]
    else:
        assert len(changed_in(store, "", None, 0)) == MAX_CHANGES


@pytest.mark.parametrize(("characters", "named"), [(MAX_CHARACTERS, 1), (MAX_CHARACTERS // 4, 4), (1_500, 3)])
def test_a_conflict_of_long_keys_ends_once_it_has_enough_characters(characters: int, named: int) -> None:
    store = filled()
    keys = [f"{number:0{characters}}" for number in range(10)]
    store.set(dict.fromkeys(keys, b""))
    assert [change.key for change in conflicts(store, dict.fromkeys(keys, 0))] == keys[:named]


@pytest.mark.parametrize("committed", [10, COMMITTED_KEYS + 10])
def test_ranges_that_overlap_and_touch_are_one(committed: int) -> None:
    """Both ways of validation: through the commits since the snapshot, and through the keys."""
    store = Store()
    store.set({f"k{number:05d}": b"1" for number in range(200)})
    snapshot = store.version
    for number in range(committed):
        store.set({f"other{number % 7}": b"2"})
    within = [("k00000", "k00050"), ("k00020", "k00060"), ("k00060", "k00090"), ("z", None), ("k00010", "k00011")]
    validate(store, {}, within, snapshot)
    store.set({"k00089": b"2", "k00090": b"2", "k00150": b"2"})
    with pytest.raises(Conflict) as refused:
        validate(store, {}, within, snapshot)
    assert [change.key for change in refused.value.changes] == ["k00089"]
    with pytest.raises(Conflict) as refused:
        validate(store, {}, [*within, ("k00100", None)], snapshot)
    assert {change.key for change in refused.value.changes} >= {"k00089", "k00150"}


@either_way
def test_a_conflict_tells_the_version_of_the_snapshot_of_a_key_that_has_changed_many_times_since() -> None:
    store = filled("a", "b")
    for number in range(1_000):
        store.set({"a": b"%d" % number})
    assert [(each.key, each.expected) for each in conflicts(store, ranges=[("a", "b")], snapshot=2)] == [("a", 1)]
