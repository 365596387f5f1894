"""The checker of registers: what it must find, what it must not find, and that it agrees with trying all orders."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.near.register import INFINITY, Reads, Write, violations


def read(value: str | None, start: int, end: int) -> Reads:
    return Reads("k", value, end, start, 1)


def write(value: str, start: int, end: int = INFINITY) -> Write:
    return Write("k", value, start, end)


def test_reads_that_overlap_a_write_may_see_either() -> None:
    assert violations([write("a", 10, 30)], [read(None, 15, 18), read("a", 12, 20), read("a", 40, 50)]) == []


def test_an_old_value_after_a_newer_one_is_found() -> None:
    stale = [read("a", 60, 70)]
    assert len(violations([write("a", 10, 20), write("b", 30, 40)], stale)) == 1
    assert len(violations([write("a", 10, 20), write("b", 30)], [read("b", 40, 50), *stale])) == 1


def test_an_absent_value_after_a_write_is_found() -> None:
    assert len(violations([write("a", 10, 20)], [read(None, 30, 40)])) == 1


def test_a_value_read_before_its_write_or_never_written_is_found() -> None:
    assert len(violations([write("a", 10, 20)], [read("a", 5, 8)])) == 1
    assert len(violations([], [read("a", 5, 8)])) == 1


def test_a_write_with_an_unknown_outcome_may_be_made_or_not() -> None:
    writes = [write("a", 10, 20), write("b", 30)]
    assert violations(writes, [read("a", 40, 50)]) == []
    assert violations(writes, [read("a", 40, 50), read("b", 60, 70)]) == []


def test_a_value_that_returns_is_found() -> None:
    writes = [write("a", 10, 90), write("b", 10, 90)]
    assert len(violations(writes, [read("a", 20, 21), read("b", 30, 31), read("a", 40, 41)])) == 1


Call = tuple[str, str | None, int, int]


def is_a_register(calls: list[Call]) -> bool:
    """Whether a register can have these calls, in an order that respects which calls ended before others began."""
    for order in itertools.permutations(calls):
        now: str | None = None
        for at, (kind, value, start, _) in enumerate(order):
            if any(later[3] < start for later in order[at:]):
                break
            if kind == "read" and value != now:
                break
            now = value
        else:
            return True
    return False


times = st.tuples(st.integers(0, 20), st.integers(1, 8)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@settings(max_examples=400, deadline=None)
@given(
    written=st.lists(times, max_size=3),
    reads=st.lists(st.tuples(st.integers(-1, 2), times), max_size=4),
)
def test_the_checker_agrees_with_trying_all_orders(
    written: list[tuple[int, int]], reads: list[tuple[int, tuple[int, int]]]
) -> None:
    # No two times are the same in a recording.
    calls: list[Call] = [("write", str(n), 10 * start, 10 * end + 5) for n, (start, end) in enumerate(written)]
    for n, (value, (start, end)) in enumerate(reads):
        if value < len(written):
            calls.append(("read", None if value < 0 else str(value), 10 * start + n + 1, 10 * end + n + 6))
    problems = violations(
        [write(str(value), start, end) for kind, value, start, end in calls if kind == "write"],
        [read(value, start, end) for kind, value, start, end in calls if kind == "read"],
    )
    assert (problems == []) == is_a_register(calls)
