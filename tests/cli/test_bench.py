"""``kv bench``: its figures agree with the daemon's counters, and it leaves nothing in the store."""

import json
import os
import pathlib
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pexpect
import pytest

from kv import connect
from kv.blocking.client import Client
from kv.cli.bench.keys import PREFIX
from tests.harness.kv_command import Kv
from tests.harness.processes import KV
from tests.harness.waiting import DEADLINE_S


def client(kv: Kv) -> Client:
    return connect(kv.socket, timeout=DEADLINE_S)


def names(kv: Kv) -> list[str]:
    with client(kv) as db:
        return [item.key for item in db.scan(keys_only=True)]


def run_bench(kv: Kv, *options: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(kv.ok("bench", "--json", *options))
    return report


@contextmanager
def counter_increase(kv: Kv) -> Iterator[dict[str, int]]:
    """How much the daemon's counters rise within the block."""
    increase: dict[str, int] = {}
    with client(kv) as db:
        before = db.metrics()
        yield increase
        increase |= {name: value - before[name] for name, value in db.metrics().items()}


@pytest.mark.parametrize(
    "options",
    [
        ["--requests", "5001", "--processes", "3"],
        ["--requests", "5001", "--pipeline", "64", "--connections", "5", "--processes", "2"],
        ["--requests", "999", "--reads", "0", "--value-size", "100000", "--connections", "2"],
        ["--requests", "99", "--reads", "50", "--value-size", "1000000", "--pipeline", "4", "--connections", "2"],
        ["--requests", "999", "--value-size", "0", "--distribution", "zipf"],
        ["--duration", "1s", "--pipeline", "7"],
        ["--requests", "5001", "--near-cache", "--processes", "2", "--mix", "get=1,set=1"],
    ],
    ids=" ".join,
)
def test_bench_and_daemon_count_the_same(shared_kv: Kv, options: list[str]) -> None:
    with counter_increase(shared_kv) as increase:
        report = run_bench(shared_kv, "--keys", "300", *options)
    gets, sets = (report["by_operation"].get(name, 0) for name in ("get", "set"))
    if "--requests" in options:
        assert gets + sets == report["operations"] == int(options[1])
    assert report["operations"] > 0
    assert increase["set_operations"] == sets + 300  # and the keys that were loaded
    assert increase["delete_operations"] == 300
    if "--near-cache" in options:
        near = report["near_cache"]
        assert near["hits"] + near["misses"] + near["refetches"] == gets
        assert increase["get_operations"] == near["misses"] + near["refetches"] + near["refreshed"]
        assert near["hits"] > 0
    else:
        assert increase["get_operations"] == gets
        assert report["timed"] == report["operations"]


def test_a_mix_runs_all_four_operations(shared_kv: Kv) -> None:
    with counter_increase(shared_kv) as increase:
        report = run_bench(shared_kv, "--keys", "50", "--requests", "4000", "--mix", "get=1,set=2,del=3,incr=4")
    operations = report["by_operation"]
    assert list(report["settings"]["mix"].values()) == [0.1, 0.2, 0.3, 0.4]
    assert sum(operations.values()) == 4000
    assert operations["get"] < operations["set"] < operations["del"] < operations["incr"]
    assert increase["get_operations"] == operations["get"]
    assert increase["set_operations"] == operations["set"] + operations["incr"] + 50
    assert increase["keys_stored"] == 0


def test_the_seed_decides_the_operations(shared_kv: Kv) -> None:
    options = ["--keys", "50", "--requests", "500", "--reads", "50"]
    first, again, other = (run_bench(shared_kv, *options, "--seed", seed)["by_operation"] for seed in ("7", "7", "8"))
    assert first == again != other


def test_json_has_every_figure(shared_kv: Kv) -> None:
    report = run_bench(shared_kv, "--keys", "10", "--requests", "1000", "--connections", "3")
    assert set(report) == {
        "settings", "seconds", "operations", "operations_per_second", "by_operation", "errors", "latency_us", "timed",
        "histogram", "processor", "limit", "verdict", "near_cache", "load_seconds",
    }  # fmt: skip
    assert report["settings"] == {
        "mix": {"get": 0.95, "set": 0.05}, "keys": 10, "value_bytes": 64, "connections": 3, "processes": 1,
        "pipeline": 1, "distribution": "uniform", "near_cache": False, "seed": 1, "requests": 1000, "duration_s": None,
    }  # fmt: skip
    latency = report["latency_us"]
    assert list(latency) == ["p50", "p90", "p99", "p99.9", "max"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]
    assert sum(count for _, count in report["histogram"]) == 1000
    assert report["errors"] == {}
    assert report["near_cache"] is None
    assert report["limit"] in ("clients", "daemon", "both", "machine", "waiting")
    assert report["processor"]["daemon"] is not None
    assert report["operations_per_second"] == pytest.approx(1000 / report["seconds"], rel=1e-3)


def test_the_text_ends_with_the_verdict(shared_kv: Kv) -> None:
    *lines, verdict = shared_kv.ok("bench", "--keys", "10", "--requests", "1000").splitlines()
    assert lines[0] == "95 % get, 5 % set; 10 keys (uniform) of 64 bytes; 16 connection(s), 1 request(s) a frame"
    assert lines[2].startswith("operations   1,000 in ")
    assert [line.split()[0] for line in lines if line and line[0] != " "] == [
        "95", "operations", "errors", "latency", "processor",
    ]  # fmt: skip
    assert verdict.split()[0] in ("The", "Neither")
    assert shared_kv.ok("bench", "--keys", "10", "--requests", "100", "--quiet") == ""


def test_other_keys_stay_as_they_are(kv: Kv) -> None:
    others = {f"{PREFIX}mine": b"1", PREFIX: b"2", "kv-bench": b"3", "z": b"4"}
    with client(kv) as db:
        db.set_many(others)
        before = [(item.key, item.value, item.version) for item in db.scan()]
    kv.ok("bench", "--keys", "3000", "--requests", "3000", "--mix", "set=1,del=1,incr=1")
    with client(kv) as db:
        assert [(item.key, item.value, item.version) for item in db.scan()] == before


@contextmanager
def running(kv: Kv, *options: str) -> "Iterator[subprocess.Popen[bytes]]":
    """A benchmark that is under way, in a process group of its own."""
    process = None
    with client(kv) as db, db.watch(PREFIX) as watch:
        watch.wait(0)  # connects, so the watch sees every later change
        try:
            process = kv.start(
                "bench", "--keys", "10", "--reads", "0", "--duration", "1h", "--processes", "2", *options,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
            for _ in range(100):  # more commits than the load has
                assert watch.wait(DEADLINE_S) is not None
            yield process
        finally:
            if process is not None:
                process.kill()
                process.communicate()


def workers_of(process: "subprocess.Popen[bytes]") -> list[int]:
    """The pids of its worker processes."""
    path = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "options",
    [[], ["--pipeline", "3000", "--connections", "8"], ["--near-cache"]],
    ids=["wire", "frames under way", "near"],
)
def test_an_interrupted_benchmark_leaves_nothing(kv: Kv, number: int, options: list[str]) -> None:
    """Ctrl-c reaches the workers, too. The requests that they have sent by then run before the keys are removed."""
    with running(kv, *options) as process:
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        out, error = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out, error) == (130, b"", b"")
    assert names(kv) == []


