"""The options of ``kv bench``: their defaults, and how each is read from the command line."""

from kv.cli.durations import duration_s
from kv.cli.failures import UsageError
from kv.cli.parser import CommonOptions

OPERATIONS = ("get", "set", "del", "incr")
DISTRIBUTIONS = ("uniform", "zipf")


class Options(CommonOptions):
    """The options of ``kv bench``."""

    mix: str | None = None
    reads: float = 95.0
    keys: int = 10_000
    value_bytes: int = 64
    distribution: str = DISTRIBUTIONS[0]
    seed: int = 1
    duration_s: float = 5.0
    requests: int | None = None
    connections: int | None = None
    pipeline: int = 1
    processes: int = 1
    near_cache: bool = False
    json: bool = False


def read_mix(text: str) -> str:
    """Return ``text`` if it is a mix such as ``get=95,set=5``. Raises UsageError."""
    problem = f"--mix is operations and their shares, such as get=95,set=5 (of {', '.join(OPERATIONS)}), not {text!r}"
    seen: set[str] = set()
    total = 0.0
    for part in text.split(","):
        name, equals, weight = part.partition("=")
        if name not in OPERATIONS or not equals or name in seen:
            raise UsageError(problem)
        seen.add(name)
        total += _weight(weight, problem)
    if not total:
        raise UsageError(problem)
    return text


def read_reads(text: str) -> float:
    """Return a percentage. Raises UsageError."""
    problem = f"--reads is a percentage from 0 to 100, not {text!r}"
    percent = _weight(text, problem)
    if percent > 100:
        raise UsageError(problem)
    return percent


def _weight(text: str, problem: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight <= 1e9:  # also refuses nan
        raise UsageError(problem)
    return weight


def read_distribution(text: str) -> str:
    """Return one of DISTRIBUTIONS. Raises UsageError."""
    if text not in DISTRIBUTIONS:
        raise UsageError(f"--distribution is one of {', '.join(DISTRIBUTIONS)}, not {text!r}")
    return text


def read_duration_s(text: str) -> float:
    """Return a duration in seconds. Raises UsageError."""
    return duration_s(text, "--duration")
