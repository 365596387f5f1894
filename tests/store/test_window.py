"""The history window: what is dropped, in which order, and what a pin holds."""

import pytest

from kvd.store.heads import Head
from kvd.store.window import Group, Window, WindowLimits

WIDE = WindowLimits(max_age_us=10**9, max_bytes=10**9, max_commits=10**9, max_pinned_bytes=10**9)


def group(*versions: int, time: int = 0, size: int = 10) -> Group:
    """One group of commits, a key each."""
    return Group(time, "", tuple(Head("k", b"", version, None) for version in versions), len(versions), size, False)


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
def test_past_any_one_limit_the_oldest_group_goes(limits: dict[str, int], now: int) -> None:
    history = window(group(1), group(2, 3, time=1), **limits)
    oldest = history.groups[0]
    assert history.drop(now, budget_keys=100) == [oldest]
    assert (history.bytes, history.commits, history.oldest_readable, held(history)) == (10, 2, 1, [2, 3])


def test_what_came_together_goes_together_and_the_last_of_it_is_readable_from_then_on() -> None:
    history = window(group(1, 2, 3), group(4), max_commits=3)
    history.drop(0, budget_keys=100)
    assert (history.oldest_readable, held(history)) == (3, [4])


def test_the_budget_ends_a_drop_early_and_the_next_goes_on() -> None:
    history = window(*(group(version) for version in range(1, 10)), max_commits=0)
    assert len(history.drop(0, budget_keys=2)) == 2
    assert len(history.drop(0, budget_keys=0)) == 0
    assert len(history.drop(0, budget_keys=100)) == 7
    assert (history.bytes, history.commits, history.oldest_readable, history.drop(0, 100)) == (0, 0, 9, [])


def test_a_pinned_version_stays_readable_until_it_is_released_as_often_as_it_was_pinned() -> None:
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


def test_a_pin_holds_no_more_bytes_than_it_may() -> None:
    history = window(max_commits=0, max_pinned_bytes=20)
    history.pin(0)
    for version in (1, 2, 3):
        history.append(group(version))
    history.drop(0, 100)
    assert (history.bytes, history.oldest_readable) == (20, 1), "the pinned version 0 has gone, no more than needed"


def test_a_pin_never_makes_the_window_smaller_than_it_is_without() -> None:
    """With a limit for pins that is below the ordinary one."""
    history = window(max_bytes=30, max_pinned_bytes=10)
    history.pin(0)
    for version in (1, 2, 3):
        history.append(group(version))
    assert history.drop(0, 100) == []
    history.append(group(4))
    history.drop(0, 100)
    assert held(history) == [2, 3, 4]


def test_releasing_what_is_not_pinned_is_a_fault_of_the_caller() -> None:
    with pytest.raises(KeyError):
        window().unpin(7)
