"""kv get, with the real daemon."""

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv


def test_get_of_a_missing_key_ends_with_1(kv: "Kv") -> None:
    assert kv.fails(1, "get", "nothing") == "kv: error: no such key: nothing\n"


def test_get_prints_the_existing_keys_and_names_each_missing_one(kv: "Kv") -> None:
    kv.ok("set", "a=1", "b=2")
    result = kv("get", "b", "x", "a", "y\n", "x")
    assert result.returncode == 1
    assert result.stdout == b"b: 2\na: 1\n"
    assert result.stderr == b"kv: error: no such key: x\nkv: error: no such key: y\\n\n"


def test_get_keeps_the_order_and_repeats_a_repeated_key(kv: "Kv") -> None:
    kv.ok("set", "a=1", "b=2")
    assert kv.ok("g", "b", "a", "b") == "b: 2\na: 1\nb: 2\n"


@pytest.mark.parametrize(
    "arguments", [[], [""], ["a", ""], [b"\xff"], ["--raw", "a", "b"], ["--raw", "--json", "a"], ["--nothing"]]
)
def test_wrong_usage(shared_kv: "Kv", arguments: list[str]) -> None:
    shared_kv.fails(2, "get", *arguments)


def test_raw_is_exactly_the_bytes(kv: "Kv") -> None:
    kv.ok("set", "k=-", stdin=b"\x1b[31m\x00\xff no newline")
    assert kv("get", "--raw", "k").stdout == b"\x1b[31m\x00\xff no newline"
    assert kv.fails(1, "get", "--raw", "x") == "kv: error: no such key: x\n"


def test_one_record_is_one_line_and_safe(kv: "Kv") -> None:
    kv.ok("set", "-", stdin=json.dumps({"key": "a\nb", "value": "1\n\x1b]0;title\x07\u202e"}).encode())
    assert kv.ok("get", "a\nb") == "a\\nb: 1\\n\\x1b]0;title\\x07\\u202e\n"


def test_json_is_one_object(kv: "Kv") -> None:
    kv.ok("set", "text=é\u202e\x9b", b"bytes=\xff")
    result = kv("get", "--json", "text", "bytes", "nothing")
    assert result.returncode == 1
    assert json.loads(result.stdout) == {"text": "é\u202e\x9b", "bytes": {"base64": "/w=="}}
    assert "é\\u202e\\u009b" in result.stdout.decode()
    assert kv("get", "--json", "nothing").stdout == b"{}\n"


def test_null_ends_each_record_with_a_zero_byte(kv: "Kv") -> None:
    kv.ok("set", b"a=1\n\xff", "b=")
    assert kv("get", "-0", "a", "b").stdout == b"a: 1\n\xff\0b: \0"


def test_quiet_answers_by_the_exit_code(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    assert kv.ok("get", "-q", "a") == ""
    result = kv("get", "-q", "a", "nothing")
    assert (result.returncode, result.stdout, result.stderr) == (1, b"", b"")
