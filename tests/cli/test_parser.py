"""The grammar of the command line, without a daemon."""

import argparse
from typing import Any

import pytest

from kv.cli.complete import top_parser
from kv.cli.failures import UsageError
from kv.cli.parser import build_parser, parse, split_command
from kv.cli.registry import COMMANDS, Command, find, find_or_suggest


def command(name: str) -> Command:
    found = find(name)
    assert found is not None
    return found


def parsed(name: str, *words: str) -> Any:  # noqa: ANN401 (the options class of the command)
    """The options of one command line."""
    return parse(build_parser(command(name)), list(words), command(name).load().Options())


def test_common_options_stand_before_or_after_the_command() -> None:
    before, name, after = split_command(["-s", "x", "-qv", "--timeout=3", "get", "k"])
    assert (before, name, after) == (["-s", "x", "-qv", "--timeout=3"], "get", ["k"])
    for words in (before + after, after + before):
        options = parsed("get", *words)
        assert (options.socket, options.quiet, options.verbose, options.timeout) == ("x", True, True, 3.0)
        assert options.operands == ["k"]


def test_operands_stand_between_options_and_after_two_dashes() -> None:
    options = parsed("get", "a", "--json", "b", "--", "-c", "--", "--json")
    assert options.operands == ["a", "b", "-c", "--", "--json"]


@pytest.mark.parametrize("value", ["-", "--", "-n", "--value", "@x", "", "=", "-x y"])
def test_key_and_value_take_any_next_word(value: str) -> None:
    options = parsed("set", "--key", value, "--value", value, "-n")
    assert (options.verbatim, options.dry_run) == ({"--key": [value], "--value": [value]}, True)


@pytest.mark.parametrize(
    "words",
    [["--rawr"], ["--ra"], ["-x"], ["-s"], ["--timeout", "soon"], ["--timeout", "-1"], ["--timeout", "nan"],
     ["--raw", "--json"], ["--raw=1"]],
)  # fmt: skip
def test_wrong_options_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        parsed("get", "k", *words)


def test_an_unknown_option_before_the_command_is_refused() -> None:
    with pytest.raises(UsageError, match="after the command"):
        split_command(["--raw", "get", "k"])


@pytest.mark.parametrize("name", ["metrics", "ping", "status", "serve", "reload", "shutdown", "version"])
def test_commands_without_operands_refuse_them(name: str) -> None:
    with pytest.raises(UsageError, match="no operands"):
        parsed(name, "extra")


def test_the_timeout_is_the_flag_then_the_environment_then_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVD_TIMEOUT", raising=False)
    assert parsed("get", "k").timeout_s() == 5.0
    monkeypatch.setenv("KVD_TIMEOUT", "7")
    assert parsed("get", "k").timeout_s() == 7.0
    assert parsed("get", "k", "--timeout", "2").timeout_s() == 2.0
    assert parsed("get", "k", "--timeout", "0").timeout_s() is None
    monkeypatch.setenv("KVD_TIMEOUT", "soon")
    with pytest.raises(UsageError, match="KVD_TIMEOUT"):
        parsed("get", "k").timeout_s()


@pytest.mark.parametrize(
    ("alias", "name"), [("s", "set"), ("g", "get"), ("delete", "del"), ("m", "metrics"), ("srv", "serve")]
)
def test_aliases_of_the_original(alias: str, name: str) -> None:
    assert command(alias) is command(name)


@pytest.mark.parametrize(
    ("typed", "meant"), [("gte", "get"), ("delte", "delete"), ("metric", "metrics"), ("lss", "ls")]
)
def test_the_nearest_command_is_suggested(typed: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean '{meant}'"):
        find_or_suggest(typed)


def test_no_two_commands_share_a_name() -> None:
    names = [name for entry in COMMANDS for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))


def test_completion_takes_what_argparse_passes_from_python_3_14_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, a parser hands its ``color`` to the parsers of its commands."""
    add = argparse._SubParsersAction.add_parser

    def add_with_color(action: Any, name: str, **options: Any) -> Any:  # noqa: ANN401 (as argparse has it)
        return add(action, name, color=True, **options)

    monkeypatch.setattr(argparse._SubParsersAction, "add_parser", add_with_color)
    assert top_parser(["get"]).parse_args(["get", "a"]).operands == ["a"]
