"""Looking back: kv history, kv log, kv diff, kv get --at, kv ls --at, with the real daemon."""

import json
import pathlib
import re
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    import subprocess

    from tests.harness.kv_command import Kv

WHO_AND_WHEN = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  uid \d+ pid \d+ \(\S+\)"


def json_lines(text: str) -> list[Any]:
    """Each line, decoded."""
    return [json.loads(line) for line in text.splitlines()]


def newest(kv: "Kv") -> int:
    """The current version."""
    return int(json_lines(kv.ok("log", "--limit", "1", "--json"))[0]["version"])


@pytest.fixture
def past(kv: "Kv") -> list[int]:
    """Versions after: cake=1; horns=x; cake=2; horns deleted."""
    versions = []
    for command in (["set", "cake=1"], ["set", "horns=x"], ["set", "cake=2"], ["del", "horns"]):
        kv.ok(*command)
        versions.append(newest(kv))
    return versions


@pytest.fixture
def forgetful(serving: "Callable[..., tuple[Kv, subprocess.Popen[bytes]]]", tmp_path: pathlib.Path) -> "Kv":
    """``kv`` with a daemon that keeps no history."""
    (tmp_path / "kvd.toml").write_text("[history]\nmax_versions = 0\n")
    kv = serving("--config", f"{tmp_path}/kvd.toml")[0]
    for number in range(5):
        kv.ok("set", f"a={number}")
    return kv


@pytest.mark.usefixtures("past")
def test_history_has_time_author_and_value_newest_first(kv: "Kv") -> None:
    lines = kv.ok("history", "cake").splitlines()
    assert len(lines) == 2
    assert re.fullmatch(rf"\d+  {WHO_AND_WHEN}  set cake: 2", lines[0])
    assert lines[1].endswith("  set cake: 1")
    assert kv.ok("history", "horns").splitlines()[0].endswith("  deleted horns")
    assert kv.ok("history", "--limit", "1", "cake").splitlines() == lines[:1]


def test_history_in_json(kv: "Kv", past: list[int]) -> None:
    kv.ok("set", b"horns=\xff")
    entries = json_lines(kv.ok("history", "--json", "horns"))
    assert [line["value"] for line in entries] == [{"base64": "/w=="}, None, "x"]
    assert [line["version"] for line in entries][1:] == [past[3], past[1]]
    assert entries[0]["author"].keys() == {"uid", "pid", "name"}
    assert entries[0]["key"] == "horns"


def test_the_time_in_json_is_what_at_takes(kv: "Kv", past: list[int]) -> None:
    for line in json_lines(kv.ok("log", "--json")):
        assert kv("get", "--json", "--at", line["time"], "cake", "horns").stdout == (
            kv("get", "--json", "--at", str(line["version"]), "cake", "horns").stdout
        )


def test_history_of_an_unknown_key_ends_with_1(kv: "Kv") -> None:
    assert "nothing" in kv.fails(1, "history", "nothing")


def test_history_of_an_odd_key(kv: "Kv") -> None:
    kv.ok("set", "--key", "-a=\n\x1b", "--value", "\x1b[31m\n")
    assert kv.ok("history", "--", "-a=\n\x1b").endswith("  set -a=\\n\\x1b: \\x1b[31m\\n\n")


def test_the_log_has_the_newest_last(kv: "Kv", past: list[int]) -> None:
    lines = kv.ok("log").splitlines()
    assert [int(line.split()[0]) for line in lines] == past
    assert re.fullmatch(rf"{past[0]}  {WHO_AND_WHEN}  cake", lines[0])
    assert kv.ok("log", "--limit", "2").splitlines() == lines[2:]
    assert kv.ok("log", "--since", str(past[1])).splitlines() == lines[2:]
    assert kv.ok("log", "--since", str(past[0]), "--limit", "1").splitlines() == lines[1:2]
    assert kv.ok("log", "--since", "1h").splitlines() == lines
    assert kv.ok("log", "--since", "now") == ""


def test_the_log_has_twenty_lines_without_all(kv: "Kv") -> None:
    for number in range(23):
        kv.ok("set", f"a={number}")
    lines = kv.ok("log", "--all").splitlines()
    assert len(lines) == 23
    assert kv.ok("log").splitlines() == lines[3:]


