"""Durations on the command line, without a daemon."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv.cli.durations import duration_s, maybe_duration_s, show_duration
from kv.cli.failures import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m", 600), ("1h30m", 5400), ("500ms", 0.5), ("2d", 172800), ("90", 90), ("1.5", 1.5), ("1.5h", 5400),
     ("1w", 604800), ("1m500ms", 60.5), ("1d2h3m4s", 93784)],
)  # fmt: skip
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert duration_s(text, "--ttl") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "m", "10x", "m10", "30m1h", "5m5m", "-5m", "5 m", "1e3", "nan", "inf", "5m ago", "٣m", "1.m", "0x1", "\n"],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--ttl is a duration such as 10m"):
        duration_s(text, "--ttl")


@pytest.mark.parametrize("text", ["0", "0s", "0.0001", "1" + "0" * 9 + "w", "9" * 400])
def test_a_duration_is_from_a_millisecond_to_a_hundred_years(text: str) -> None:
    with pytest.raises(UsageError, match="at most a hundred years"):
        duration_s(text, "--ttl")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.312, "312ms"),
        (1, "1s"),
        (599.87, "9m59s"),
        (3600, "1h"),
        (90061.5, "1d1h1m1s"),
        (86400 * 30, "30d"),
    ],
)
def test_a_duration_is_shown_rounded_down(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text


@settings(deadline=None)
@given(st.integers(1, 10**9))
def test_a_shown_duration_is_read_as_the_same(seconds: int) -> None:
    assert maybe_duration_s(show_duration(seconds)) == seconds


@settings(deadline=None)
@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        assert duration_s(text, "--ttl") > 0
    except UsageError:
        pass
