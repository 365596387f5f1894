"""Each command has a class with its options: what the parser sets and what the class declares are the same."""

import argparse
import inspect

import pytest

from kv.cli.completers import LineOptions
from kv.cli.parser import CommonOptions, Parser, add_common_options, build_parser, parse
from kv.cli.registry import COMMANDS, Command

# Set by ``parse`` itself.
SET_BY_PARSE = {"operands", "command", "verbatim"}


def declared(options: type[CommonOptions]) -> set[str]:
    """The attributes that a class of options declares, inherited ones included."""
    return {name for base in options.__mro__ for name in inspect.get_annotations(base)} - SET_BY_PARSE


def settable(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """What argparse sets, by the attribute; the last option for it. Verbatim options never reach argparse."""
    assert isinstance(parser, Parser)
    return {
        action.dest: action
        for action in parser._actions
        if action.dest != "operands" and not set(action.option_strings) & set(parser.verbatim)
    }


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_declares_the_options_that_its_parser_sets_and_no_others(command: Command) -> None:
    assert declared(command.load().Options) == set(settable(build_parser(command, describe=True)))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_declared_option_has_a_default_and_a_flag_defaults_to_false(command: Command) -> None:
    options = command.load().Options()
    for name, action in settable(build_parser(command)).items():
        default = getattr(options, name)
        if isinstance(action, argparse._StoreTrueAction):
            assert default is False, name


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_runs_with_its_own_options(command: Command) -> None:
    """The annotation is what mypy checks every access by."""
    module = command.load()
    assert issubclass(module.Options, CommonOptions)
    assert inspect.signature(module.run).parameters["options"].annotation is module.Options


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_an_empty_command_line_leaves_the_defaults(command: Command) -> None:
    options = parse(build_parser(command), [], command.load().Options())
    assert set(vars(options)) - SET_BY_PARSE <= {"user", "key"}  # the operands of kv access, which argparse reads
    for name in declared(type(options)):
        assert getattr(options, name) == getattr(type(options), name), name


def test_the_common_options_are_those_that_every_command_has() -> None:
    parser = Parser("kv")
    add_common_options(parser)
    assert declared(CommonOptions) == set(settable(parser))


def test_what_the_completers_look_at_is_an_option_of_some_command() -> None:
    of_all = {name for command in COMMANDS for name in declared(command.load().Options)}
    assert declared(LineOptions) <= of_all
