"""The figures as the families of prometheus-client. Only ``exposition.py`` imports this.

Names follow https://prometheus.io/docs/practices/naming/: base units, ``_total`` for what only rises.
"""

from collections.abc import Iterator
from itertools import accumulate
from os import sysconf
from time import CLOCK_BOOTTIME, clock_gettime, process_time, time

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
from kvd.telemetry.figures import Figures
from kvd.telemetry.metrics import SAMPLED, Histogram


def _started() -> float:
    """When this process started, in seconds since the epoch; 0 if /proc does not say. See proc(5)."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0.0
    return time() - (clock_gettime(CLOCK_BOOTTIME) - ticks / sysconf("SC_CLK_TCK"))


_STARTED = _started()


def render_prometheus(figures: Figures) -> bytes:
    """Return all figures in the text format, version 0.0.4."""
    return generate_latest(KvdCollector(figures))


class KvdCollector(Collector):
    """The metric families of one moment's figures."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """The families, in the order of docs/metrics.md."""
        figures = self._figures
        yield InfoMetricFamily("kvd", "The daemon that answers.", {"version": __version__})
        yield from _keys(figures)
        yield from _commits(figures)
        yield from _history(figures)
        yield from _memory(figures)
        yield from _connections(figures)
        yield from _times(figures)
        if figures.has_log:
            yield from _journal(figures)
        yield from _process(figures)


def _keys(figures: Figures) -> Iterator[Metric]:
    gets, misses = figures.get_operations, figures.get_misses
    yield _gauge("kvd_keys", "Keys that have a value.", figures.keys)
    yield _gauge("kvd_value_bytes", "Bytes of their values.", figures.value_bytes)
    yield _counter("kvd_set_operations", "Keys set.", figures.set_operations)
    yield _counter("kvd_get_operations", "Keys read, not counting hits in near caches.", gets)
    yield _counter(
        "kvd_delete_operations", "Keys deleted by a request or at the end of a connection.", figures.delete_operations
    )
    yield _counter("kvd_get_hits", "Keys read that had a value.", gets - misses)
    yield _counter("kvd_get_misses", "Keys read that had none.", misses)
    yield _counter("kvd_expired_keys", "Keys deleted at their deadline.", figures.expired_keys)
    yield _counter("kvd_evicted_keys", "Keys deleted to free memory.", figures.evicted_keys)
    yield _gauge("kvd_keys_with_deadline", "Keys that will expire.", figures.keys_with_deadline)


def _commits(figures: Figures) -> Iterator[Metric]:
    yield _counter("kvd_commits", "Commits since the start, including those of expiry and eviction.", figures.commits)
    text = "Commits refused because a key or range that they had read had changed."
    yield _counter("kvd_conflicts", text, figures.conflicts)
    yield _gauge("kvd_version", "The newest version.", figures.version)
    errors = CounterMetricFamily("kvd_errors", "Requests answered with an error, by its code.", labels=["code"])
    for code, count in sorted(figures.errors.items()):
        errors.add_metric([code], count)
    yield errors


def _history(figures: Figures) -> Iterator[Metric]:
    age, oldest = figures.history_age_us / 1e6, figures.oldest_readable_version
    text = "Versions that can be read besides the current one."
    yield _gauge("kvd_history_versions", text, figures.history_versions)
    yield _gauge("kvd_history_bytes", "Bytes that they take.", figures.history_bytes)
    yield _gauge("kvd_history_oldest_age_seconds", "The age of the oldest commit in the history.", age)
    yield _gauge("kvd_oldest_readable_version", "The oldest version that can be read.", oldest)
    yield _gauge("kvd_snapshots", "Snapshots that connections hold.", figures.snapshots)
    text = "Versions kept readable for snapshots, watches, backups."
    yield _gauge("kvd_pinned_versions", text, figures.pinned_versions)


def _memory(figures: Figures) -> Iterator[Metric]:
    memory = GaugeMetricFamily("kvd_memory_bytes", "Memory that is counted, by what uses it.", labels=["kind"])
    for kind, size in figures.memory_by_kind.items():
        memory.add_metric([kind], size)
    yield memory
    text = "The limit of the counted memory; 0: no limit."
    yield _gauge("kvd_memory_limit_bytes", text, figures.memory_limit_bytes)


def _connections(figures: Figures) -> Iterator[Metric]:
    yield _gauge("kvd_connections", "Connections that are open.", figures.connections)
    yield _counter("kvd_connections_accepted", "Connections that were accepted.", figures.connections_accepted)
    text = "Connections of these that were refused because there were too many."
    yield _counter("kvd_connections_refused", text, figures.connections_refused)
    yield _gauge("kvd_feeds", "Connections that receive events: watches and backups.", figures.feeds)
    yield _gauge("kvd_near_cache_clients", "Clients with a near cache.", figures.near_cache_clients)


def _times(figures: Figures) -> Iterator[Metric]:
    text = (
        "How long it took to run a frame, by its requests, without waiting for the disk and the network. "
        f"One frame in {SAMPLED} is timed; neighbouring frames of sets count as one."
    )
    frames = HistogramMetricFamily("kvd_command_duration_seconds", text, labels=["command"])
    for command, times in figures.frame_times:
        frames.add_metric([command], _buckets(times), times.total)
    yield frames
    text = "How long large or costly frames took. They run in slices, and other frames run in between; each is timed."
    yield _histogram("kvd_sliced_frame_duration_seconds", text, figures.sliced_times)
    text = (
        "How late the loop ran callbacks that were due, to the millisecond; measured only while a client asks for it."
    )
    yield _histogram("kvd_loop_lag_seconds", text, figures.loop_lag_times)


def _journal(figures: Figures) -> Iterator[Metric]:
    yield _counter("kvd_journal_written_bytes", "Bytes written to the commit log.", figures.log_bytes_written)
    yield _histogram("kvd_journal_sync_duration_seconds", "How long syncs took.", figures.sync_times)
    text = "The newest version that is on the disk."
    yield _gauge("kvd_journal_synced_version", text, figures.log_synced_version)
    text = "The version that the newest checkpoint ends at."
    yield _gauge("kvd_checkpoint_version", text, figures.checkpoint_version)
    text = "Checkpoints that could not be written."
    yield _counter("kvd_checkpoint_failures", text, figures.checkpoint_failures)


def _process(figures: Figures) -> Iterator[Metric]:
    text = "Resident memory of the process."
    yield _gauge("process_resident_memory_bytes", text, figures.resident_bytes)
    yield _counter("process_cpu_seconds", "Processor time of the process, all threads.", process_time())
    yield _gauge("process_start_time_seconds", "When the process started, since the epoch.", _STARTED)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _histogram(name: str, text: str, times: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, buckets=_buckets(times), sum_value=times.total)


def _buckets(times: Histogram) -> list[tuple[str, float]]:
    """The upper bounds, each with the number of durations at or below it."""
    bounds = [*map(repr, times.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(times.counts)), strict=True))
