"""What kv set takes for keys and values, without a daemon."""

import base64
import json
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv.cli.failures import UsageError
from kv.cli.pairs import collect, json_lines

TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"))
KEYS = TEXT.filter(bool)


@pytest.mark.parametrize(
    ("operand", "key", "value"),
    [
        ("a=b", "a", b"b"),
        ("a=", "a", b""),
        ("a=x=y", "a", b"x=y"),
        ("a==@file", "a", b"@file"),
        ("a==-", "a", b"-"),
        ("a==", "a", b""),
        ("a===", "a", b"="),
        ("a= -", "a", b" -"),
        ("cake=🎂", "cake", "🎂".encode()),
        ("a=\udcff", "a", b"\xff"),
        ("a/b?c#d=e", "a/b?c#d", b"e"),
    ],
)
def test_the_first_equals_sign_ends_the_key(operand: str, key: str, value: bytes) -> None:
    assert collect([operand], [], []) == {key: value}


def test_a_later_pair_for_the_same_key_wins() -> None:
    assert collect(["a=1", "b=2", "a=3"], [], []) == {"a": b"3", "b": b"2"}
    assert collect(["a=1"], ["a"], ["2"]) == {"a": b"2"}


def test_an_at_sign_reads_a_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "data").write_bytes(b"\x00\xff\n")
    assert collect([f"a=@{tmp_path}/data"], [], []) == {"a": b"\x00\xff\n"}


@pytest.mark.parametrize("value", ["@file", "-", "=x", "", "==", "--", "-n"])
def test_values_of_key_value_and_raw_values_have_no_special_forms(value: str) -> None:
    assert collect([], ["k=1"], [value]) == {"k=1": value.encode()}
    assert collect([f"k={value}"], [], [], raw_values=True) == {"k": value.encode()}


@pytest.mark.parametrize(
    ("operands", "keys", "values", "message"),
    [
        ([], [], [], "no pairs"),
        (["a"], [], [], "key=value"),
        (["=a"], [], [], "empty"),
        (["="], [], [], "empty"),
        ([""], [], [], "key=value"),
        (["a=1", "b"], [], [], "key=value"),
        (["\udcff=1"], [], [], "UTF-8"),
        ([], ["a"], [], "pairs"),
        ([], ["a", "b"], ["1"], "pairs"),
        ([], [""], ["1"], "empty"),
        (["a=@/does/not/exist"], [], [], "/does/not/exist"),
        (["a=@/"], [], [], "directory"),
        (["a=@"], [], [], "No such file"),
        (["a=@nul\0"], [], [], "null"),
    ],
)
def test_wrong_pairs_are_refused(operands: list[str], keys: list[str], values: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        collect(operands, keys, values)


@settings(deadline=None)
@given(st.lists(st.tuples(KEYS, TEXT | st.binary())))
def test_json_lines_carry_any_key_and_any_value(pairs: list[tuple[str, str | bytes]]) -> None:
    lines = []
    for key, value in pairs:
        carried = value if isinstance(value, str) else {"base64": base64.b64encode(value).decode()}
        lines.append(json.dumps({"key": key, "value": carried}))
    expected = {key: value.encode() if isinstance(value, str) else value for key, value in pairs}
    assert json_lines("\n".join(lines).encode()) == expected


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[]",
        b"{}",
        b'{"a": "b"}',
        b'{"key": "a"}',
        b'{"key": "a", "value": 1}',
        b'{"key": "a", "value": null}',
        b'{"key": "", "value": "x"}',
        b'{"key": 1, "value": "x"}',
        b'{"key": "a", "value": "x", "ttl": 1}',
        b'{"key": "a", "value": {"base64": "?"}}',
        '{"key": "a", "value": {"base64": "é"}}'.encode(),
        b'{"key": "a", "value": {"base64": "AA==", "more": 1}}',
        b'{"key": "\\ud800", "value": "x"}',
        b'{"key": "a", "value": "\\ud800"}',
        b'{"key": "a", "value": "\xff"}',
        b"[" * 100_000,
    ],
)
def test_a_wrong_json_line_is_refused_with_its_number(line: bytes) -> None:
    good = b'{"key": "a", "value": "b"}\n\n'
    with pytest.raises(UsageError, match="line 3 of standard input"):
        json_lines(good + line)
