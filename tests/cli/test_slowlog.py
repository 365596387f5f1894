"""kv slowlog and kv top-keys, with the real daemon."""

import json
import pathlib
import re
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv

Serving = Callable[..., "tuple[Kv, subprocess.Popen[bytes]]"]


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    """A configuration by which every frame is slow."""
    file = tmp_path / "kvd.toml"
    file.write_text("[slowlog]\nthreshold_us = 0\nmax_entries = 10\n")
    file.chmod(0o600)
    return file


def test_the_slow_log_shows_frames_the_newest_last(serving: Serving, config: pathlib.Path) -> None:
    kv = serving("--config", str(config))[0]
    kv.ok("set", "a\n=1", "b=2")
    kv("get", "b", "c", "d", "e", "f")
    first, second = (line for line in kv.ok("slowlog").splitlines() if "set: " in line or "get_many: " in line)
    line = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  uid \d+ pid \d+ \(.*\)  \d+\.\d{3} ms  "
    assert re.fullmatch(line + r"set: a\\n, b", first)
    assert re.fullmatch(line + r"get_many: b, c, d, e, …", second)
    entries = map(json.loads, kv.ok("slowlog", "--json").splitlines())
    (entry,) = (entry for entry in entries if entry["requests"] == {"get_many": 1})
    assert entry["keys"] == ["b", "c", "d", "e"]
    assert entry["more_keys"] is True
    assert entry["held_us"] >= 0


def test_the_slow_log_can_be_reset_and_turned_off(serving: Serving, config: pathlib.Path) -> None:
    kv = serving("--config", str(config))[0]
    kv.ok("set", "a=1")
    assert "set: a" in kv.ok("slowlog", "--reset")
    assert "set: a" not in kv.ok("slowlog")
    config.write_text("[slowlog]\nmax_entries = 0\n")
    assert "slowlog.max_entries: 10 → 0" in kv.ok("reload")
    kv.ok("set", "a=2")
    assert kv.ok("slowlog") == ""


def test_quick_frames_are_not_in_the_slow_log(serving: Serving, config: pathlib.Path) -> None:
    config.write_text("[slowlog]\nthreshold_us = 3600000000\n")
    kv = serving("--config", str(config))[0]
    kv.ok("set", "a=1")
    kv.ok("ls")
    assert kv.ok("slowlog") == ""


def test_a_large_value_makes_single_gets_appear_in_the_slow_log(serving: Serving, config: pathlib.Path) -> None:
    kv = serving("--config", str(config))[0]
    kv.ok("set", "a=1")
    kv.ok("get", "a")
    assert "get: a" not in kv.ok("slowlog")
    kv.ok("set", f"b={'x' * 65_536}")
    kv.ok("get", "a")
    assert "get: a" in kv.ok("slowlog")


def test_the_largest_keys_come_first(kv: "Kv") -> None:
    assert kv.ok("top-keys") == ""
    kv.ok("set", "a=1", "b\n=4444", "c=22")
    assert kv.ok("top-keys") == "b\\n: 4\nc: 2\na: 1\n"
    assert kv.ok("top-keys", "--by", "size", "--limit", "1") == "b\\n: 4\n"
    assert json.loads(kv.ok("top-keys", "--json")) == {"b\n": 4, "c": 2, "a": 1}


def test_the_most_used_keys_are_estimated(kv: "Kv") -> None:
    kv.ok("set", "a=1", "b=1")
    kv.ok("bench", "--requests", "4000", "--keys", "1", "--mix", "get=50,set=50", "--connections", "1")
    for by in ("reads", "writes"):
        numbers = json.loads(kv.ok("top-keys", "--by", by, "--json"))
        key, operations = next(iter(numbers.items()))
        assert key not in ("a", "b")
        assert operations >= 61


@pytest.mark.parametrize(
    "words",
    [
        ["top-keys", "--by", "age"],
        ["top-keys", "a"],
        ["top-keys", "--limit", "0"],
        ["slowlog", "a"],
        ["slowlog", "--limit", "x"],
    ],
)
def test_wrong_usage(shared_kv: "Kv", words: list[str]) -> None:
    shared_kv.fails(2, *words)


def test_a_limit_over_1000_is_refused(shared_kv: "Kv") -> None:
    for command in ("slowlog", "top-keys"):
        assert "1000" in shared_kv.fails(5, command, "--limit", "1001")
