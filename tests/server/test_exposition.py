"""The Prometheus metrics of a real daemon, read by Prometheus' own parser: exact counts, histograms that add up."""

import itertools
import json
import pathlib
import re
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvd.telemetry.exposition import MAX_AGE_S, Exposition
from kvd.telemetry.metrics import SAMPLED
from tests.harness.clocks import ManualClock
from tests.harness.in_memory import connect
from tests.harness.processes import ROOT
from tests.harness.waiting import eventually

if TYPE_CHECKING:
    from tests.harness.watched_daemon import WatchedDaemon
    from tests.server.conftest import Start

DASHBOARD = json.loads((ROOT / "deploy/grafana/kvd.json").read_text())
Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]
CONFLICTS = "kvd_errors_total", (("code", "conflict"),)
# When the text of each daemon was last asked for.
SEEN_AT: "WeakKeyDictionary[WatchedDaemon, float]" = WeakKeyDictionary()
# Metrics that rise by themselves.
BY_TIME = ("kvd_history_oldest_age_seconds", "kvd_loop_lag_seconds")


def families(daemon: "WatchedDaemon") -> list[Any]:
    """The families as they are now: a text is given out for a second, so not before that is over."""
    eventually(lambda: time.monotonic() - SEEN_AT.get(daemon, 0.0) > MAX_AGE_S)
    (text,) = daemon.ask(["exposition"])
    SEEN_AT[daemon] = time.monotonic()
    return list(text_string_to_metric_families(text))


def samples(daemon: "WatchedDaemon") -> Samples:
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families(daemon) for s in f.samples}


def value(daemon: "WatchedDaemon", name: str, **labels: str) -> float:
    return samples(daemon)[name, tuple(sorted(labels.items()))]


def increases(daemon: "WatchedDaemon", work: Callable[[], object]) -> dict[str, float]:
    """How much each metric without labels changes while ``work`` runs. Unchanged metrics are left out."""
    before = samples(daemon)
    work()
    return {
        name: number - before[name, ()]
        for (name, labels), number in samples(daemon).items()
        if not labels and name.startswith("kvd_") and number != before[name, ()] and not name.startswith(BY_TIME)
    }


def test_counters_are_exact_after_mixed_requests(daemon: "WatchedDaemon") -> None:
    """Each kind of read with hits and misses, alone and in frames with others of its kind."""

    def mix() -> None:
        with daemon.connect() as peer:
            peer.ask(["set", {"a": b"1", "b": b"22", "empty": b""}])
            peer.ask(["set", {"c": b"3"}], ["set", {"d": b"4"}])
            peer.ask(["get", "a"])
            peer.ask(["get", "nothing"])
            peer.ask(["get", "a"], ["get", "empty"], ["get", "nothing"])
            peer.ask(["get_many", ["a", "b", "nothing", "neither"]])
            peer.ask(["fetch", ["a", "nothing"]])
            peer.ask(["get", ""], ["get_many", ["a", ""]], ["get", 5 * "x"])  # "" cannot be a key
            peer.ask(["delete", ["c", "d"]])
            peer.ask(["delete", ["nothing"], True])
            peer.ask(["commit", {"a": b"5"}, {"a": 0}])
            peer.ask(["commit", {"a": b"5"}, {"nothing": 0}])
        daemon.counts(0)

    conflicts = samples(daemon).get(CONFLICTS, 0)
    changed = increases(daemon, mix)
    assert changed.pop("kvd_history_bytes") > 0
    assert changed == {
        "kvd_keys": 3,
        "kvd_value_bytes": 3,
        "kvd_set_operations_total": 6,
        "kvd_get_operations_total": 12,
        "kvd_get_hits_total": 6,
        "kvd_get_misses_total": 6,
        "kvd_delete_operations_total": 2,
        "kvd_commits_total": 5,
        "kvd_version": 5,
        "kvd_history_versions": 5,
        "kvd_conflicts_total": 1,
        "kvd_connections_accepted_total": 1,
    }
    assert samples(daemon)[CONFLICTS] == conflicts + 1


def test_deadlines_and_evictions_are_counted(start: "Start") -> None:
    daemon = start('[[prefix]]\nprefix = "cache/"\nevict = true\nmax_keys = 3\n')

    def work() -> None:
        for number in range(5):
            daemon.ask(["set", {f"cache/{number}": b""}])
        daemon.ask(["set", {"soon": b""}, {"ttl": 1}])
        eventually(lambda: daemon.ask(["get", "soon"]) == [None])

    changed = increases(daemon, work)
    assert changed["kvd_expired_keys_total"] == 1
    assert changed["kvd_keys"] == 3
    assert changed["kvd_evicted_keys_total"] == 2
    assert changed["kvd_commits_total"] == changed["kvd_version"] == 6 + 1 + 2
    daemon.ask(["set", {"later": b""}, {"ttl": 10**6}])
    assert value(daemon, "kvd_keys_with_deadline") == 1


