"""``--quiet``: the exit code is the answer, and only a wrong command line is explained."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv

UNREACHABLE = 69


@pytest.mark.parametrize(
    "words",
    [
        ["ping"], ["get", "a"], ["set", "a=1"], ["incr", "a"], ["del", "a"], ["del", "--prefix", "a", "--yes"], ["ls"],
        ["ttl", "a"], ["touch", "a", "--ttl", "1"], ["history", "a"], ["log"], ["revert", "1"],
        ["rollback", "a", "--to", "1"], ["diff", "1"], ["status"], ["metrics"], ["shutdown"], ["reload"], ["slowlog"],
        ["top-keys"], ["export"], ["lock", "a", "--", "true"], ["checkpoint"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_quiet_command_without_a_daemon_prints_nothing(alone: "Kv", words: list[str]) -> None:
    done = alone("--timeout", "1", "-q", *words)
    assert (done.returncode, done.stdout, done.stderr) == (UNREACHABLE, b"", b"")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["set", "--if-absent", "there=2"], 3),
        (["incr", "text"], 5),
        (["get", "missing"], 1),
        (["del", "missing"], 1),
        (["del", "--prefix", "missing/"], 1),
        (["revert", "999"], 5),
        (["lock", "a", "--", "/no/such/command"], 127),
    ],
    ids=lambda words: str(words[0]) if isinstance(words, list) else "",
)
def test_a_quiet_failure_prints_nothing(kv: "Kv", words: list[str], status: int) -> None:
    kv.ok("set", "there=1", "text=x")
    done = kv("-q", *words)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert done.returncode == status


@pytest.mark.parametrize("words", [["get"], ["set", "a"], ["incr", "a", "x"], ["nonsense"], ["ping", "--nonsense"]])
def test_a_wrong_command_line_is_explained_all_the_same(alone: "Kv", words: list[str]) -> None:
    done = alone("-q", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(b"kv: error: ")
