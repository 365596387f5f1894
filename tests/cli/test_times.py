"""Moments on the command line, without a daemon. The local clock is three hours ahead of UTC."""

import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv.cli.failures import UsageError
from kv.cli.points import HistoryPoint
from kv.cli.times import maybe_time_us, show_time, time_json

NOON_US = 1_795_435_200_000_000  # 2026-11-23 12:00:00 UTC, 15:00 here


@pytest.fixture(autouse=True)
def three_hours_ahead(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "XYZ-3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-23T10:00:00", "2026-11-23T07:00:00.000000Z"),
        ("2026-11-23 10:00", "2026-11-23T07:00:00.000000Z"),
        ("2026-11-23T10:00:00.25", "2026-11-23T07:00:00.250000Z"),
        ("2026-11-23T10:00:00Z", "2026-11-23T10:00:00.000000Z"),
        ("2026-11-23T10:00:00+01:00", "2026-11-23T09:00:00.000000Z"),
        ("2026-11-23T10:00:00-0100", "2026-11-23T11:00:00.000000Z"),
        ("2026-11-23", "2026-11-22T21:00:00.000000Z"),
        ("10:00", "2026-11-23T07:00:00.000000Z"),
        ("9:30", "2026-11-23T06:30:00.000000Z"),
        ("15:00", "2026-11-23T12:00:00.000000Z"),
        ("15:00:01", "2026-11-22T12:00:01.000000Z"),
        ("@1795435200", "2026-11-23T12:00:00.000000Z"),
        ("@1795435200.5", "2026-11-23T12:00:00.500000Z"),
        ("5m", "2026-11-23T11:55:00.000000Z"),
        ("1h30m ago", "2026-11-23T10:30:00.000000Z"),
    ],
)
def test_a_moment_is_read(text: str, moment: str) -> None:
    assert time_json(maybe_time_us(text, NOON_US)) == moment


@pytest.mark.parametrize(
    "text",
    ["", "-5m", "ago", " ago", "24:00", "10:60", "10:00Z", "2026-02-30", "2026-11-23T", "T10:00", "26-11-23", "@", "@x",
     "@-1", "@1e9", "0001-01-01", "1900-01-01", "9999-12-31T23:59:59-23:00", "2026-11-23T10:00:00+99:00", "yesterday",
     "٣m"],
)  # fmt: skip
def test_what_is_no_moment_is_refused(text: str) -> None:
    assert maybe_time_us(text, NOON_US) is None
    with pytest.raises(UsageError, match=r"--at"):
        HistoryPoint(text or "?", "--at")


@settings(deadline=None)
@given(st.text(alphabet="0123456789-+:TZ .@mhsago", max_size=30))
def test_any_text_is_a_moment_or_not(text: str) -> None:
    maybe_time_us(text, NOON_US)


@settings(deadline=None)
@given(st.integers(0, 4_000_000_000_000_000))
def test_a_moment_for_programs_is_read_as_the_same(moment_us: int) -> None:
    text = time_json(moment_us)
    assert text is not None
    assert maybe_time_us(text) == moment_us


# ---------------------------------------------------------------------- the days on which clocks are moved


@pytest.fixture
def central_europe(monkeypatch: pytest.MonkeyPatch) -> None:
    """In 2026 the clock goes from 02:00 to 03:00 on 29 March (01:00 UTC), and from 03:00 to 02:00 on 25 October."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0/2,M10.5.0/3")
    time.tzset()


def us(text: str) -> int:
    """The moment that ``text``, which names its zone, is."""
    moment = maybe_time_us(text)
    assert moment is not None
    return moment


AUTUMN = "2026-10-25T0"


@pytest.mark.usefixtures("central_europe")
@pytest.mark.parametrize(
    ("text", "now", "moment"),
    [
        # 02:30 came at 00:30 and at 01:30 UTC.
        ("02:30", AUTUMN + "1:45:00Z", AUTUMN + "1:30:00Z"),
        ("02:30", AUTUMN + "1:15:00Z", AUTUMN + "0:30:00Z"),
        ("02:30", AUTUMN + "0:45:00Z", AUTUMN + "0:30:00Z"),
        ("02:30", AUTUMN + "0:15:00Z", "2026-10-24T00:30:00Z"),
        ("02:30", AUTUMN + "9:00:00Z", AUTUMN + "1:30:00Z"),
        ("2026-10-25 02:30", AUTUMN + "1:15:00Z", AUTUMN + "0:30:00Z"),
        ("2026-10-25T02:30", AUTUMN + "9:00:00Z", AUTUMN + "1:30:00Z"),
        ("2026-10-25", AUTUMN + "9:00:00Z", "2026-10-24T22:00:00Z"),
        # The clock did not show 02:30 on this day: it was last shown the day before.
        ("02:30", "2026-03-29T10:00:00Z", "2026-03-28T01:30:00Z"),
        ("03:30", "2026-03-29T10:00:00Z", "2026-03-29T01:30:00Z"),
        ("02:30", "2026-03-30T00:15:00Z", "2026-03-28T01:30:00Z"),
    ],
)
def test_a_time_of_the_clock_is_the_last_that_it_has_shown(text: str, now: str, moment: str) -> None:
    assert maybe_time_us(text, us(now)) == us(moment)


@pytest.mark.usefixtures("central_europe")
@settings(deadline=None)
@given(st.integers(us("2026-10-24T22:00:00Z") // 1_000_000, us("2026-10-25T06:00:00Z") // 1_000_000))
def test_a_moment_for_people_is_read_as_the_same_also_in_the_hour_that_comes_twice(moment_s: int) -> None:
    moment_us = moment_s * 1_000_000
    assert maybe_time_us(show_time(moment_us), us("2026-12-01T00:00:00Z")) == moment_us


@pytest.mark.parametrize("text", ["9" * 400 + "d", "9" * 400 + "w ago", "9" * 30 + "h"])
def test_a_time_before_all_times_is_the_beginning(text: str) -> None:
    assert maybe_time_us(text, NOON_US) == 0


def test_moments_for_people_are_local() -> None:
    assert show_time(NOON_US) == "2026-11-23 15:00:00"
    assert show_time(None) == "time unknown"


@pytest.mark.parametrize("text", ["99999999999999999999", "9223372036854775808", "1.5", "1234x", "-1", "v12", "NOW"])
def test_a_point_that_is_neither_a_version_nor_a_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--to"):
        HistoryPoint(text, "--to")


def test_a_time_in_the_future_is_refused() -> None:
    with pytest.raises(UsageError, match="in the future"):
        HistoryPoint("2300-01-01", "--at")
