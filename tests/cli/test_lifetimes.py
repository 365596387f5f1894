"""kv set --ttl, kv ttl, kv touch and kv incr, with the real daemon."""

import json
import pathlib
import re
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv


# A time to live as ``kv ttl`` prints it up to a minute after it was set.
TEN_MINUTES, ONE_HOUR, TWO_HOURS = r"(9m\d*s?|10m)", r"(59m\d*s?|1h)", r"(1h59m\d*s?|2h)"
TTL_RULES = """
[[prefix]]
prefix = "s/"
ttl_ms = 600000
max_ttl_ms = 3600000
"""


@pytest.fixture
def kv_with_ttl_rules(serving: "Callable[..., tuple[Kv, subprocess.Popen[bytes]]]", tmp_path: pathlib.Path) -> "Kv":
    config = tmp_path / "kvd.toml"
    config.write_text(TTL_RULES)
    config.chmod(0o600)
    return serving("--config", str(config))[0]


def expires(kv: "Kv", key: str) -> bool:
    """Whether ``key`` expires before the deadline of ``kv wait``."""
    return kv("wait", "--absent", key, "--timeout", "20").returncode == 0


def test_a_key_with_a_ttl_expires(kv: "Kv") -> None:
    kv.ok("set", "--ttl", "100ms", "a=1", "b=2")
    kv.ok("set", "c=3")
    assert expires(kv, "a")
    assert kv.ok("ls") == "c\n"


def test_ttl_prints_the_time_that_is_left(kv: "Kv") -> None:
    kv.ok("set", "--ttl=10m", "a\n=1")
    kv.ok("set", "b=1")
    assert re.fullmatch(rf"a\\n: {TEN_MINUTES}\nb: no expiry\n", kv.ok("ttl", "a\n", "b"))
    left = json.loads(kv.ok("ttl", "--json", "a\n", "b"))
    assert 540 < left["a\n"] <= 600
    assert left["b"] == -1