def test_connections_snapshots_watches_and_near_caches_are_counted(daemon: "WatchedDaemon") -> None:
    names = ("kvd_connections", "kvd_snapshots", "kvd_pinned_versions", "kvd_feeds", "kvd_near_cache_clients")

    def counts() -> list[float]:
        now = samples(daemon)
        return [now[name, ()] for name in names]

    assert counts() == [1, 0, 0, 0, 0]
    with daemon.connect() as snapshot, daemon.connect() as watch, daemon.connect() as near:
        snapshot.ask(["begin"], ["begin"])
        watch.ask(["watch", ""])
        near.ask(["attach"])
        assert counts() == [4, 2, 1, 1, 1]
    daemon.counts(0)
    assert counts() == [1, 0, 0, 0, 0]


def test_memory_by_kind_adds_up_to_the_total(daemon: "WatchedDaemon") -> None:
    daemon.ask(["set", {f"{number:05}": bytes(100) for number in range(1_000)}])
    daemon.ask(["set", {f"{number:05}": bytes(50) for number in range(1_000)}])
    kinds = {
        dict(labels)["kind"]: size for (name, labels), size in samples(daemon).items() if name == "kvd_memory_bytes"
    }
    assert kinds.keys() == {"keys", "values", "history", "buffers", "other"}
    assert kinds["values"] == 50_000
    assert kinds["keys"] >= 1_000 * 205
    assert kinds["history"] >= 1_000 * 100
    assert sum(kinds.values()) == daemon.metrics()["memory_bytes"]
    assert value(daemon, "process_resident_memory_bytes") == pytest.approx(daemon.rss(), rel=0.05)


def test_one_frame_in_n_is_timed_under_the_name_of_its_requests(start: "Start") -> None:
    daemon = start()
    rounds = 3
    for _ in range(rounds * SAMPLED):
        daemon.ask(["get", "a"])
        daemon.ask(["set", {"a": b""}])
        daemon.ask(["get", "a"], ["ping"])
        daemon.ask(["ttl", ["a"]])
    counts = {dict(labels)["command"]: count for (name, labels), count in samples(daemon).items()
              if name == "kvd_command_duration_seconds_count"}  # fmt: skip
    assert {name: counts.get(name) for name in ("get", "set", "mixed", "ttl")} == dict.fromkeys(
        ("get", "set", "mixed", "ttl"), rounds
    )


def test_histograms_add_up(start: "Start", tmp_path: pathlib.Path) -> None:
    daemon = start(f'data.dir = "{tmp_path}/data"\n')
    for number in range(2 * SAMPLED):
        daemon.ask(["set", {f"{number}": b""}])
    daemon.ask(["set", {str(number): b"x" * 100 for number in range(2_000)}])  # in slices
    histograms = [family for family in families(daemon) if family.type == "histogram"]
    assert {family.name for family in histograms} == {
        "kvd_command_duration_seconds",
        "kvd_sliced_frame_duration_seconds",
        "kvd_loop_lag_seconds",
        "kvd_journal_sync_duration_seconds",
    }
    for family in histograms:
        series: dict[str, list[Any]] = {}
        for sample in family.samples:
            series.setdefault(sample.labels.get("command", ""), []).append(sample)
        for bucket_samples in series.values():
            buckets = [(float(s.labels["le"]), s.value) for s in bucket_samples if s.name.endswith("_bucket")]
            (count,) = (s.value for s in bucket_samples if s.name.endswith("_count"))
            (total,) = (s.value for s in bucket_samples if s.name.endswith("_sum"))
            assert buckets[-1] == (float("inf"), count)
            assert all(low < high and before <= count for (low, before), (high, count) in pairwise(buckets))
            # At least as if each took just over its bucket's lower bound, at most as if each took its upper bound.
            edges = [(0.0, 0.0), *buckets]
            assert total >= sum((count - before) * low for (low, before), (_, count) in pairwise(edges))
            if buckets[-2][1] == count:
                assert total <= sum((count - before) * high for (_, before), (high, count) in pairwise(edges[:-1]))
    now = samples(daemon)
    assert now["kvd_sliced_frame_duration_seconds_count", ()] == 1
    assert now["kvd_journal_sync_duration_seconds_count", ()] >= 2 * SAMPLED
    assert now["kvd_journal_synced_version", ()] == now["kvd_version", ()]
    assert now["kvd_journal_written_bytes_total", ()] >= 200_000
    size = sum(path.stat().st_size for path in (tmp_path / "data").iterdir())
    assert size >= now["kvd_journal_written_bytes_total", ()]


