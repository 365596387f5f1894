"""kv txn, with the real daemon."""

import json
import re
import subprocess
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pytest

from kv.blocking.client import Client
from kv.blocking.connect import connect
from kv.cli.failures import CommandFailed
from kv.cli.statements import parse
from kv.cli.transactions import carry_out
from kv.errors import Conflict
from kv.results import Versioned

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv


def newest(kv: "Kv") -> int:
    """The current version."""
    return int(json.loads(kv.ok("log", "--limit", "1", "--json"))["version"])


def test_a_script_writes_all_in_one_commit(kv: "Kv") -> None:
    kv.ok("set", "a=1", "gone=1")
    assert kv.ok("txn", stdin=b"check a = 1\nset a 2\nset 'b c' 3\ndel gone\nincr n 4") == "n: 4\n"
    assert kv.ok("get", "a", "b c", "n") == "a: 2\nb c: 3\nn: 4\n"
    assert sorted(json.loads(kv.ok("log", "--limit", "1", "--json"))["keys"]) == ["a", "b c", "gone", "n"]


@pytest.mark.parametrize(
    "check",
    [
        "check a = 2",
        "check a absent",
        "check none exists",
        "check a version 0",
        "check a version 99",
        "check none = ''",
    ],
)
def test_a_check_that_does_not_hold_writes_and_prints_nothing(kv: "Kv", check: str) -> None:
    kv.ok("set", "a=1")
    before = newest(kv)
    for option in ([], ["-n"]):
        error = kv.fails(3, "txn", *option, stdin=f"get a\n{check}\nset a 5".encode())
        assert error.startswith("kv: error: line 2: the check does not hold: ")
    assert newest(kv) == before


def test_checks_that_hold_let_the_script_write(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    script = f"check a version {newest(kv)}\ncheck a exists\ncheck a = 1\ncheck b absent\ncheck b version 0\nset b 2"
    assert kv.ok("txn", stdin=script.encode()) == ""
    assert kv.ok("get", "b") == "b: 2\n"


def test_a_refusal_names_what_is_there_with_author_and_time(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    version = newest(kv)
    assert f"a is at version {version}, not at version 7 (set by uid " in kv.fails(3, "txn", stdin=b"check a version 7")
    assert f"a is at version {version}, not absent (set by uid " in kv.fails(3, "txn", stdin=b"check a absent")
    assert f"a is at version {version}, not 'x\\x1b' (set by uid " in kv.fails(3, "txn", stdin=b"check a = 'x\x1b'")
    kv.ok("del", "a")
    assert "a is absent, not there (deleted by uid " in kv.fails(3, "txn", stdin=b"check a exists")
    assert "a has been written by a statement before it" in kv.fails(3, "txn", stdin=b"set a 1\ncheck a absent")


def test_statements_see_the_writes_of_earlier_statements(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    script = b"get a\nset a 5\nget a\nincr a\ncheck a = 6\ndel a\ncheck a absent\nincr a -1"
    assert kv.ok("txn", stdin=script) == "a: 1\na: 5\na: 6\na: -1\n"
    assert kv.ok("get", "a") == "a: -1\n"


def test_a_missing_key_of_get_is_named_and_the_rest_is_done(kv: "Kv") -> None:
    result = kv("txn", stdin=b"get a\nset b 1\nget b")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"b: 1\n", b"kv: no such key: a\n")


def test_json_has_version_and_values(kv: "Kv") -> None:
    output = json.loads(kv.ok("txn", "--json", stdin=b"get a\nset b '\xff'\nget b\nincr n"))
    assert output == {"version": newest(kv), "found": {"a": None, "b": {"base64": "/w=="}, "n": "1"}}
    assert json.loads(kv.ok("txn", "--json", stdin=b"get n")) == {"version": None, "found": {"n": "1"}}


def test_a_dry_run_shows_and_writes_nothing(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    before = newest(kv)
    assert kv.ok("txn", "-n", stdin=b"get a\nset b 'x\n'\ndel a\nincr n") == (
        "a: 1\nn: 1\nwould set b: x\\n\nwould delete a\nwould set n: 1\n"
    )
    assert newest(kv) == before


def test_a_wrong_statement_sends_nothing(alone: "Kv") -> None:
    assert "line 2: " in alone.fails(2, "txn", stdin=b"set a 1\nset b")


def test_incr_of_a_value_that_is_no_number_writes_nothing(kv: "Kv") -> None:
    kv.ok("set", "a=x")
    assert "line 2: a is not a decimal number" in kv.fails(5, "txn", stdin=b"set b 1\nincr a")
    kv.fails(5, "txn", stdin=f"set c {2**63 - 1}\nincr c".encode())
    assert kv.ok("ls") == "a\n"


def test_an_empty_script_does_nothing(alone: "Kv") -> None:
    assert alone.ok("txn", stdin=b"# nothing\n") == ""


def test_ttl_and_keep_ttl_apply_to_the_writes(kv: "Kv") -> None:
    kv.ok("txn", "--ttl", "1h", stdin=b"set a 1")
    kv.ok("txn", "--keep-ttl", stdin=b"set a 2")
    assert re.fullmatch(r"a: (59m\d*s?|1h)\n", kv.ok("ttl", "a"))
    kv.ok("txn", stdin=b"set a 3")
    assert kv.ok("ttl", "a") == "a: no expiry\n"


def test_concurrent_scripts_lose_no_update(kv: "Kv") -> None:
    running = [
        kv.start("txn", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(12)
    ]
    for process in running:
        assert process.stdin is not None
        process.stdin.write(b"get n\nincr n\nincr m -1\ncheck n exists")
        process.stdin.flush()
    for process in running:
        assert process.communicate(timeout=60)[1].count(b"error") == 0
    assert kv.ok("get", "n", "m") == "n: 12\nm: -12\n"


class Interrupted(Client):
    """A client in which another client adds to n after each read, ``times`` times."""

    times = 1

    def fetch(self, keys: Iterable[str], *, at: int | None = None) -> dict[str, Versioned]:  # type: ignore[override]
        found = super().fetch(keys, at=at)
        if self.times:
            self.times -= 1
            with connect(self.settings.address) as other:
                other.increment("n", 10)
        return found


def test_a_change_after_the_read_repeats_the_script(kv: "Kv") -> None:
    with Interrupted(kv.socket) as client:
        outcome, version = carry_out(client, parse(b"get n\nincr n"))
    assert outcome.shown == [("n", b"10"), ("n", b"11")]
    assert version == newest(kv)


def test_a_repeated_script_checks_again(kv: "Kv") -> None:
    with Interrupted(kv.socket) as client, pytest.raises(CommandFailed, match="line 1: the check does not hold"):
        carry_out(client, parse(b"check n absent\nset n 1"))
    assert kv.ok("get", "n") == "n: 10\n"


def test_endless_conflicts_end_with_a_conflict(kv: "Kv") -> None:
    with Interrupted(kv.socket) as client:
        client.times = 1_000
        with pytest.raises(Conflict):
            carry_out(client, parse(b"incr n"))


@pytest.mark.parametrize("arguments", [["a"], ["--ttl", "x"], ["--raw"]])
def test_wrong_usage(alone: "Kv", arguments: list[str]) -> None:
    alone.fails(2, "txn", *arguments, stdin=b"get a")
