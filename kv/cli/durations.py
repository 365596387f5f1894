"""Durations: ``10m``, ``1h30m``, ``500ms``, ``2d``, or a plain number of seconds."""

import re

from kv.cli.failures import UsageError

_UNITS_S = {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
UNITS = tuple(_UNITS_S)
# The longest time to live that the daemon takes.
MAX_S = 3_155_760_000.0
_PART = r"(\d+(?:\.\d+)?)(ms|[wdhms])"


def duration_s(text: str, name: str) -> float:
    """Return ``text`` in seconds, at least a millisecond. Raises UsageError, which names the option ``name``."""
    seconds = maybe_duration_s(text)
    if seconds is None:
        raise UsageError(f"{name} is a duration such as 10m, 1h30m, 500ms, 2d, or a number of seconds, not {text!r}")
    if not 0.001 <= seconds <= MAX_S:
        raise UsageError(f"{name} is at least 1ms and at most a hundred years, unlike {text!r}")
    return seconds


def maybe_duration_s(text: str) -> float | None:
    """Return ``text`` in seconds, or None if it is no duration."""
    if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    return with_units_s(text)


def with_units_s(text: str) -> float | None:
    """Return ``text`` in seconds if it is a duration with units, larger units first, each once; otherwise None."""
    parts = re.findall(_PART, text, re.ASCII)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    places = [UNITS.index(unit) for _, unit in parts]
    if places != sorted(set(places)):
        return None
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def show_duration(seconds: float) -> str:
    """Return ``seconds`` as ``9m59s``, rounded down to seconds; below one second, to milliseconds."""
    if seconds < 1:
        return f"{int(seconds * 1000)}ms"
    left = int(seconds)
    parts = []
    for unit in ("d", "h", "m", "s"):
        count, left = divmod(left, int(_UNITS_S[unit]))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)
