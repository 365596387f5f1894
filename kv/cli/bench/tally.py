"""What one worker has done, as it is counted, and as it is told to the parent: in what JSON can carry."""

from kv.cli.bench.histogram import Histogram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Tally:
    """Operations that succeeded by name, errors by code, latencies."""

    def __init__(self) -> None:
        self.operations: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self.histogram = Histogram()
        self.seconds = 0.0
        self.processor_s = 0.0
        self.near_cache: dict[str, int] = {}

    @property
    def done(self) -> int:
        """Everything that was answered, errors included."""
        return sum(self.operations.values()) + sum(self.errors.values())

    def succeeded(self, operation: str) -> None:
        """One more of these."""
        self.operations[operation] = self.operations.get(operation, 0) + 1

    def failed(self, code: str, count: int = 1) -> None:
        """So many more errors."""
        self.errors[code] = self.errors.get(code, 0) + count

    def told(self) -> "dict[str, Any]":
        """For ``add`` in another process."""
        return {
            "operations": self.operations,
            "errors": self.errors,
            "buckets": list(self.histogram.filled()),
            "max": self.histogram.max,
            "seconds": self.seconds,
            "processor_s": self.processor_s,
            "near_cache": self.near_cache,
        }

    def add(self, told: "dict[str, Any]") -> None:
        """Count in what another process has told. They ran side by side: the longest time is that of all."""
        _sum(self.operations, told["operations"])
        _sum(self.errors, told["errors"])
        _sum(self.near_cache, told["near_cache"])
        self.histogram.add(told["buckets"], told["max"])
        self.seconds = max(self.seconds, told["seconds"])
        self.processor_s += told["processor_s"]


def _sum(into: dict[str, int], more: dict[str, int]) -> None:
    for name, count in more.items():
        into[name] = into.get(name, 0) + count
