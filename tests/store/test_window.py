"""The history window: which commits are dropped, in which order, and which ones a pin holds."""

import pytest

from kvd.store import window as window_module
from kvd.store.authors import NO_AUTHOR
from kvd.store.errors import SnapshotGone
from kvd.store.heads import Head
from kvd.store.window import Group, Window, WindowLimits


def group(*versions: int, time: int = 0, size: int = 10) -> Group:
    """Return one group of commits of one key each."""
    return Group(
        time, NO_AUTHOR, tuple(Head("k", b"", version, None) for version in versions), len(versions), size, False
    )


def window(*groups: Group, **limits: int) -> Window:
    made = Window(WindowLimits(**{**dict.fromkeys(WindowLimits.__struct_fields__, 10**9), **limits}))
    for each in groups:
        made.append(each)
    return made


def held(window: Window) -> list[int]:
    return [head.version for group in window.groups for head in group.heads]


def test_within_the_limits_nothing_is_dropped() -> None:
    history = window(group(1), group(2, 3), max_bytes=20, max_commits=3, max_age_us=5)
    assert history.drop(now=5, budget_keys=100) == []
    assert (history.bytes, history.commits, history.oldest_readable) == (20, 3, 0)


@pytest.mark.parametrize(
    ("limits", "now"), [({"max_bytes": 19}, 0), ({"max_commits": 2}, 0), ({"max_age_us": 5}, 6)], ids=str
)
def test_beyond_any_one_limit_the_oldest_group_is_dropped(limits: dict[str, int], now: int) -> None:
    history = window(group(1), group(2, 3, time=1), **limits)
    oldest = history.groups[0]
    assert history.drop(now, budget_keys=100) == [oldest]
    assert (history.bytes, history.commits, history.oldest_readable, held(history)) == (10, 2, 1, [2, 3])


def test_a_group_is_dropped_as_a_whole_and_its_last_version_is_the_oldest_readable_one() -> None:
    history = window(group(1, 2, 3), group(4), max_commits=3)
    history.drop(0, budget_keys=100)
    assert (history.oldest_readable, held(history)) == (3, [4])


def test_the_budget_ends_a_drop_early_and_the_next_goes_on() -> None:
    history = window(*(group(version) for version in range(1, 10)), max_commits=0)
    assert len(history.drop(0, budget_keys=2)) == 2
    assert len(history.drop(0, budget_keys=0)) == 0
    assert len(history.drop(0, budget_keys=100)) == 7
    assert (history.bytes, history.commits, history.oldest_readable, history.drop(0, 100)) == (0, 0, 9, [])


def test_a_pinned_version_stays_readable_until_it_is_unpinned_as_often_as_it_was_pinned() -> None:
    history = window(group(1), group(2), max_commits=0)
    history.pin(2)
    history.pin(2)
    history.append(group(3))
    for _ in range(2):
        history.drop(0, budget_keys=100)
        assert (history.oldest_readable, held(history)) == (2, [3])
        history.unpin(2)
    history.drop(0, budget_keys=100)
    assert (history.oldest_readable, held(history)) == (3, [])


def test_the_oldest_pin_counts() -> None:
    history = window(group(1), max_commits=0)
    history.pin(1)
    history.append(group(2))
    history.pin(2)
    history.append(group(3))
    history.drop(0, 100)
    assert history.oldest_readable == 1
    history.unpin(1)
    history.drop(0, 100)
    assert history.oldest_readable == 2


def test_a_version_pinned_inside_a_group_keeps_the_whole_group() -> None:
    history = window(group(1), max_commits=0)
    history.pin(1)
    history.append(group(2, 3))
    history.drop(0, 100)
    assert (history.oldest_readable, held(history)) == (1, [2, 3])


def test_a_pin_holds_at_most_max_pinned_bytes() -> None:
    history = window(max_commits=0, max_pinned_bytes=20)
    history.pin(0)
    for version in (1, 2, 3):
        history.append(group(version))
    history.drop(0, 100)
    assert (history.bytes, history.oldest_readable) == (20, 1), (
        "the pinned version 0 was dropped, and no more than needed"
    )


def test_a_pin_never_makes_the_window_smaller() -> None:
    """The limit for pins is below the ordinary one here."""
    history = window(max_bytes=30, max_pinned_bytes=10)
    history.pin(0)
    for version in (1, 2, 3):
        history.append(group(version))
    assert history.drop(0, 100) == []
    history.append(group(4))
    history.drop(0, 100)
    assert held(history) == [2, 3, 4]


def test_unpinning_a_version_without_a_pin_is_a_fault_of_the_caller() -> None:
    with pytest.raises(KeyError):
        window().unpin(7)


# ---------------------------------------------------------------------- as many bytes are dropped as are added


def filled_with_small_ones() -> Window:
    """Return a window at its limit of 100 bytes, with groups of 10 bytes each."""
    history = window(*(group(version) for version in range(1, 11)), max_bytes=100)
    assert history.drop(0, budget_keys=1) == []
    return history


def test_over_the_byte_limit_as_many_bytes_are_dropped_as_were_added_whatever_the_budget() -> None:
    history = filled_with_small_ones()
    history.append(group(11, size=60))
    assert len(history.drop(0, budget_keys=1)) == 6
    assert (history.bytes, history.oldest_readable) == (100, 6)


def test_to_a_lowered_limit_the_window_shrinks_by_the_budget_and_by_the_added_bytes() -> None:
    history = filled_with_small_ones()
    history.limits = WindowLimits(max_bytes=20)
    assert len(history.drop(0, budget_keys=1)) == 1
    history.append(group(11, size=25))
    assert len(history.drop(0, budget_keys=1)) == 3
    assert history.bytes <= 90


