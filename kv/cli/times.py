"""Moments: how people write one, and how one is shown. A moment is in µs since the epoch.

2026-11-23T10:00:00     a date and a local time; seconds and fractions may be missing, a blank may replace the T
2026-11-23T10:00:00Z    the same with a zone: Z, +01:00
2026-11-23              local midnight
10:00, 10:00:30         the last time the local clock showed it
@1795428000             seconds since the epoch, also with a fraction
5m, 1h30m, 5m ago       this long ago
"""

import re
import time
from datetime import UTC, datetime, timedelta

from kv.cli.durations import with_units_s

_SHAPE = r"(\d{4}-\d\d-\d\d)?([T ]?)(\d\d?:\d\d(?::\d\d(?:\.\d{1,6})?)?)?(Z|[+-]\d\d:?\d\d)?"


def maybe_time_us(text: str, now_us: int | None = None) -> int | None:
    """Return the moment that ``text`` names, or None if it names none."""
    now_us = time.time_ns() // 1000 if now_us is None else now_us
    ago_s = with_units_s(text.removesuffix(" ago"))
    if ago_s is not None:
        return max(0, now_us - round(ago_s * 1e6))
    if text.startswith("@"):
        return _epoch_us(text[1:])
    try:
        moment_us = _calendar_us(text, now_us)
    except (ValueError, OverflowError):  # the 31st of June, the end of the year 9999
        return None
    return moment_us if moment_us is not None and moment_us >= 0 else None


def _epoch_us(text: str) -> int | None:
    if not re.fullmatch(r"\d{1,11}(\.\d{1,6})?", text, re.ASCII):
        return None
    seconds, _, fraction = text.partition(".")
    return int(seconds) * 1_000_000 + int(fraction.ljust(6, "0") if fraction else 0)


def _calendar_us(text: str, now_us: int) -> int | None:
    shape = re.fullmatch(_SHAPE, text, re.ASCII)
    if shape is None:
        return None
    date, between, clock, zone = shape.groups()
    if bool(between) != bool(date and clock) or not (date or clock) or (zone and not clock):
        return None
    if clock and clock[1] == ":":
        clock = "0" + clock
    if date:
        return _to_us(datetime.fromisoformat(f"{date}T{clock or '00:00'}{zone or ''}"))
    if zone:
        return None  # of which day?
    today = datetime.fromtimestamp(now_us / 1e6)  # noqa: DTZ006 (a local time, without a zone)
    moment = datetime.fromisoformat(f"{today:%Y-%m-%d}T{clock}")
    return _to_us(moment if _to_us(moment) <= now_us else moment - timedelta(days=1))


def _to_us(moment: datetime) -> int:
    return (moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def show_time(time_us: int | None) -> str:
    """Return a moment for people: local date and time, to the second."""
    if time_us is None:
        return "time unknown"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_us // 1_000_000))


def time_json(time_us: int | None) -> str | None:
    """Return a moment for programs: exact, in UTC. ``--at`` takes this form, too."""
    if time_us is None:
        return None
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(time_us // 1_000_000))}.{time_us % 1_000_000:06}Z"
