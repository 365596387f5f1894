"""kv set --if-version and --if-absent, with the real daemon."""

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv


def version(kv: "Kv", key: str) -> str:
    """The version of ``key``."""
    return kv.ok("ls", "--long", key).split()[1]


def test_if_absent_sets_only_missing_keys(kv: "Kv") -> None:
    assert kv.ok("set", "--if-absent", "a=1", "b=1") == "Keys set\n"
    kv.fails(3, "set", "--if-absent", "c=2", "a=2")
    assert kv.ok("ls") == "a\nb\n"
    assert kv.ok("get", "a") == "a: 1\n"


def test_if_version_sets_only_keys_at_that_version(kv: "Kv") -> None:
    kv.ok("set", "a=1", "b=1")
    seen = version(kv, "a")
    assert kv.ok("set", "--if-version", seen, "a=2", "b=2") == "Keys set\n"
    kv.fails(3, "set", "--if-version", seen, "a=3")
    kv.ok("set", "b=4")
    kv.fails(3, "set", "--if-version", version(kv, "b"), "a=3", "b=3")
    assert kv.ok("get", "a", "b") == "a: 2\nb: 4\n"


def test_version_0_means_absent(kv: "Kv") -> None:
    kv.ok("set", "--if-version", "0", "a=1")
    kv.fails(3, "set", "--if-version", "0", "a=2")


def test_a_conflict_names_key_versions_author_and_time(kv: "Kv") -> None:
    kv.ok("set", "a\x1b=1")
    found = version(kv, "a")
    error = kv.fails(3, "set", "--if-absent", "a\x1b=2", "--ttl", "1h")
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    expected = (
        rf"a\\x1b is at version {found}, not absent \(set by uid \d+ pid \d+ \(\S+\), {when}\); nothing was written"
    )
    assert re.search(expected, error)
    assert f"not at version {int(found) + 7}" in kv.fails(3, "set", "--if-version", str(int(found) + 7), "a\x1b=2")


def test_a_conflict_of_several_keys_says_how_many(kv: "Kv") -> None:
    kv.ok("set", "a=1", "b=1", "c=1")
    assert ", and 2 more keys; nothing was written" in kv.fails(3, "set", "--if-absent", "a=2", "b=2", "c=2")


def test_a_conflict_says_that_a_key_was_deleted(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    seen = version(kv, "a")
    kv.ok("del", "a")
    assert f"a is absent, not at version {seen} (deleted by uid" in kv.fails(3, "set", "--if-version", seen, "a=2")


def test_a_dry_run_checks_the_condition(kv: "Kv") -> None:
    assert kv.ok("set", "-n", "--if-absent", "a=1") == "would set a: 1\n"
    assert kv.ok("ls") == ""
    kv.ok("set", "a=1")
    kv.fails(3, "set", "-n", "--if-absent", "a=2")


@pytest.mark.parametrize(
    "options",
    [
        ["--if-version", "x"],
        ["--if-version", "-1"],
        ["--if-version"],
        ["--if-version", "1" * 30],
        ["--if-version", "1", "--if-absent"],
    ],
)
def test_wrong_conditions_set_nothing(shared_kv: "Kv", options: list[str]) -> None:
    shared_kv.fails(2, "set", "a=1", *options)
    assert shared_kv.ok("ls") == ""
