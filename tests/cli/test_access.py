"""kv access: what a user may do with a key, and why."""

import json
import pathlib
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv

Serving = Callable[..., "tuple[Kv, subprocess.Popen[bytes]]"]

RULES = """
[[access]]
everyone = true
rights = ["read"]

[[access]]
prefix = "app/"
user = "daemon"
rights = ["read", "write", "watch"]
"""


@pytest.fixture
def kv_with_rules(serving: "Callable[..., tuple[Kv, subprocess.Popen[bytes]]]", tmp_path: pathlib.Path) -> "Kv":
    config = tmp_path / "kvd.toml"
    config.write_text(RULES)
    config.chmod(0o600)
    return serving("--config", str(config))[0]


def test_access_explains_a_decision(kv_with_rules: "Kv") -> None:
    assert kv_with_rules.ok("access", "daemon", "app/x") == (
        "daemon may with app/x: read, write, watch\n"
        "because: the longest prefix with rules is 'app/'\n"
        "  uid 1 may read, write, watch\n"
    )
    assert kv_with_rules.ok("access", "2", "other").splitlines()[0] == "2 may with other: read"


def test_the_exit_code_is_1_if_the_user_may_not_read(kv_with_rules: "Kv") -> None:
    result = kv_with_rules("access", "token:ci", "app/x")
    assert result.returncode == 1
    assert result.stdout.decode() == (
        "token:ci may with app/x: nothing\n"
        "because: the longest prefix with rules is 'app/'\n"
        "  uid 1 may read, write, watch (another client)\n"
    )
    assert result.stderr == b""


def test_a_group_is_named_by_name_or_number(shared_kv: "Kv", serving: "Serving", tmp_path: pathlib.Path) -> None:
    config = tmp_path / "kvd.toml"
    config.write_text('[[access]]\ngroup = "daemon"\nrights = ["read", "watch"]\n')
    config.chmod(0o600)
    kv = serving("--config", str(config))[0]
    for group in ("group:daemon", "group:1"):
        assert kv.ok("access", group, "x").splitlines()[0] == f"{group} may with x: read, watch"
    assert kv("access", "group:2", "x").returncode == 1
    shared_kv.fails(2, "access", "group:no-such-group", "x")


def test_json_has_rights_reason_and_rules(kv_with_rules: "Kv") -> None:
    assert json.loads(kv_with_rules.ok("access", "--json", "certificate:web", "x")) == {
        "rights": ["read"],
        "reason": "the longest prefix with rules is ''",
        "rules": ["everyone may read"],
    }


def test_without_rules_the_decision_says_so(shared_kv: "Kv") -> None:
    assert "there are no rules" in shared_kv.ok("access", "daemon", "x")
    assert "root" in shared_kv.ok("access", "root", "x")


@pytest.mark.parametrize(
    "words", [[], ["daemon"], ["no-such-user", "x"], ["daemon", "x", "y"], ["-1", "x"], ["99999999999999", "x"]]
)
def test_wrong_usage(shared_kv: "Kv", words: list[str]) -> None:
    shared_kv.fails(2, "access", *words)
