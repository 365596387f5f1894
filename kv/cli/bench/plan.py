"""The plan of a benchmark: its options, checked as far as that is possible without a daemon."""

from kv.cli.failures import UsageError
from kvd.protocol.address import parse_tcp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.cli.bench.options import Options

# The defaults of the daemon's limits. The daemon enforces its own; these only give an earlier error.
_MAX_VALUE_BYTES = 8 << 20
_MAX_FRAME_BYTES = 16 << 20
_MAX_PIPELINE = 65_536
_MAX_PROCESSES = 256
_MAX_KEYS = 100_000_000


class Plan:
    """One benchmark."""

    def __init__(self, options: "Options") -> None:
        self.mix = _mix(options)
        self.keys = options.keys
        self.value_bytes = options.value_bytes
        self.processes = options.processes
        self.near_cache = options.near_cache
        self.connections = options.connections or (self.processes if self.near_cache else max(16, self.processes))
        self.pipeline = options.pipeline
        self.distribution = options.distribution
        self.seed = options.seed
        self.requests = options.requests
        self.duration_s = None if self.requests else options.duration_s
        self.address = options.socket
        self.token_file = options.token_file
        self.timeout_s = options.timeout_s()
        self._check()

    def _check(self) -> None:
        """Raise UsageError for a plan that cannot run."""
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

    def share(self, total: int, process: int) -> int:
        """Return how much of ``total`` is for ``process``, of 0 to ``processes`` - 1. All shares add up to it."""
        return total // self.processes + (process < total % self.processes)

    def settings(self) -> "dict[str, object]":
        """Return, for ``--json``, all that another run needs to be the same."""
        return {
            "mix": self.mix,
            "keys": self.keys,
            "value_bytes": self.value_bytes,
            "connections": self.connections,
            "processes": self.processes,
            "pipeline": self.pipeline,
            "distribution": self.distribution,
            "near_cache": self.near_cache,
            "seed": self.seed,
            "requests": self.requests,
            "duration_s": self.duration_s,
        }


def _mix(options: "Options") -> dict[str, float]:
    """Return the operations with their shares, which add up to 1."""
    text = f"get={options.reads},set={100 - options.reads}" if options.mix is None else options.mix
    weights = {name: float(weight) for name, weight in (part.split("=") for part in text.split(","))}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items() if weight}


def _at_most(option: str, value: int, maximum: int) -> None:
    if value > maximum:
        raise UsageError(f"{option} is at most {maximum}, not {value}")


def _check_descriptors(connections: int) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + 1_000  # for pipes, and for other open files
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UsageError(f"--connections {connections} is more than this process may open (ulimit -n: {hard})")
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(needed, hard) if hard >= 0 else needed, hard))
