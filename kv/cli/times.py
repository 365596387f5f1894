"""Moments: how people write one, and how one is shown. A moment is in µs since the epoch.

2026-11-23T10:00:00     a date and a local time; seconds and fractions may be missing, a blank may replace the T
2026-11-23T10:00:00Z    the same with a zone: Z, +01:00
2026-11-23              local midnight
10:00, 10:00:30         the last time the local clock showed it, up to now
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
        return now_us - round(min(ago_s * 1e6, now_us))  # it may be infinite
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
        local = datetime.fromisoformat(f"{date}T{clock or '00:00'}{zone or ''}")
        return _to_us(local) if zone else _latest_us(local, now_us)
    if zone:
        return None  # of which day?
    return _last_time_us(clock, now_us)


def _latest_us(local: datetime, now_us: int) -> int:
    """Return the latest moment up to now at which the local clock shows ``local``, if there is one.

    A time in the gap of spring, which no clock has shown, is taken as if the clock had not been moved.
    """
    moments = _moments_us(local) or [_to_us(local)]
    return max((moment_us for moment_us in moments if moment_us <= now_us), default=min(moments))


def _last_time_us(clock: str, now_us: int) -> int | None:
    """Return when the local clock last showed ``clock``, up to now."""
    today = datetime.fromtimestamp(now_us / 1e6)  # noqa: DTZ006 (a local time, without a zone)
    for days in range(3):  # an hour that was left out in spring may be that of yesterday
        moments = _moments_us(datetime.fromisoformat(f"{today - timedelta(days=days):%Y-%m-%d}T{clock}"))
        past = [moment_us for moment_us in moments if moment_us <= now_us]
        if past:
            return max(past)
    return None


def _moments_us(local: datetime) -> list[int]:
    """Return when the local clock shows ``local``: twice in autumn's repeated hour, never in spring's gap."""
    moments_us = {_to_us(local.replace(fold=fold)) for fold in (0, 1)}
    shown = local.replace(microsecond=0)
    return [
        moment_us
        for moment_us in moments_us
        if datetime.fromtimestamp(moment_us // 1_000_000) == shown  # noqa: DTZ006 (a local time, without a zone)
    ]


def _to_us(moment: datetime) -> int:
    return (moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def show_time(time_us: int | None) -> str:
    """Return a moment for people: local date and time, to the second; with the zone where an hour comes twice."""
    if time_us is None:
        return "time unknown"
    local = time.localtime(time_us // 1_000_000)
    comes_twice = len(_moments_us(datetime(*local[:6]))) > 1  # noqa: DTZ001 (a local time, without a zone)
    zone = time.strftime("%z", local) if comes_twice else ""
    return time.strftime("%Y-%m-%d %H:%M:%S", local) + zone


def time_json(time_us: int | None) -> str | None:
    """Return a moment for programs: exact, in UTC. ``--at`` takes this form, too."""
    if time_us is None:
        return None
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(time_us // 1_000_000))}.{time_us % 1_000_000:06}Z"
