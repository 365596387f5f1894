"""kv rollback and kv revert, with the real daemon."""

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv


def newest(kv: "Kv") -> str:
    """The current version."""
    return str(json.loads(kv.ok("log", "--limit", "1", "--json"))["version"])


def commits(kv: "Kv") -> int:
    """The number of commits."""
    return len(kv.ok("log", "--all").splitlines())


@pytest.fixture
def before(kv: "Kv") -> str:
    """The version before a is changed, b deleted and c created."""
    kv.ok("set", "a=1", "b=1")
    version = newest(kv)
    kv.ok("set", "a=2")
    kv.ok("del", "b")
    kv.ok("set", "c=1")
    return version


def test_rollback_sets_and_deletes_in_one_commit(kv: "Kv", before: str) -> None:
    count = commits(kv)
    assert kv.ok("rollback", "--to", before, "a", "b", "c") == "Keys rolled back\n"
    assert kv.ok("get", "a", "b") == "a: 1\nb: 1\n"
    kv.fails(1, "get", "c")
    assert commits(kv) == count + 1
    assert kv.ok("log", "--limit", "1").endswith("  a, b, c\n")


def test_rollback_of_some_keys_leaves_the_others(kv: "Kv", before: str) -> None:
    kv.ok("rollback", "--to", before, "b")
    assert kv.ok("get", "a", "b", "c") == "a: 2\nb: 1\nc: 1\n"


def test_a_dry_rollback_shows_what_it_would_do(kv: "Kv", before: str) -> None:
    count = commits(kv)
    assert kv.ok("rollback", "-n", "--to", before, "a", "b", "c") == "would set a: 1\nwould set b: 1\nwould delete c\n"
    assert commits(kv) == count


def test_rollback_says_when_nothing_changes_and_makes_no_commit(kv: "Kv", before: str) -> None:
    kv.ok("rollback", "--to", before, "a", "b", "c")
    count = commits(kv)
    for option in ([], ["-n"]):
        output = kv.ok("rollback", "--to", before, "a", "b", "c", *option)
        assert output == f"Nothing to change: already as at version {before}\n"
    assert commits(kv) == count


def test_a_rollback_can_itself_be_rolled_back(kv: "Kv", before: str) -> None:
    then = newest(kv)
    kv.ok("rollback", "--to", before, "a", "b", "c")
    kv.ok("rollback", "--to", then, "a", "b", "c")
    assert kv.ok("ls") == "a\nc\n"
    assert kv.ok("get", "a") == "a: 2\n"


def test_rollback_to_a_time(kv: "Kv", before: str) -> None:
    kv.ok("rollback", "--to", "1h", "a", "c")
    assert kv.ok("ls") == ""
    kv.ok("rollback", "--to", before, "a")
    assert kv.ok("get", "a") == "a: 1\n"


def test_rollback_restores_a_binary_value_of_an_odd_key(kv: "Kv") -> None:
    kv.ok("set", b"\n\x1b=\xff")
    before = newest(kv)
    kv.ok("del", "\n\x1b")
    kv.ok("rollback", "--to", before, "\n\x1b")
    assert kv("get", "--raw", "\n\x1b").stdout == b"\xff"


@pytest.mark.parametrize("arguments", [["a"], ["--to", "1"], ["--to"], ["--to", "1", ""], ["a", "--to", "x"]])
def test_wrong_usage_of_rollback(alone: "Kv", arguments: list[str]) -> None:
    alone.fails(2, "rollback", *arguments)


def test_revert_undoes_one_commit(kv: "Kv") -> None:
    kv.ok("set", "a=1", "b=1")
    kv.ok("set", "a=2", "c=2")
    second = newest(kv)
    kv.ok("set", "d=3")
    assert kv.ok("revert", second) == "Commit reverted\n"
    assert kv.ok("ls") == "a\nb\nd\n"
    assert kv.ok("get", "a") == "a: 1\n"
    assert kv.ok("log", "--limit", "1").endswith("  a, c\n")


def test_revert_of_a_deletion_restores_the_keys(kv: "Kv") -> None:
    kv.ok("set", "a=1", "b=2")
    kv.ok("del", "a", "b")
    kv.ok("revert", newest(kv))
    assert kv.ok("get", "a", "b") == "a: 1\nb: 2\n"


def test_revert_refuses_a_key_that_has_changed_since(kv: "Kv") -> None:
    kv.ok("set", "a=1", "b=1")
    first = newest(kv)
    kv.ok("set", "b=2")
    second = newest(kv)
    for option in ([], ["-n"]):
        error = kv.fails(3, "revert", first, *option)
        assert f"b is at version {second}, not at version {first} (set by uid" in error
    assert kv.ok("get", "a", "b") == "a: 1\nb: 2\n"


def test_a_dry_revert_shows_what_it_would_do(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    kv.ok("set", "a=2", "b=2")
    count = commits(kv)
    assert kv.ok("revert", "-n", newest(kv)) == "would set a: 1\nwould delete b\n"
    assert commits(kv) == count


def test_a_revert_can_itself_be_reverted(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    kv.ok("revert", newest(kv))
    assert kv.ok("ls") == ""
    kv.ok("revert", newest(kv))
    assert kv.ok("get", "a") == "a: 1\n"


def test_revert_says_when_nothing_changes(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    kv.ok("set", "a=1")
    version = newest(kv)
    assert kv.ok("revert", version) == f"Nothing to change: already as before version {version}\n"
    assert newest(kv) == version


def test_revert_of_a_missing_commit_ends_with_5(kv: "Kv") -> None:
    assert "there is no commit with version 99" in kv.fails(5, "revert", "99")


@pytest.mark.parametrize("arguments", [[], ["1", "2"], ["x"], ["0"], ["10m"], ["1" * 40], [""]])
def test_wrong_usage_of_revert(alone: "Kv", arguments: list[str]) -> None:
    alone.fails(2, "revert", *arguments)
