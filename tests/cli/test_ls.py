"""kv ls, with the real daemon."""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv


def test_ls_is_in_the_order_of_bytes(kv: "Kv") -> None:
    kv.ok("set", "b=", "a=", "é=", "B=", "\U0001f382=", "\uffee=")
    assert kv.ok("ls") == "B\na\nb\né\n\uffee\n\U0001f382\n"


def test_ls_with_a_prefix(kv: "Kv") -> None:
    kv.ok("set", "user/1=", "user/2=", "user=", "users=", "v=")
    assert kv.ok("ls", "user/") == "user/1\nuser/2\n"
    assert kv.ok("ls", "nothing") == ""
    assert kv.ok("ls", "") == kv.ok("ls")


def test_ls_goes_on_after_the_first_page(kv: "Kv") -> None:
    names = [f"key{number:05}" for number in range(2_500)]
    kv.ok("set", "-", stdin=b"\n".join(json.dumps({"key": name, "value": ""}).encode() for name in names))
    assert kv.ok("ls").split() == names


def test_ls_long(kv: "Kv") -> None:
    kv.ok("set", "cake=🎂")
    kv.ok("set", "t\tab=")
    lines = kv.ok("ls", "--long").splitlines()
    cake, tab = (line.split() for line in lines)
    assert (cake[0], cake[2], tab[0], tab[2]) == ("4", "cake", "0", r"t\tab")
    assert int(cake[1]) < int(tab[1])
    assert lines[0].index("cake") == lines[1].index(r"t\tab")


def test_ls_json(kv: "Kv") -> None:
    kv.ok("set", "a=123", "\x1b\n=")
    lines = [json.loads(line) for line in kv.ok("ls", "--json").splitlines()]
    assert lines == [{"key": "\x1b\n"}, {"key": "a"}]
    longer = [json.loads(line) for line in kv.ok("ls", "--json", "--long").splitlines()]
    assert [(line["key"], line["size"]) for line in longer] == [("\x1b\n", 0), ("a", 3)]
    assert longer[0]["version"] == longer[1]["version"] > 0


def test_ls_escapes_and_null_does_not(kv: "Kv") -> None:
    kv.ok("set", "a\nb\x1b=")
    assert kv.ok("ls") == "a\\nb\\x1b\n"
    assert kv.ok("ls", "-0") == "a\nb\x1b\0"


def test_ls_takes_one_prefix(kv: "Kv") -> None:
    kv.fails(2, "ls", "a", "b")
