"""TAB: what the shell may put at the cursor. The shell's script runs ``kv`` with _ARGCOMPLETE in the environment.

argcomplete splits the line, replays the parser and asks the completers in completers.py; only the parser of the
command on the line has its options. Answers go to descriptor 8; nothing else is ever printed.

argcomplete and argparse offer no public way to some of what is needed here. tests/cli/test_private_parts.py names every
private part that this file uses, and fails first where a new version of either has changed one.
"""

import argparse
import os

from argcomplete.completers import SuppressCompleter
from argcomplete.exceptions import ArgcompleteException
from argcomplete.finders import CompletionFinder
from argcomplete.lexers import split_line

from kv.cli.completers import Completer, file_names, program_names
from kv.cli.failures import UsageError
from kv.cli.parser import Parser, add_arguments, add_common_options, split_command
from kv.cli.registry import COMMANDS, find

_ALIASES = frozenset(alias for command in COMMANDS for alias in command.aliases)


def complete() -> int:
    """Answer the shell. Normally does not return: argcomplete leaves with os._exit."""
    try:
        words = _words()
        finder = Finder()
        finder.after_dashes = words[words.index("--") + 1 :] if "--" in words[1:] else None
        finder(top_parser(words[1:]), always_complete_options=False, default_completer=SuppressCompleter())
    except (ArgcompleteException, KeyError, ValueError, OSError, UsageError):
        pass  # no shell's script called, or the line cannot be completed
    return 1


def _words() -> list[str]:
    """The words before the one at the cursor."""
    words: list[str] = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))[3]
    return words[int(os.environ["_ARGCOMPLETE"]) - 1 :]


def top_parser(words: list[str]) -> argparse.ArgumentParser:
    """All commands by name, and the options and operands of the one in ``words``."""
    chosen = find(split_command(words)[1] or "")
    parser = Parser("kv")
    add_common_options(parser)
    commands = parser.add_subparsers(prog="kv", parser_class=Parser)
    for command in COMMANDS:
        empty = commands.add_parser(command.name, aliases=command.aliases, help=command.summary, describe=True)
        if command is chosen:
            add_arguments(empty, command)
    return parser


class Finder(CompletionFinder):
    """argcomplete's finder with our operands and our completers. It also corrects the quoting for bash."""

    # The words between "--" and the cursor: each is an operand, or a word of a command to run. None without a "--".
    after_dashes: list[str] | None = None

    def collect_completions(
        self, active_parsers: list[argparse.ArgumentParser], parsed_args: argparse.Namespace, cword_prefix: str
    ) -> list[str]:
        """All candidates for the word at the cursor."""
        parser = active_parsers[-1]
        for active_parser in active_parsers:
            self._attach_completers(active_parser)
        if self.after_dashes is not None and isinstance(parser, Parser) and parser.takes_command:
            return file_names(cword_prefix) if self.after_dashes else program_names(cword_prefix)
        operands = self._open_operands(parser, cword_prefix)
        if operands is not None:
            completer = Completer(operands, literal=self.after_dashes is not None)
            words = completer(prefix=cword_prefix, parsed_args=parsed_args)
            self._display_completions = words if isinstance(words, dict) else {}
            return list(words)
        candidates: list[str] = super().collect_completions(active_parsers, parsed_args, cword_prefix)
        if not candidates and not cword_prefix:
            return self._options_if_nothing_else(parser)
        # Two names for one thing are noise in a list, so an alias is offered only where there is nothing else.
        return [word for word in candidates if word not in _ALIASES] or candidates

    def _attach_completers(self, parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                action.completer = Completer(action)  # type: ignore[attr-defined]

    def _open_operands(self, parser: argparse.ArgumentParser, prefix: str) -> argparse.Action | None:
        """The operands, where argparse would not see that they go on: after an option, or after ``--``."""
        positionals = parser._get_positional_actions()
        if not positionals or isinstance(positionals[0], argparse._SubParsersAction):
            return None
        if self.after_dashes is not None:
            return positionals[0]
        return positionals[0] if not _unfinished_options(parser) and not prefix.startswith("-") else None

    def _options_if_nothing_else(self, parser: argparse.ArgumentParser) -> list[str]:
        """The long options of a command without operands, unless the last option waits for its value."""
        if parser._get_positional_actions() or _unfinished_options(parser):
            return []
        return [word for action in parser._actions for word in action.option_strings if word.startswith("--")]

    def quote_completions(
        self, completions: list[str], cword_prequote: str, last_wordbreak_pos: int | None
    ) -> list[str]:
        """Candidates as the shell needs them typed."""
        if os.environ.get("_ARGCOMPLETE_SHELL") != "bash":
            quoted: list[str] = super().quote_completions(completions, cword_prequote, last_wordbreak_pos)
            return quoted
        if not cword_prequote:
            return self._unquoted_for_bash(completions, last_wordbreak_pos)
        if cword_prequote == '"':
            # Within double quotes history expansion takes "!", and a backslash before it would stay: leave the quotes.
            parts = [[_escaped(part, '\\"`$') for part in word.split("!")] for word in completions]
            quoted = ["\"'!'\"".join(part) for part in parts]
        else:
            quoted = [word.replace("'", r"'\''") for word in completions]
        # readline closes the quotes, but not after a word that seems to have closed them.
        return [word + cword_prequote if word.endswith(cword_prequote) else word for word in quoted]

    def _unquoted_for_bash(self, completions: list[str], last_wordbreak_pos: int | None) -> list[str]:
        # bash replaces what follows the last of COMP_WORDBREAKS with the answer; from a "@" on it replaces the "@", too
        # (readline's rl_special_prefixes).
        start = 0 if last_wordbreak_pos is None else last_wordbreak_pos + 1
        if start and completions and completions[0][start - 1] == "@":
            start -= 1
        # A "~" is a home directory at the beginning of a word, and after each "=" and ":" of one.
        quoted = [_escaped(word[start:], "\\();<>|&!`$*?[]{}^~ \t\n\"'") for word in completions]
        # A leading "#" would begin a comment.
        quoted = ["\\" + word if word.startswith("#") else word for word in quoted]
        if self.append_space and len(quoted) == 1 and not quoted[0].endswith(("=", "/", ":")):
            quoted[0] += " "
        return quoted


def _unfinished_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options that still wait for a value, as argcomplete notes them on the parser."""
    actions: list[argparse.Action] = getattr(parser, "active_actions", [])
    return actions


def _escaped(text: str, special: str) -> str:
    return "".join("\\" + character if character in special else character for character in text)