def test_a_commit_of_many_keys_is_one_line(kv: "Kv") -> None:
    keys = [f"k{number:02}" for number in range(30)]
    kv.ok("set", *(f"{key}=" for key in keys))
    assert kv.ok("log").endswith("  k00, k01, k02, k03, k04, k05, k06, k07 and 22 more\n")
    assert json_lines(kv.ok("log", "--json"))[0]["keys"] == keys


def test_get_and_ls_at_a_version(kv: "Kv", past: list[int]) -> None:
    assert kv.ok("get", "--at", str(past[1]), "cake", "horns") == "cake: 1\nhorns: x\n"
    assert kv.ok("get", "--raw", "--at", str(past[2]), "cake") == "2"
    assert kv.fails(1, "get", "--at", str(past[0]), "horns") == "kv: error: no such key: horns\n"
    assert kv.ok("ls", "--at", str(past[0])) == "cake\n"
    assert kv.ok("ls", "--at", str(past[1]), "--long").split() == [
        "1",
        str(past[0]),
        "cake",
        "1",
        str(past[1]),
        "horns",
    ]
    assert kv.ok("ls", "--at", str(past[1]), "h") == "horns\n"


def test_old_values_below_a_prefix_with_a_shorter_history_disappear(
    serving: "Callable[..., tuple[Kv, subprocess.Popen[bytes]]]", tmp_path: pathlib.Path
) -> None:
    """No request is needed for that. The log still has the commits."""
    config = tmp_path / "kvd.toml"
    config.write_text('[[prefix]]\nprefix = "cache/"\nhistory_ms = 100\n')
    kv = serving("--config", str(config))[0]
    kv.ok("set", "cache/a=1", "b=1")
    kv.ok("set", "cache/a=2", "b=2")
    first, last = (line["version"] for line in json_lines(kv.ok("log", "--json")))
    eventually(lambda: kv("get", "--at", str(first), "cache/a").returncode != 0)
    gone = f"kv: error: version {first} of 'cache/a' has left the history; the oldest that can be read is {last}\n"
    assert kv.fails(5, "get", "--at", str(first), "b", "cache/a") == gone
    assert kv.fails(5, "rollback", "--to", str(first), "cache/a") == gone
    assert kv.ok("get", "--at", str(first), "b") == "b: 1\n"
    assert kv.ok("get", "--at", str(last), "cache/a") == "cache/a: 2\n"
    assert len(kv.ok("history", "cache/a").splitlines()) == 1
    assert len(kv.ok("history", "b").splitlines()) == 2
    assert len(kv.ok("log").splitlines()) == 2