def test_a_pinned_version_stays_however_many_bytes_are_added() -> None:
    history = window(group(1), max_bytes=10, max_pinned_bytes=100)
    history.pin(1)
    history.append(group(2, size=50))
    assert [len(history.drop(0, budget_keys=1)), history.drop(0, budget_keys=1)] == [1, []]
    history.append(group(3, size=70))
    history.drop(0, budget_keys=1)
    assert (history.bytes, history.oldest_readable) == (70, 2), "past the limit for pins it goes too"


# ---------------------------------------------------------------------- finding


def test_every_version_is_found_in_its_group_and_dropped_versions_in_none() -> None:
    history = window(group(1), group(2, 3, 4), group(5), group(6), max_commits=3)
    history.drop(0, budget_keys=100)
    found = [None if (each := history.group_of(version)) is None else each.heads[0].version for version in range(9)]
    assert found == [None, None, None, None, None, 5, 6, None, None]
    assert held(history) == [5, 6]
    whole = window(group(1), group(2, 3, 4), group(5))
    found = [None if (each := whole.group_of(version)) is None else each.heads[0].version for version in range(7)]
    assert found == [None, 1, 2, 2, 2, 5, None]


def test_the_groups_since_a_version_come_oldest_first_beginning_with_its_own() -> None:
    history = window(group(1), group(2, 3, 4), group(5))
    firsts = {version: [each.heads[0].version for each in history.since(version)] for version in range(7)}
    assert firsts == {0: [1, 2, 5], 1: [2, 5], 2: [2, 5], 3: [2, 5], 4: [5], 5: [], 6: []}


def test_after_the_end_of_a_group_come_whole_groups() -> None:
    history = window(group(1), group(2, 3, 4), group(5))
    firsts = {version: [each.heads[0].version for each in history.newest_since(version)] for version in (0, 1, 4, 5)}
    assert firsts == {0: [1, 2, 5], 1: [2, 5], 4: [5], 5: []}
    assert window().newest_since(0) == []


def test_the_groups_since_a_dropped_version_are_incomplete_and_refused() -> None:
    history = window(group(1), group(2), group(3), max_commits=1)
    history.drop(0, budget_keys=100)
    with pytest.raises(SnapshotGone) as refused:
        list(history.since(1))
    assert (refused.value.version, refused.value.oldest_readable) == (1, 2)
    assert [each.heads[0].version for each in history.since(2)] == [3]


def test_newest_yields_the_newest_group_first() -> None:
    history = window(group(1), group(2, 3), group(4), max_commits=3)
    history.drop(0, budget_keys=100)
    assert [each.heads[0].version for each in history.newest()] == [4, 2]
    assert list(window().newest()) == []


def test_the_version_of_a_time_is_the_last_one_committed_by_then() -> None:
    history = window(group(1, time=10), group(2, 3, time=20), group(4, time=20), group(5, time=30))
    assert [history.version_at(time) for time in (0, 9, 10, 19, 20, 29, 30, 10**18)] == [0, 0, 1, 1, 4, 4, 5, 5]


def test_the_version_of_a_time_before_the_window_is_unknown() -> None:
    history = window(group(1, time=10), group(2, time=20), group(3, time=30), max_commits=1)
    history.drop(0, budget_keys=100)
    assert [history.version_at(time) for time in (20, 29, 30)] == [2, 2, 3]
    with pytest.raises(SnapshotGone) as refused:
        history.version_at(19)
    assert (refused.value.version, refused.value.oldest_readable) == (None, 2)


def test_of_an_empty_window_the_last_version_is_current_since_its_time() -> None:
    history = window(group(1, time=10), group(2, time=20), max_commits=0)
    history.drop(0, budget_keys=100)
    assert (history.oldest, history.version_at(20), list(history.since(2)), history.newest_since(2)) == (
        None,
        2,
        [],
        [],
    )
    with pytest.raises(SnapshotGone):
        history.version_at(19)


def test_a_group_yields_its_commits_one_by_one() -> None:
    together = Group(0, NO_AUTHOR, (Head("a", b"", 3, None), Head("b", None, 3, None)), 1, 10, True)
    apart = group(4, 5)
    assert [(version, len(heads)) for version, heads in together.each()] == [(3, 2)]
    assert [(version, [head.version for head in heads]) for version, heads in apart.each()] == [(4, [4]), (5, [5])]
    assert [version for version, _ in group(6).each()] == [6]


def test_places_of_dropped_groups_are_removed_and_every_group_is_still_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "_COMPACT_PLACES", 8)
    history = window(max_commits=5)
    for version in range(1, 500):
        history.append(group(version, time=version))
        history.drop(0, budget_keys=100)
        oldest = max(1, version - 4)
        assert held(history) == list(range(oldest, version + 1))
        assert len(history._queue) <= 5 + 8
        assert history.oldest is not None
        assert (history.oldest.time, history.oldest_readable) == (oldest, oldest - 1)
        assert [each.time for each in history.newest()] == list(range(version, oldest - 1, -1))
        assert [each.time for each in history.since(oldest)] == list(range(oldest + 1, version + 1))
        found = history.group_of(oldest)
        assert found is not None
        assert (found.time, history.group_of(oldest - 1), history.version_at(version)) == (oldest, None, version)


def test_at_most_as_many_places_are_kept_as_there_are_groups_or_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "_COMPACT_PLACES", 8)
    history = window(*(group(version) for version in range(1, 101)))
    history.limits = WindowLimits(max_commits=0)
    for _ in range(100):
        history.drop(0, budget_keys=1)
        assert len(history._queue) - len(history.groups) < max(8, len(history.groups))
    assert len(history._queue) <= 8
