"""Our measures as the families of prometheus-client. Only ``exposition.py`` imports this.

Names follow https://prometheus.io/docs/practices/naming/: base units, ``_total`` for what only rises.
"""

from collections.abc import Iterator
from itertools import accumulate
from os import sysconf
from time import CLOCK_BOOTTIME, clock_gettime, process_time, time
from typing import TYPE_CHECKING

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from kvd import __version__
from kvd.telemetry.metrics import SAMPLED, Histogram

if TYPE_CHECKING:
    from kvd.requests.executor import Commands


def _started() -> float:
    """When this process started, in seconds since the epoch; 0 where /proc does not tell. See proc(5)."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0.0
    return time() - (clock_gettime(CLOCK_BOOTTIME) - ticks / sysconf("SC_CLK_TCK"))


_STARTED = _started()


def generate(commands: "Commands") -> bytes:
    """All of them in the text format."""
    return generate_latest(KvdCollector(commands))


class KvdCollector(Collector):
    """Everything that is measured, read anew each time."""

    def __init__(self, commands: "Commands") -> None:
        self._commands = commands

    def collect(self) -> Iterator[Metric]:
        """The families, in the order of docs/metrics.md."""
        yield InfoMetricFamily("kvd", "The daemon that answers.", {"version": __version__})
        yield from self._keys()
        yield from self._commits()
        yield from self._history()
        yield from self._memory()
        yield from self._connections()
        yield from self._times()
        if self._commands.durability is not None:
            yield from self._journal()
        yield from self._process()

    def _keys(self) -> Iterator[Metric]:
        database = self._commands.database
        counters = database.store.counters
        gets, misses = counters.get_operations, self._commands.measures.get_misses
        yield _gauge("kvd_keys", "Keys that have a value.", counters.keys)
        yield _gauge("kvd_value_bytes", "Bytes of their values.", counters.value_bytes)
        yield _counter("kvd_set_operations", "Keys set.", counters.set_operations)
        yield _counter("kvd_get_operations", "Keys read, near caches' own hits not among them.", gets)
        yield _counter("kvd_delete_operations", "Keys deleted by somebody.", counters.delete_operations)
        yield _counter("kvd_get_hits", "Keys read that had a value.", gets - misses)
        yield _counter("kvd_get_misses", "Keys read that had none.", misses)
        yield _counter("kvd_expired_keys", "Keys deleted at their deadline.", counters.expired_keys)
        yield _counter("kvd_evicted_keys", "Keys deleted to make room.", counters.evicted_keys)
        yield _gauge("kvd_keys_with_deadline", "Keys that will expire.", database.count_deadlines())

    def _commits(self) -> Iterator[Metric]:
        commands = self._commands
        store = commands.database.store
        commits = store.version - commands.measures.first_version
        yield _counter("kvd_commits", "Commits since the start, expiry's and eviction's among them.", commits)
        conflicts = commands.measures.conflicts
        yield _counter("kvd_conflicts", "Commits refused since what they had read had changed.", conflicts)
        yield _gauge("kvd_version", "The newest version.", store.version)
        errors = CounterMetricFamily("kvd_errors", "Requests answered with an error, by its code.", labels=["code"])
        for code, count in sorted(commands.measures.errors.items()):
            errors.add_metric([code], count)
        yield errors

    def _history(self) -> Iterator[Metric]:
        commands = self._commands
        window = commands.database.store.window
        age = commands.database.history_age_us() / 1e6
        yield _gauge("kvd_history_versions", "Versions that can be read beside the current one.", window.commits)
        yield _gauge("kvd_history_bytes", "Bytes that they take.", window.bytes)
        yield _gauge("kvd_history_oldest_age_seconds", "How long ago the oldest commit kept was made.", age)
        yield _gauge("kvd_oldest_readable_version", "The oldest version that can be read.", window.oldest_readable)
        yield _gauge("kvd_snapshots", "Snapshots that connections hold.", len(commands.snapshots))
        yield _gauge("kvd_pinned_versions", "Versions kept readable for snapshots, watches, backups.", window.pinned)

    def _memory(self) -> Iterator[Metric]:
        room = self._commands.database.memory
        memory = GaugeMetricFamily("kvd_memory_bytes", "Memory that is counted, by what takes it.", labels=["kind"])
        for kind, size in room.by_kind().items():
            memory.add_metric([kind], size)
        yield memory
        yield _gauge("kvd_memory_limit_bytes", "How much of it there may be; 0: without a limit.", room.max_bytes)

    def _connections(self) -> Iterator[Metric]:
        commands, measures = self._commands, self._commands.measures
        yield _gauge("kvd_connections", "Connections that are open.", measures.open_connections())
        yield _counter("kvd_connections_accepted", "Connections that came.", measures.accepted)
        yield _counter("kvd_connections_refused", "Of these, sent away as there were too many.", measures.rejected)
        yield _gauge("kvd_feeds", "Connections that are told of commits: watches and backups.", len(commands.feeds))
        yield _gauge("kvd_near_cache_clients", "Clients with a near cache.", commands.near_caches.clients)

    def _times(self) -> Iterator[Metric]:
        measures = self._commands.measures
        text = (
            "How long it took to run a frame, by its requests; waiting for the disk and the network not in it. "
            f"One frame in {SAMPLED} is timed; neighbouring frames of sets count as one."
        )
        frames = HistogramMetricFamily("kvd_command_duration_seconds", text, labels=["command"])
        for command, times in measures.frames():
            frames.add_metric([command], _buckets(times), times.total)
        yield frames
        text = "How long large or costly frames took, which run in slices with others' turns between; each is timed."
        yield _histogram("kvd_sliced_frame_duration_seconds", text, measures.sliced)
        if measures.loop_lag is not None:
            text = "How late the loop called what was due, to the millisecond; looked at while somebody scrapes."
            yield _histogram("kvd_loop_lag_seconds", text, measures.loop_lag.times)

    def _journal(self) -> Iterator[Metric]:
        durability = self._commands.durability
        assert durability is not None
        figures = dict(self._commands.administration.figures())
        written, failures = figures.get("log_bytes_written", 0), figures.get("checkpoint_failures", 0)
        yield _counter("kvd_journal_written_bytes", "Bytes written to the commit log.", written)
        yield _histogram("kvd_journal_sync_duration_seconds", "How long syncs took.", durability.sync_times)
        synced, checkpoint = figures.get("log_synced_version", 0), figures.get("checkpoint_version", 0)
        yield _gauge("kvd_journal_synced_version", "The newest version that is on the disk.", synced)
        yield _gauge("kvd_checkpoint_version", "The version that the newest checkpoint ends at.", checkpoint)
        yield _counter("kvd_checkpoint_failures", "Checkpoints that could not be written.", failures)

    def _process(self) -> Iterator[Metric]:
        resident = self._commands.administration.resident_bytes()
        yield _gauge("process_resident_memory_bytes", "Resident memory of the process.", resident)
        yield _counter("process_cpu_seconds", "Processor time of the process, all threads.", process_time())
        yield _gauge("process_start_time_seconds", "When the process started, since the epoch.", _STARTED)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _histogram(name: str, text: str, times: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, buckets=_buckets(times), sum_value=times.total)


def _buckets(times: Histogram) -> list[tuple[str, float]]:
    """Upper bounds and how many were at or below each."""
    bounds = [*map(repr, times.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(times.counts)), strict=True))