def test_ttl_names_a_missing_key_and_prints_the_others(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    result = kv("ttl", "nothing", "a")
    assert (result.returncode, result.stdout, result.stderr) == (
        1,
        b"a: no expiry\n",
        b"kv: error: no such key: nothing\n",
    )


def test_a_set_without_ttl_removes_the_expiry_and_keep_ttl_keeps_it(kv: "Kv") -> None:
    kv.ok("set", "--ttl", "10m", "a=1", "b=1")
    kv.ok("set", "--keep-ttl", "a=2")
    kv.ok("set", "b=2")
    assert re.fullmatch(rf"a: {TEN_MINUTES}\nb: no expiry\n", kv.ok("ttl", "a", "b"))


def test_with_keep_ttl_a_ttl_is_for_new_keys(kv: "Kv") -> None:
    kv.ok("set", "old=1")
    kv.ok("set", "--ttl", "1h", "--keep-ttl", "old=2", "new=2")
    assert re.fullmatch(rf"old: no expiry\nnew: {ONE_HOUR}\n", kv.ok("ttl", "old", "new"))


@pytest.mark.parametrize("ttl", ["", "0", "-5", "soon", "5 m", "10m1h", "1e3", "9" * 30])
def test_a_wrong_ttl_sets_nothing(shared_kv: "Kv", ttl: str) -> None:
    for command in (["set", "a=1"], ["incr", "a"], ["touch", "a"]):
        assert "--ttl" in shared_kv.fails(2, *command, f"--ttl={ttl}")
    assert shared_kv.ok("ls") == ""


def test_touch_changes_the_expiry_and_not_the_value(kv: "Kv") -> None:
    kv.ok("set", "a=1", "b=1")
    assert kv.ok("touch", "--ttl", "1h", "a", "b") == "Keys touched\n"
    assert re.fullmatch(rf"a: {ONE_HOUR}\n", kv.ok("ttl", "a"))
    assert kv.ok("touch", "--ttl", "none", "b") == "Keys touched\n"
    assert kv.ok("ttl", "b") == "b: no expiry\n"
    assert kv.ok("get", "a", "b") == "a: 1\nb: 1\n"


def test_touch_names_missing_keys(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    result = kv("touch", "--ttl", "1h", "a", "nothing")
    assert (result.returncode, result.stderr) == (1, b"kv: error: no such key: nothing\n")
    assert kv.fails(1, "touch", "--ttl", "1h", "nothing")
    assert "--ttl" in kv.fails(2, "touch", "a")


def test_touch_in_json_says_which_keys_exist(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    result = kv("touch", "--json", "--ttl", "1h", "nothing", "a", "a")
    assert (result.returncode, json.loads(result.stdout)) == (1, {"nothing": False, "a": True})
    assert json.loads(kv.ok("touch", "-n", "--json", "--ttl", "none", "a")) == {"a": True}
    assert re.fullmatch(rf"a: {ONE_HOUR}\n", kv.ok("ttl", "a"))


def test_get_with_touch_changes_the_expiry_of_what_it_prints(kv: "Kv") -> None:
    kv.ok("set", "--ttl", "10m", "a=1", "b=2")
    assert kv.ok("get", "--touch", "1h", "a") == "a: 1\n"
    assert re.fullmatch(rf"a: {ONE_HOUR}\nb: {TEN_MINUTES}\n", kv.ok("ttl", "a", "b"))
    result = kv("get", "--touch", "none", "--json", "b", "nothing")
    assert (result.returncode, json.loads(result.stdout)) == (1, {"b": "2"})
    assert kv.ok("ttl", "b") == "b: no expiry\n"
    assert kv.ok("get", "--raw", "--touch", "2h", "b") == "2"
    for wrong in (["--touch", "soon"], ["--touch", "0"], ["--touch", "1h", "--at", "1"]):
        kv.fails(2, "get", *wrong, "a")
    assert re.fullmatch(rf"a: {ONE_HOUR}\n", kv.ok("ttl", "a"))


def test_no_ttl_is_longer_than_the_prefix_allows(kv_with_ttl_rules: "Kv") -> None:
    kv = kv_with_ttl_rules
    kv.ok("set", "s/a=1", "a=1")
    assert re.fullmatch(rf"s/a: {TEN_MINUTES}\n", kv.ok("ttl", "s/a"))
    for ttl in ("2h", "none"):
        assert "'s/'" in kv.fails(5, "touch", "--ttl", ttl, "a", "s/a")
        assert "'s/'" in kv.fails(5, "get", "--touch", ttl, "a", "s/a")
    assert kv.ok("ttl", "a") == "a: no expiry\n"
    assert kv.ok("get", "--touch", "1h", "s/a") == "s/a: 1\n"
    assert re.fullmatch(rf"s/a: {ONE_HOUR}\n", kv.ok("ttl", "s/a"))


def test_a_dry_touch_changes_nothing(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    assert kv.ok("touch", "-n", "--ttl", "1s", "a") == "would touch a\n"
    assert kv.ok("ttl", "a") == "a: no expiry\n"


def test_incr_prints_the_new_number(kv: "Kv") -> None:
    assert kv.ok("incr", "n") == "1\n"
    assert kv.ok("incr", "n", "41") == "42\n"
    assert kv.ok("incr", "n", "-50") == "-8\n"
    assert kv.ok("incr", "n", "+3") == "-5\n"
    assert json.loads(kv.ok("incr", "--json", "n")) == {"n": -4}
    assert kv.ok("get", "n") == "n: -4\n"


def test_incr_of_a_value_that_is_no_number_changes_nothing(kv: "Kv") -> None:
    kv.ok("set", "a=x", f"b={2**63 - 1}")
    for key in ("a", "b"):
        before = kv.ok("get", key)
        assert key in kv.fails(5, "incr", key)
        assert key in kv.fails(5, "incr", "-n", key)
        assert kv.ok("get", key) == before


@pytest.mark.parametrize(
    "operands",
    [[], ["n", "x"], ["n", "1.5"], ["n", "1", "2"], ["n", str(2**63)], ["n", ""], ["", "1"], ["n", "--", "- 1"]],
)
def test_wrong_usage_of_incr(shared_kv: "Kv", operands: list[str]) -> None:
    shared_kv.fails(2, "incr", *operands)
    assert shared_kv.ok("ls") == ""


def test_a_dry_incr_changes_nothing(kv: "Kv") -> None:
    assert kv.ok("incr", "-n", "n", "5") == "would set n: 5\n"
    assert kv.ok("ls") == ""


def test_incr_keeps_the_expiry_and_with_keep_ttl_sets_one_once(kv: "Kv") -> None:
    kv.ok("incr", "--ttl", "1h", "--keep-ttl", "calls")
    kv.ok("incr", "--ttl", "2h", "--keep-ttl", "calls")
    kv.ok("incr", "calls")
    assert re.fullmatch(rf"calls: {ONE_HOUR}\n", kv.ok("ttl", "calls"))
    kv.ok("incr", "--ttl", "2h", "calls")
    assert re.fullmatch(rf"calls: {TWO_HOURS}\n", kv.ok("ttl", "calls"))
