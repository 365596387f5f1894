"""kv del, with the real daemon."""

from typing import TYPE_CHECKING

import pexpect
import pytest

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv


def test_del_deletes_keys(kv: "Kv") -> None:
    kv.ok("set", "a=1", "b=2", "c=3")
    assert kv.ok("del", "a") == "Keys deleted\n"
    assert kv.ok("delete", "b", "c", "b") == "Keys deleted\n"
    assert kv.ok("ls") == ""
    assert kv.ok("metrics").startswith("Keys Stored: 0\n")


def test_del_of_a_missing_key_ends_with_1(kv: "Kv") -> None:
    assert kv.fails(1, "del", "nothing") == "kv: error: no such key: nothing\n"


def test_del_deletes_nothing_if_one_key_is_missing(kv: "Kv") -> None:
    kv.ok("set", "a=1", "b=2")
    assert kv.fails(1, "del", "a", "nothing", "b") == "kv: error: no such key: nothing\n"
    assert kv.ok("ls") == "a\nb\n"


def test_ignore_missing_deletes_the_keys_that_exist(kv: "Kv") -> None:
    kv.ok("set", "a=1", "b=2")
    assert kv.ok("del", "--ignore-missing", "a", "nothing") == "Keys deleted\n"
    assert kv.ok("ls") == "b\n"
    assert kv.ok("del", "--ignore-missing", "nothing") == "Keys deleted\n"


@pytest.mark.parametrize(
    "arguments",
    [[], [""], ["a", ""], [b"\xff"], ["--prefix", ""], ["--prefix="], ["--prefix", "a", "a"], ["--prefix"], ["--all"]],
)
def test_wrong_usage_never_widens_the_scope(kv: "Kv", arguments: list[str]) -> None:
    kv.ok("set", "a=1")
    kv.fails(2, "del", *arguments, "--yes")
    assert kv.ok("ls") == "a\n"


def test_a_similar_key_is_another_key(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    for near in ("a?force", "a/", "a#", "A", " a", "a "):
        kv.fails(1, "del", near)
    assert kv.ok("ls") == "a\n"


def test_a_dry_run_deletes_nothing(kv: "Kv") -> None:
    kv.ok("set", "a=1", "p/1=", "p/2=")
    assert kv.ok("del", "-n", "a") == "would delete a\n"
    assert kv.fails(1, "del", "-n", "a", "x") == "kv: error: no such key: x\n"
    assert kv.ok("del", "-n", "--prefix", "p/") == "would delete p/1\nwould delete p/2\n"
    assert kv.ok("ls") == "a\np/1\np/2\n"


def test_a_prefix_in_a_script_needs_yes(kv: "Kv") -> None:
    kv.ok("set", "p/1=", "p/2=", "q=")
    assert "--yes" in kv.fails(2, "del", "--prefix", "p/")
    assert kv.ok("ls") == "p/1\np/2\nq\n"
    assert kv.ok("del", "--prefix", "p/", "--yes") == "Keys deleted\n"
    assert kv.ok("ls") == "q\n"


def test_a_prefix_that_no_key_has_ends_with_1(kv: "Kv") -> None:
    assert kv.fails(1, "del", "--prefix", "p/", "--yes") == "kv: error: no key begins with: p/\n"
    kv.ok("del", "--prefix", "p/", "--yes", "--ignore-missing")


def test_a_prefix_of_one_key_is_asked_about_as_one(kv: "Kv") -> None:
    kv.ok("set", "p/1=")
    terminal = pexpect.spawn(
        kv.command[0], [*kv.command[1:], "del", "--prefix", "p/"], env=kv.environment(), timeout=30
    )
    terminal.expect_exact("Delete the 1 key that begins with p/? [y/N] ")
    terminal.sendline("n")
    terminal.expect(pexpect.EOF)
    terminal.close()


@pytest.mark.parametrize(("answer", "left"), [("y", "q\n"), ("n", "p/1\np/2\nq\n"), ("", "p/1\np/2\nq\n")])
def test_a_prefix_on_a_terminal_shows_the_count_and_asks(kv: "Kv", answer: str, left: str) -> None:
    kv.ok("set", "p/1=", "p/2=", "q=")
    terminal = pexpect.spawn(
        kv.command[0], [*kv.command[1:], "del", "--prefix", "p/"], env=kv.environment(), timeout=30
    )
    terminal.expect_exact("Delete the 2 keys that begin with p/? [y/N] ")
    terminal.sendline(answer)
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == (0 if answer == "y" else 1)
    assert kv.ok("ls") == left
