"""The private parts of argparse and argcomplete that completion, suggestions and the manual page use.

A new version of Python or of argcomplete may change them without a word. These tests are the first to fail then, and
name what has changed and where it is used.
"""

import argparse
import platform

import pytest
from argcomplete.completers import SuppressCompleter
from argcomplete.finders import CompletionFinder

from kv.cli.parser import Parser

ARGPARSE = f"argparse of Python {platform.python_version()}"
USED_IN = "which kv/cli/complete.py, parser.py and manpage.py use"


@pytest.fixture
def parser() -> Parser:
    """A parser with an option, a flag, and operands."""
    parser = Parser("kv x", describe=True)
    parser.add_argument("--name", metavar="NAME", help="a name")
    parser.add_argument("-f", "--flag", action="store_true", help="a flag")
    parser.operands("KEY", "keys")
    return parser


@pytest.mark.parametrize("name", ["_actions", "_get_positional_actions", "_option_string_actions"])
def test_argparse_has_the_private_parts_of_a_parser(parser: Parser, name: str) -> None:
    assert hasattr(parser, name), f"{ARGPARSE} has no ArgumentParser.{name}, {USED_IN}"


def test_argparse_lists_the_actions_of_a_parser_in_order(parser: Parser) -> None:
    names = [action.option_strings or [action.dest] for action in parser._actions]
    assert names == [["--name"], ["-f", "--flag"], ["operands"]], f"{ARGPARSE}: ArgumentParser._actions, {USED_IN}"


def test_argparse_lists_the_positional_actions_of_a_parser(parser: Parser) -> None:
    names = [action.dest for action in parser._get_positional_actions()]
    assert names == ["operands"], f"{ARGPARSE}: ArgumentParser._get_positional_actions, {USED_IN}"


def test_argparse_knows_the_options_of_a_parser_by_name(parser: Parser) -> None:
    names = set(parser._option_string_actions)
    assert names == {"--name", "-f", "--flag"}, f"{ARGPARSE}: ArgumentParser._option_string_actions, {USED_IN}"


def test_argparse_marks_subcommands_by_a_private_class() -> None:
    parser = Parser("kv")
    parser.add_subparsers(prog="kv", parser_class=Parser)
    (action,) = parser._get_positional_actions()
    assert isinstance(action, argparse._SubParsersAction), f"{ARGPARSE}: _SubParsersAction, {USED_IN}"


def test_argparse_sets_options_on_an_object_of_ours_and_leaves_out_what_is_not_on_the_line(parser: Parser) -> None:
    class Target:
        name: str | None = None
        flag: bool = False

    target, rest = parser.parse_known_args(["--name", "x"], Target())
    assert (target.name, target.flag, rest) == ("x", False, []), f"{ARGPARSE}: parse_known_args with a namespace"
    assert "flag" not in vars(target), f"{ARGPARSE}: argument_default=SUPPRESS"


@pytest.mark.parametrize("name", ["collect_completions", "quote_completions"])
def test_argcomplete_calls_the_methods_that_the_finder_overrides(name: str) -> None:
    assert hasattr(CompletionFinder, name), f"argcomplete has no CompletionFinder.{name}, which complete.py overrides"


def test_argcomplete_notes_on_the_parser_which_options_wait_for_a_value(parser: Parser) -> None:
    finder = CompletionFinder(parser, default_completer=SuppressCompleter())
    finder._get_completions(["kv", "--name"], "", "", None)
    waiting = [action.dest for action in getattr(parser, "active_actions", [])]
    assert "name" in waiting, "argcomplete does not set active_actions on a parser, which kv/cli/complete.py reads"


def test_argcomplete_keeps_the_descriptions_that_it_shows(parser: Parser) -> None:
    finder = CompletionFinder(parser, default_completer=SuppressCompleter())
    finder._get_completions(["kv"], "--n", "", None)
    shown = finder._display_completions
    assert shown["--name"] == "a name", "argcomplete has no _display_completions, which kv/cli/complete.py sets"