def test_a_worker_that_is_killed_ends_the_benchmark(kv: Kv) -> None:
    with running(kv) as process:
        os.kill(workers_of(process)[0], signal.SIGKILL)
        out, error = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (5, b"")
    assert error == b"kv: error: a worker process of the benchmark was ended from outside\n"
    assert names(kv) == []


def test_workers_end_with_their_parent(kv: Kv) -> None:
    with running(kv) as process:
        descriptors = [os.pidfd_open(pid) for pid in workers_of(process)]
        assert len(descriptors) == 2
        process.kill()
        process.communicate(timeout=DEADLINE_S)
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], DEADLINE_S)[0], "a worker goes on"
        os.close(descriptor)
    assert all(name.startswith(PREFIX) for name in names(kv))
    kv.ok("del", "--prefix", PREFIX, "--yes")  # as the help says
    assert names(kv) == []


def test_a_daemon_that_is_killed_ends_the_benchmark(
    serving: Callable[..., "tuple[Kv, subprocess.Popen[bytes]]"],
) -> None:
    kv, daemon = serving()
    with running(kv) as process:
        daemon.kill()
        out, error = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (69, b"")
    text = error.decode().splitlines()
    assert text[0].startswith(f"kv: warning: keys below {PREFIX}")
    assert text[1:] == ["kv: error: the daemon closed a connection during the benchmark"]


