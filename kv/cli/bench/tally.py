"""What one worker counts, and how it reports that to the parent: as JSON can carry it."""

from kv.cli.bench.histogram import Histogram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Tally:
    """Counts: operations that succeeded, by name; errors, by code; latencies."""

    def __init__(self) -> None:
        self.operations: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self.histogram = Histogram()
        self.seconds = 0.0
        self.processor_s = 0.0
        self.near_cache: dict[str, int] = {}

    @property
    def done(self) -> int:
        """The number of requests that were answered, errors included."""
        return sum(self.operations.values()) + sum(self.errors.values())

    def succeeded(self, operation: str) -> None:
        """Count one more ``operation``."""
        self.operations[operation] = self.operations.get(operation, 0) + 1

    def failed(self, code: str, count: int = 1) -> None:
        """Count ``count`` more errors."""
        self.errors[code] = self.errors.get(code, 0) + count

    def report(self) -> "dict[str, Any]":
        """Return everything, for ``add`` in another process."""
        return {
            "operations": self.operations,
            "errors": self.errors,
            "buckets": list(self.histogram.filled()),
            "max": self.histogram.max,
            "seconds": self.seconds,
            "processor_s": self.processor_s,
            "near_cache": self.near_cache,
        }

    def add(self, report: "dict[str, Any]") -> None:
        """Add the report of another process. They run side by side, so the longest time is that of all."""
        _sum(self.operations, report["operations"])
        _sum(self.errors, report["errors"])
        _sum(self.near_cache, report["near_cache"])
        self.histogram.add(report["buckets"], report["max"])
        self.seconds = max(self.seconds, report["seconds"])
        self.processor_s += report["processor_s"]


def _sum(into: dict[str, int], more: dict[str, int]) -> None:
    for name, count in more.items():
        into[name] = into.get(name, 0) + count