def test_get_at_a_time(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    between_s = time.time()
    kv.ok("set", "a=2")
    assert kv.ok("get", "--at", f"@{between_s:.6f}", "a") == "a: 1\n"
    assert kv.ok("get", "--at", "0.001s", "a") == "a: 2\n"
    assert kv.ok("get", "--at", "now", "a") == "a: 2\n"
    assert kv.fails(1, "get", "--at", "1d", "a") == "kv: error: no such key: a\n"


@pytest.mark.parametrize("at", ["", "x", "-1", "yesterday", "5m5m", "2026-13-01", "2300-01-01", "1" * 30])
def test_a_point_that_is_neither_a_version_nor_a_past_time_is_refused(alone: "Kv", at: str) -> None:
    for command in (["get", "k"], ["ls"]):
        assert "--at" in alone.fails(2, *command, f"--at={at}")
    assert "--since" in alone.fails(2, "log", f"--since={at}")
    assert "--to" in alone.fails(2, "rollback", "k", f"--to={at}")


def test_a_version_that_has_left_the_history_is_refused(forgetful: "Kv") -> None:
    for command in (
        ["get", "--at", "1", "a"],
        ["ls", "--at", "1"],
        ["diff", "1"],
        ["rollback", "--to", "1", "a"],
        ["log", "--since", "1"],
    ):
        assert "has left the history; the oldest that can be read is" in forgetful.fails(5, *command)
    assert "left the history" in forgetful.fails(5, "get", "--at", "1h", "a")


def test_a_future_version_is_refused(kv: "Kv", past: list[int]) -> None:
    for command in (
        ["get", "--at", "99", "a"],
        ["ls", "--at", "99"],
        ["diff", "1", "99"],
        ["diff", "99"],
        ["rollback", "--to", "99", "a"],
    ):
        assert f"there is no version 99 yet; the newest is {past[3]}" in kv.fails(5, *command)


def test_diff_between_versions(kv: "Kv", past: list[int]) -> None:
    assert kv.ok("diff", str(past[0]), str(past[2])) == "- cake: 1\n+ cake: 2\n+ horns: x\n"
    assert kv.ok("diff", str(past[2]), str(past[0])) == "- cake: 2\n+ cake: 1\n- horns: x\n"
    assert kv.ok("diff", str(past[0])) == "- cake: 1\n+ cake: 2\n"
    assert kv.ok("diff", "1h", "now") == "+ cake: 2\n"
    assert kv.ok("diff", str(past[3])) == ""


def test_diff_leaves_out_keys_that_have_the_same_value_again(kv: "Kv") -> None:
    kv.ok("set", "a=1", "b=1")
    before = newest(kv)
    kv.ok("set", "a=2")
    kv.ok("set", "a=1")
    kv.ok("set", "b=1")
    assert kv.ok("diff", str(before)) == ""


def test_diff_in_json(kv: "Kv", past: list[int]) -> None:
    kv.ok("set", b"\x1b=\xff")
    assert json_lines(kv.ok("diff", "--json", str(past[0]))) == [
        {"key": "\x1b", "old": None, "new": {"base64": "/w=="}},
        {"key": "cake", "old": "1", "new": "2"},
    ]


def test_diff_of_more_keys_than_one_request_may_name(kv: "Kv") -> None:
    kv.ok("set", "z=")
    before = newest(kv)
    names = [f"key{number:05}" for number in range(2_500)]
    kv.ok("set", "-", stdin=b"\n".join(json.dumps({"key": name, "value": "v"}).encode() for name in names))
    assert kv.ok("diff", str(before)) == "".join(f"+ {name}: v\n" for name in names)


def test_the_log_has_as_many_commits_as_asked_for(kv: "Kv") -> None:
    """One of them names more keys than a page of the log."""
    for number in range(3):
        kv.ok("set", f"small={number}")
    many = [json.dumps({"key": f"a-long-name-of-a-key/{number:08}", "value": ""}) for number in range(30_000)]
    kv.ok("import", "-", stdin="\n".join(many).encode())
    assert [line.split()[0] for line in kv.ok("log").splitlines()] == ["1", "2", "3", "4"]
    assert [line.split()[0] for line in kv.ok("log", "--limit", "3").splitlines()] == ["2", "3", "4"]


def test_a_position_of_another_store_is_an_error(
    serving: "Callable[..., tuple[Kv, subprocess.Popen[bytes]]]", tmp_path: pathlib.Path
) -> None:
    kv, daemon = serving()
    kv.ok("set", "a=1")
    kv.ok("set", "a=2")
    positions = [line["position"] for line in json_lines(kv.ok("log", "--json"))]
    assert [line["position"] for line in json_lines(kv.ok("history", "--json", "a"))] == positions[::-1]
    uses = [["log", "--since"], ["diff"], ["diff", "now"], ["get", "a", "--at"], ["ls", "--at"],
            ["rollback", "a", "--to"], ["revert"]]  # fmt: skip
    for use in uses[:5]:
        kv.ok(*use, positions[0])
    daemon.send_signal(signal.SIGTERM)
    daemon.wait(DEADLINE_S)
    serving()
    for value in "xyz":
        kv.ok("set", f"a={value}")
    for use in uses:
        assert "another store" in kv.fails(5, *use, positions[0])
    assert kv.ok("get", "a") == "a: z\n"
    assert kv.ok("get", "a", "--at", "1") == "a: x\n", "a bare number is of the store that there is now"
    assert "without its store" in kv.fails(2, "restore", "--to", positions[0], "a", str(tmp_path / "b"))


@pytest.mark.parametrize(
    "arguments",
    [["history"], ["history", "a", "b"], ["history", ""], ["history", "a", "--limit", "0"],
     ["history", "a", "--limit", "x"], ["log", "a"], ["log", "--limit", "-1"], ["log", "--all", "--limit", "3"],
     ["log", "--all", "--since", "1"],
     ["diff"], ["diff", "1", "2", "3"], ["diff", "x"]],
)  # fmt: skip
def test_wrong_usage(alone: "Kv", arguments: list[str]) -> None:
    alone.fails(2, *arguments)