def test_bench_without_a_daemon_ends_with_69(alone: Kv) -> None:
    assert "no daemon at" in alone.fails(69, "bench")


def test_refused_requests_are_counted_as_errors(
    serving: Callable[..., "tuple[Kv, object]"], tmp_path: pathlib.Path
) -> None:
    config = tmp_path / "kvd.toml"
    config.write_text("[limits]\nmax_requests_per_frame = 4\n")
    kv, _ = serving("--config", str(config))
    result = kv("bench", "--keys", "10", "--requests", "800", "--pipeline", "8", "--connections", "1", "--json")
    report = json.loads(result.stdout)
    assert (result.returncode, result.stderr) == (5, b"")
    assert (report["errors"], report["operations"]) == ({"too_large": 800}, 0)
    assert names(kv) == []


def test_a_value_that_the_daemon_refuses_is_one_error(
    serving: Callable[..., "tuple[Kv, object]"], tmp_path: pathlib.Path
) -> None:
    config = tmp_path / "kvd.toml"
    config.write_text("[limits]\nmax_value_bytes = 100\n")
    kv, _ = serving("--config", str(config))
    assert "100" in kv.fails(5, "bench", "--value-size", "101")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--mix get", "--mix is"), ("--mix get=0", "--mix is"), ("--mix get=1,get=1", "--mix is"),
        ("--mix get=nan", "--mix is"), ("--mix get=-1", "--mix is"), ("--mix scan=1", "--mix is"),
        ("--mix ,", "--mix is"),
        ("--reads 101", "--reads is"), ("--reads x", "--reads is"), ("--mix get=1 --reads 5", "not allowed with"),
        ("--keys 0", "--keys is"), ("--keys 1e3", "--keys is"), ("--keys 1000000000", "at most"),
        ("--value-size -1", "--value-size"), ("--value-size 9000000", "at most"),
        ("--connections 0", "--connections is"), ("--connections 1000000000", "ulimit"),
        ("--processes 0", "--processes is"), ("--processes 5 --connections 4", "less than one for each"),
        ("--processes 1000", "at most"), ("--pipeline 0", "--pipeline is"), ("--pipeline 70000", "at most"),
        ("--pipeline 100 --value-size 1000000", "16 MiB"), ("--duration soon", "--duration is"),
        ("--duration 0", "--duration is"), ("--requests 0", "--requests is"),
        ("--requests 5", "less than one for each"),
        ("--requests 50 --duration 5", "not allowed with"), ("--distribution normal", "--distribution is one of"),
        ("--seed x", "--seed is"), ("--near-cache --pipeline 2", "leave --pipeline out"),
        ("--near-cache --connections 2", "leave --connections out"),
        ("--near-cache -s tcp://localhost:1", "Unix socket"),
        ("--near-cache -s tcp://nonsense", "tcp://HOST:PORT"), ("-s tcp://nonsense", "tcp://HOST:PORT"),
        ("key", "no operands"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(alone: Kv, words: str, text: str) -> None:
    assert text in alone.fails(2, "bench", *words.split())


def test_bench_works_over_tcp(serving: Callable[..., "tuple[Kv, object]"], tmp_path: pathlib.Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-token-of-some-length\n")
    token.chmod(0o600)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    kv, _ = serving("--tcp", address, "--token-file", str(token))
    options = ["--keys", "10", "--requests", "500", "-s", f"tcp://{address}"]
    report = run_bench(kv, *options, "--token-file", str(token))
    assert (report["operations"], report["limit"]) == (500, "unknown")
    kv.fails(4, "bench", *options)


def test_a_bar_is_drawn_on_a_terminal(kv: Kv) -> None:
    command, *arguments = [*KV, "bench", "--keys", "5000", "--requests", "3000"]
    with_bar = pexpect.spawn(
        command, arguments, env={**kv.environment(), "TQDM_DELAY": "0", "TERM": "xterm"}, timeout=DEADLINE_S
    )  # fmt: skip
    for label in ("loading", "measuring", "removing", "a second"):
        with_bar.expect(label)
    with_bar.expect(pexpect.EOF)
    with_bar.close()
    assert with_bar.exitstatus == 0
