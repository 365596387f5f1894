"""kv set, with the real daemon."""

import base64
import json
import pathlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv


def test_set_of_a_new_key(kv: "Kv") -> None:
    assert kv.ok("set", "cake=🎂") == "Keys set\n"
    assert kv.ok("get", "cake") == "cake: 🎂\n"


def test_set_overwrites(kv: "Kv") -> None:
    kv.ok("set", "k=long value")
    kv.ok("set", "k=v")
    assert kv.ok("get", "k") == "k: v\n"
    assert "Keys Stored: 1\nBytes Stored (Values): 1\nSet Operations: 2\n" in kv.ok("metrics")


def test_set_of_several_keys(kv: "Kv") -> None:
    assert kv.ok("s", "a=1", "b=", "c=x=y") == "Keys set\n"
    assert kv.ok("get", "c", "b", "a") == "c: x=y\nb: \na: 1\n"


@pytest.mark.parametrize(
    "pairs",
    [[], ["a"], ["=v"], ["="], ["good=1", "a"], ["good=1", "=v"], ["good=1", "a=@/no/such/file"], ["good=1", b"\xff=v"],
     ["good=1", "--key", "a"], ["good=1", "--value", "a"], ["good=1", "--key", "", "--value", "a"], ["good=1", "--key"],
     ["good=1", "a=-", "b=-"], ["good=1", "a=-", "-"], ["good=1", "--unknown"]],
)  # fmt: skip
def test_invalid_pairs_set_nothing(shared_kv: "Kv", pairs: list[str]) -> None:
    shared_kv.fails(2, "set", *pairs)
    assert shared_kv.ok("ls") == ""


@pytest.mark.parametrize(
    "lines", [b"nonsense", b'{"key": "good", "value": "1"}\n{"key": "a"}', b'{"key": "", "value": ""}']
)
def test_invalid_pairs_on_standard_input_set_nothing(shared_kv: "Kv", lines: bytes) -> None:
    assert "line " in shared_kv.fails(2, "set", "-", stdin=lines)
    assert shared_kv.ok("ls") == ""


def test_one_pair_over_a_limit_of_many_sets_nothing(shared_kv: "Kv") -> None:
    shared_kv.fails(5, "set", "good=1", "--key", "k" * 5000, "--value", "v")
    assert shared_kv.ok("ls") == ""


def test_a_value_is_kept_byte_for_byte(kv: "Kv") -> None:
    kv.ok("set", b"argv=\xff\xfe\x01 ")
    kv.ok("set", "stdin=-", stdin=b"\x00\n\xff")
    assert kv("get", "--raw", "argv").stdout == b"\xff\xfe\x01 "
    assert kv("get", "--raw", "stdin").stdout == b"\x00\n\xff"


def test_bytes_are_kept_whatever_the_locale(kv: "Kv") -> None:
    for locale in ("C", "POSIX", "C.UTF-8", "en_US.ISO-8859-1"):
        kv.ok("set", "clé=é".encode(), LC_ALL=locale)
        assert kv("get", "--raw", "clé".encode(), LC_ALL=locale).stdout == "é".encode()
        assert kv("get", "clé".encode(), LC_ALL=locale, PYTHONIOENCODING="ascii").stdout == "clé: é\n".encode()


def test_a_value_is_read_from_a_file(kv: "Kv", tmp_path: pathlib.Path) -> None:
    (tmp_path / "photo").write_bytes(bytes(range(256)) * 4096)
    kv.ok("set", f"photo=@{tmp_path}/photo")
    assert kv("get", "--raw", "photo").stdout == bytes(range(256)) * 4096


def test_special_values_can_be_set_literally(kv: "Kv") -> None:
    kv.ok("set", "a==@x", "b==-", "c==", "--key", "d=e", "--value", "@x", "--key", "-f", "--value", "--")
    assert kv.ok("get", "a", "b", "c", "d=e", "--", "-f") == "a: @x\nb: -\nc: \nd=e: @x\n-f: --\n"
    kv.ok("set", "--raw-values", "a=@x", "b=-", "c==")
    assert kv.ok("get", "a", "b", "c") == "a: @x\nb: -\nc: =\n"


def test_pairs_from_standard_input_are_one_commit(kv: "Kv") -> None:
    binary = {"base64": base64.b64encode(b"\xff\x00").decode()}
    lines = [{"key": "text", "value": "é\n"}, {"key": "bin=ary", "value": binary}, {"key": "text", "value": "last"}]
    assert kv.ok("set", "-", stdin="\n".join(map(json.dumps, lines)).encode()) == "Keys set\n"
    assert kv("get", "-0", "text", "bin=ary").stdout == b"text: last\0bin=ary: \xff\x00\0"
    versions = {line.split()[1] for line in kv.ok("ls", "--long").splitlines()}
    assert len(versions) == 1


def test_standard_input_and_operands_are_taken_in_their_order(kv: "Kv") -> None:
    lines = b'{"key": "a", "value": "from stdin"}\n{"key": "b", "value": "from stdin"}'
    kv.ok("set", "a=1", "c=3", "-", "b=2", stdin=lines)
    assert kv.ok("get", "a", "b", "c") == "a: from stdin\nb: 2\nc: 3\n"


def test_no_pairs_on_standard_input_is_no_error(kv: "Kv") -> None:
    assert kv("set", "-").returncode == 0
    assert kv.ok("ls") == ""


@pytest.mark.parametrize(
    "key", ["a?force", "q#frag", "a/", "/", "..", "p%zz", "a b", "a:b", "\n", "\x1b[31m", "\u202e", "🎂"]
)
def test_any_string_is_a_key_of_its_own(shared_kv: "Kv", key: str) -> None:
    shared_kv.ok("set", "--key", key, "--value", "here")
    assert shared_kv("get", "--raw", key).stdout == b"here"
    assert shared_kv.ok("ls", "-0") == f"{key}\0"
    assert shared_kv.ok("del", key) == "Keys deleted\n"
    assert shared_kv.ok("ls") == ""


def test_a_dry_run_sets_nothing(kv: "Kv") -> None:
    assert kv.ok("set", "-n", "a=1", "b=\x1b") == "would set a: 1\nwould set b: \\x1b\n"
    kv.fails(2, "set", "-n", "a=1", "b")
    assert kv.ok("ls") == ""


def test_quiet_and_verbose(kv: "Kv") -> None:
    assert kv.ok("set", "-q", "a=1") == ""
    result = kv("-v", "set", "a=1", "b=2")
    assert result.stdout == b"Keys set\n"
    assert result.stderr.startswith(b"kv: 2 keys, version ")


def test_an_endless_file_is_refused_and_nothing_is_set(kv: "Kv") -> None:
    assert "/dev/zero is larger than 256 MiB" in kv.fails(2, "set", "a=1", "k=@/dev/zero")
    assert kv.ok("ls") == ""
