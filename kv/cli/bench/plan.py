"""What a benchmark is to do, as it was asked for, checked as far as it can be without a daemon."""

from kv.cli.failures import UsageError
from kvd.protocol.address import parse_tcp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.cli.parser import Options

OPERATIONS = ("get", "set", "del", "incr")
DISTRIBUTIONS = ("uniform", "zipf")
DEFAULT_DURATION_S = 5.0
# What the daemon takes unless configured otherwise; it refuses more itself, this only says so earlier.
_MAX_VALUE_BYTES = 8 << 20
_MAX_FRAME_BYTES = 16 << 20
_MAX_PIPELINE = 65_536
_MAX_PROCESSES = 256
_MAX_KEYS = 100_000_000


class Plan:
    """One benchmark."""

    def __init__(self, options: "Options") -> None:
        def given(name: str, default: int) -> int:
            return int(getattr(options, name, default))

        self.mix: dict[str, float] = _mix(options)
        self.keys = given("keys", 10_000)
        self.value_bytes = given("value_size", 64)
        self.processes = given("processes", 1)
        self.near_cache: bool = getattr(options, "near_cache", False)
        self.connections = given("connections", self.processes if self.near_cache else max(16, self.processes))
        self.pipeline = given("pipeline", 1)
        self.distribution: str = getattr(options, "distribution", DISTRIBUTIONS[0])
        self.seed = given("seed", 1)
        self.requests: int | None = getattr(options, "requests", None)
        self.duration_s: float | None = None if self.requests else getattr(options, "duration", DEFAULT_DURATION_S)
        self.address: str | None = options.socket
        self.token_file: str | None = options.token_file
        self.timeout_s = options.timeout_s()
        self._check()

    def _check(self) -> None:
        """Raise UsageError for what cannot be done."""
        _at_most("--value-size", self.value_bytes, _MAX_VALUE_BYTES)
        _at_most("--keys", self.keys, _MAX_KEYS)
        _at_most("--processes", self.processes, _MAX_PROCESSES)
        _at_most("--pipeline", self.pipeline, _MAX_PIPELINE)
        if self.connections < self.processes:
            raise UsageError(
                f"--connections {self.connections} is less than one for each of {self.processes} processes"
            )
        if self.requests is not None and self.requests < self.connections:
            raise UsageError(f"--requests {self.requests} is less than one for each of {self.connections} connections")
        if self.pipeline * self.value_bytes > _MAX_FRAME_BYTES and self.pipeline > 1:
            raise UsageError(f"--pipeline {self.pipeline} of --value-size {self.value_bytes} is over 16 MiB a frame")
        if self.near_cache:
            self._check_near_cache()
        _check_descriptors(self.connections)

    def _check_near_cache(self) -> None:
        if self.pipeline > 1:
            raise UsageError("--near-cache answers each read by itself: leave --pipeline out")
        if self.connections != self.processes:
            raise UsageError("--near-cache has one connection for each process: leave --connections out")
        try:
            over_tcp = self.address is not None and parse_tcp(self.address) is not None
        except ValueError as error:
            raise UsageError(f"{error}; write a socket's path, tcp://HOST:PORT or tls://HOST:PORT") from None
        if over_tcp:
            raise UsageError("--near-cache needs a Unix socket")

    def share(self, whole: int, process: int) -> int:
        """How much of ``whole`` is for this process, of 0 to ``processes`` - 1; all shares add up to it."""
        return whole // self.processes + (process < whole % self.processes)

    def settings(self) -> "dict[str, object]":
        """For ``--json``: all that another run needs to be the same."""
        names = ("mix", "keys", "value_bytes", "connections", "processes", "pipeline", "distribution", "near_cache",
                 "seed", "requests", "duration_s")  # fmt: skip
        return {name: getattr(self, name) for name in names}


def _mix(options: "Options") -> dict[str, float]:
    """Operations with their share of all, which add up to 1."""
    text = getattr(options, "mix", None)
    if text is None:
        reads = getattr(options, "reads", 95.0)
        text = f"get={reads},set={100 - reads}"
    weights = {name: float(weight) for name, weight in (part.split("=") for part in text.split(","))}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items() if weight}


def check_mix(text: str) -> str:
    """``get=95,set=5``, as it is. Raises UsageError if it is no mix."""
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


def check_reads(text: str) -> float:
    """A percentage. Raises UsageError."""
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


def _at_most(option: str, value: int, most: int) -> None:
    if value > most:
        raise UsageError(f"{option} is at most {most}, not {value}")


def _check_descriptors(connections: int) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + 1_000  # for pipes, and for what is open anyway
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UsageError(f"--connections {connections} is more than this process may open (ulimit -n: {hard})")
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard) if hard >= 0 else needed, hard))
