"""The language of kv txn, without a daemon."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv.cli.failures import UsageError
from kv.cli.statements import parse


def parsed(script: str | bytes) -> list[tuple[object, ...]]:
    """Each statement as a tuple."""
    data = script if isinstance(script, bytes) else script.encode()
    return [(each.line, each.verb, each.key, each.argument) for each in parse(data)]


def test_every_statement() -> None:
    script = "check a version 3\ncheck a absent\ncheck a exists\ncheck a = x\nget a\nset a x\ndel a\nincr a\nincr a -2"
    assert parsed(script) == [
        (1, "version", "a", 3), (2, "absent", "a", None), (3, "exists", "a", None), (4, "=", "a", b"x"),
        (5, "get", "a", None), (6, "set", "a", b"x"), (7, "del", "a", None), (8, "incr", "a", 1), (9, "incr", "a", -2),
    ]  # fmt: skip


def test_get_and_del_take_several_keys() -> None:
    assert parsed("get a b\ndel c d") == [
        (1, "get", "a", None), (1, "get", "b", None), (2, "del", "c", None), (2, "del", "d", None)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "key", "value"),
    [("set 'a b' \"it's\"", "a b", b"it's"), ("set a ''", "a", b""), (r"set a\ b \"", "a b", b'"'),
     ("set a#b #c", "a#b", b"#c"), ("set cfg '{\"debug\": true}'", "cfg", b'{"debug": true}'),
     ("set a 'two\nlines'", "a", b"two\nlines"), ('set a "x\\"\n\\\\"', "a", b'x"\n\\'), ("  set\ta   b \r", "a", b"b"),
     ("set a=b =", "a=b", b"=")],
)  # fmt: skip
def test_words_are_quoted_as_in_a_shell(script: str, key: str, value: bytes) -> None:
    assert parsed(script) == [(1, "set", key, value)]


def test_bytes_that_are_no_text_can_be_values() -> None:
    assert parsed(b"set a '\xff\x00'") == [(1, "set", "a", b"\xff\x00")]


def test_comments_and_empty_lines_are_skipped() -> None:
    assert parsed("\n  # it's nothing\nget a\n\n#'\nget b\n") == [(3, "get", "a", None), (6, "get", "b", None)]
    assert parsed("") == parsed("\n\n") == parsed("# x") == []


def test_line_numbers_count_the_lines_within_quotes() -> None:
    assert parsed("set a 'x\n\ny'\nget b") == [(1, "set", "a", b"x\n\ny"), (4, "get", "b", None)]


@pytest.mark.parametrize(
    "line",
    ["nonsense", "get", "del", "set a", "set a b c", "set a b'", 'get "a', "get a\\", "get ''", "set '' x", "incr",
     "incr a x", "incr a 1 2", f"incr a {2**63}", "check", "check a", "check a = x y", "check a == x",
     "check a version", "check a version -1", "check a version x", "check a is 3", "check '' absent", "SET a b",
     b"get \xff"],
)  # fmt: skip
def test_an_error_names_the_line(line: str | bytes) -> None:
    data = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(UsageError, match=r"^line 3: .*nothing was done$"):
        parse(b"get a\n# fine\n" + data)


def test_an_unfinished_quotation_takes_linear_time() -> None:
    with pytest.raises(UsageError, match=r"line 1: a quotation"):
        parse(b"set a 'x\n" + b"get a\n" * 200_000)


@settings(deadline=None)
@given(st.text(alphabet="ab '\"\\\n#=\t", max_size=40) | st.binary(max_size=40))
def test_any_script_is_understood_or_refused(script: str | bytes) -> None:
    try:
        parse(script if isinstance(script, bytes) else b"get " + script.encode())
    except UsageError:
        pass