def test_loop_lag_is_measured_while_a_client_asks_for_metrics(start: "Start") -> None:
    daemon = start()
    assert value(daemon, "kvd_loop_lag_seconds_count") == 0
    eventually(lambda: value(daemon, "kvd_loop_lag_seconds_count") >= 2)
    before = value(daemon, "kvd_loop_lag_seconds_sum")
    began = time.monotonic()
    with daemon.held_still():
        eventually(lambda: time.monotonic() - began > 0.3)  # longer than the period of measurement plus 0.1 s
    eventually(lambda: value(daemon, "kvd_loop_lag_seconds_sum") - before > 0.1)


def test_a_daemon_loads_the_library_before_any_client_asks(start: "Start") -> None:
    assert has_in_memory(start(), b"prometheus_client.exposition"), "later all clients would wait for it"


def test_the_text_is_rendered_once_a_second() -> None:
    """Rendering takes half a millisecond, and any client may ask."""
    now, numbers = ManualClock(), itertools.count()
    texts = Exposition(lambda: next(numbers), lambda number: b"%d" % number, now)  # type: ignore[arg-type, return-value]
    shown = []
    for now.now in (0.0, 0.5, 0.99, 1.0, 1.5, 60.0):
        shown.append(texts.text())
    assert shown == ["0", "0", "0", "1", "1", "2"]


def has_in_memory(daemon: "WatchedDaemon", name: bytes) -> bool:
    """Whether the name of a module is anywhere in the daemon's memory, as it is after an import of the module."""
    memory = []
    for line in pathlib.Path(f"/proc/{daemon.process.pid}/maps").read_text().splitlines():
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw-p", line)
        if match and not line.endswith(("[vvar]", "[stack]")):
            memory.append((int(match[1], 16), int(match[2], 16)))
    with open(f"/proc/{daemon.process.pid}/mem", "rb", buffering=0) as file:
        for begin, end in memory:
            file.seek(begin)
            try:
                if name in file.read(end - begin):
                    return True
            except OSError:
                continue
    return False


def test_the_metrics_say_when_the_process_started(start: "Start") -> None:
    before = time.time()
    daemon = start()
    after = time.time()
    assert before - 0.02 <= value(daemon, "process_start_time_seconds") <= after  # the kernel counts in 10 ms


def test_the_json_counters_have_the_same_misses_and_conflicts(daemon: "WatchedDaemon") -> None:
    daemon.ask(["get", "nothing"], ["commit", {"a": b""}, {"a": 10**9}])
    counters = daemon.metrics()
    assert counters["get_misses"] == value(daemon, "kvd_get_misses_total")
    assert counters["conflicts"] == value(daemon, "kvd_conflicts_total") > 0


def test_names_and_texts_follow_the_conventions(start: "Start", tmp_path: pathlib.Path) -> None:
    daemon = start(f'data.dir = "{tmp_path}/data"\n')
    exported = families(daemon)
    assert len(exported) == len({family.name for family in exported}) > 30
    for family in exported:
        assert re.fullmatch(r"(kvd|process)(_[a-z]+)*", family.name)
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge", "histogram")
        if family.type == "counter":
            assert all(sample.name == f"{family.name}_total" for sample in family.samples)
        if family.type == "histogram":
            assert family.name.endswith("_seconds")
    page = (ROOT / "docs/metrics.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_]+)", page, re.MULTILINE))
    assert documented == {family.name + "_total" * (family.type == "counter") for family in exported}


def test_the_dashboard_shows_all_metrics_and_no_others(start: "Start", tmp_path: pathlib.Path) -> None:
    daemon = start(f'data.dir = "{tmp_path}/data"\n')
    for _ in range(SAMPLED):
        daemon.ask(["commit", {}, {"a": 1}])
    exported = {name for name, _ in samples(daemon)}
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    shown = set(re.findall(r"\b(?:kvd|process)_[a-z_]+", " ".join(expressions)))
    assert shown - exported == set()
    # And every metric is shown, except the parts of histograms and metrics that only name or bound something.
    rest = {name for name in exported - shown if not name.endswith(("_count", "_sum"))}
    assert rest == {"kvd_info", "kvd_oldest_readable_version"}
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?([a-z]+)", json.dumps(DASHBOARD))) <= variables
    places = [(x, y) for panel in DASHBOARD["panels"] for place in [panel["gridPos"]]
              for x in range(place["x"], place["x"] + place["w"])
              for y in range(place["y"], place["y"] + place["h"])]  # fmt: skip
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_for = 0

    class Missing:
        """An import finder for which the library is not installed."""

        def find_spec(self, name: str, *_: object) -> None:
            nonlocal looked_for
            if name == "prometheus_client":
                looked_for += 1
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.startswith("prometheus_client")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "kvd.telemetry.prometheus", raising=False)
    monkeypatch.delattr("kvd.telemetry.prometheus", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    client = connect()
    reply = client.ask("exposition")
    assert reply["error"] == "bad_request"
    assert "install kvd[prometheus]" in reply["message"]
    client.batch(*[["exposition"]] * 100)
    assert looked_for == 1, "any client may ask, and each search takes a third of a millisecond"
