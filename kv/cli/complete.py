"""TAB: what the shell may put at the cursor. The shell's script runs ``kv`` with _ARGCOMPLETE in the environment.

argcomplete splits the line, replays the parser and asks the completers below; only the parser of the command on the
line is filled in. Answers go to descriptor 8; nothing else is ever printed.
"""

import argparse
import os
import stat

from argcomplete.completers import SuppressCompleter
from argcomplete.exceptions import ArgcompleteException
from argcomplete.finders import CompletionFinder
from argcomplete.lexers import split_line

from kv.cli.escape import show
from kv.cli.failures import UsageError
from kv.cli.parser import Parser, add_common, fill, split_command
from kv.cli.registry import COMMANDS, find

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def complete() -> int:
    """Answer the shell. Normally does not return: argcomplete leaves with os._exit."""
    try:
        words = _words()
        finder = Finder()
        finder.behind = words[words.index("--") + 1 :] if "--" in words[1:] else None
        finder(top_parser(words[1:]), always_complete_options=False, default_completer=SuppressCompleter())
    except (ArgcompleteException, KeyError, ValueError, OSError, UsageError):
        pass  # not called by a shell's script, or a line that nobody could complete
    return 1


def _words() -> list[str]:
    """The words before the one at the cursor."""
    words: list[str] = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))[3]
    return words[int(os.environ["_ARGCOMPLETE"]) - 1 :]


def top_parser(words: list[str]) -> argparse.ArgumentParser:
    """All commands by name, and the options and operands of the one in ``words``."""
    chosen = find(split_command(words)[1] or "")
    parser = Parser("kv")
    add_common(parser)
    commands = parser.add_subparsers(prog="kv", parser_class=Parser)
    for command in COMMANDS:
        empty = commands.add_parser(command.name, aliases=command.aliases, help=command.summary, describe=True)
        if command is chosen:
            fill(empty, command)
    return parser


class Finder(CompletionFinder):
    """argcomplete's finder with our operands, our completers, and the faults of its quoting for bash mended."""

    # The words between "--" and the cursor: every word there is an operand, or one of a command to run.
    behind: list[str] | None = None

    def collect_completions(
        self, active_parsers: list[argparse.ArgumentParser], parsed_args: argparse.Namespace, cword_prefix: str
    ) -> list[str]:
        """All candidates for the word at the cursor."""
        parser = active_parsers[-1]
        for active_parser in active_parsers:
            self._attach(active_parser)
        if self.behind is not None and getattr(parser, "takes_command", False):
            return _files(cword_prefix, parsed_args) if self.behind else _programs(cword_prefix)
        operands = self._open_operands(parser, cword_prefix)
        if operands is not None:
            completer = Completer(operands, literal=self.behind is not None)
            words = completer(prefix=cword_prefix, parsed_args=parsed_args)
            self._display_completions = words if isinstance(words, dict) else {}
            return list(words)
        found: list[str] = super().collect_completions(active_parsers, parsed_args, cword_prefix)
        if not found and not cword_prefix:
            return self._options_if_nothing_else(parser)
        # Two names for one thing are noise in a list, so an alias is offered only where it is all there is.
        return [word for word in found if word not in _ALIASES] or found

    def _attach(self, parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                action.completer = Completer(action)  # type: ignore[attr-defined]

    def _open_operands(self, parser: argparse.ArgumentParser, prefix: str) -> argparse.Action | None:
        """The operands, where argparse would not see that they go on: behind an option, or behind ``--``."""
        positionals = parser._get_positional_actions()
        if not positionals or isinstance(positionals[0], argparse._SubParsersAction):
            return None
        if self.behind is not None:
            return positionals[0]
        waiting = getattr(parser, "active_actions", [])
        return positionals[0] if not waiting and not prefix.startswith("-") else None

    def _options_if_nothing_else(self, parser: argparse.ArgumentParser) -> list[str]:
        """The long options of a command without operands, unless the last option waits for its value."""
        if parser._get_positional_actions() or getattr(parser, "active_actions", []):
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
        # readline closes the quotes, but not behind a word that seems to have closed them.
        return [word + cword_prequote if word.endswith(cword_prequote) else word for word in quoted]

    def _unquoted_for_bash(self, completions: list[str], last_wordbreak_pos: int | None) -> list[str]:
        # bash puts the answer in place of what is behind the last of COMP_WORDBREAKS; of "@", from it on (readline's
        # rl_special_prefixes).
        start = 0 if last_wordbreak_pos is None else last_wordbreak_pos + 1
        if start and completions and completions[0][start - 1] == "@":
            start -= 1
        quoted = [_escaped(word[start:], "\\();<>|&!`$*?[]{}^ \t\n\"'") for word in completions]
        # A leading "#" would begin a comment, a leading "~" be a home directory.
        quoted = ["\\" + word if word[:1] in ("#", "~") else word for word in quoted]
        if self.append_space and len(quoted) == 1 and not quoted[0].endswith(("=", "/", ":")):
            quoted[0] += " "
        return quoted


def _escaped(text: str, special: str) -> str:
    return "".join("\\" + character if character in special else character for character in text)


_ALIASES = frozenset(alias for command in COMMANDS for alias in command.aliases)


class Completer:
    """What argcomplete calls for one option or operand."""

    def __init__(self, action: argparse.Action, *, literal: bool = False) -> None:
        choices = _choices(*action.choices) if action.choices else None
        self._complete = choices or _COMPLETERS[getattr(action, "completes", "nothing")]
        self._dashes = literal or bool(action.option_strings)

    def __call__(self, *, prefix: str, parsed_args: argparse.Namespace, **_: object) -> "list[str] | dict[str, str]":
        found = self._complete(prefix, parsed_args)
        # An operand that begins with "-" can only stand behind "--".
        if self._dashes or isinstance(found, dict):
            return found
        return [word for word in found if not word.startswith("-")]


def _nothing(prefix: str, options: argparse.Namespace) -> list[str]:
    return []


def _keys(prefix: str, options: argparse.Namespace) -> list[str]:
    from kv.cli.live_keys import live_keys

    keys = live_keys(prefix, getattr(options, "socket", None), getattr(options, "token_file", None))
    # A key with a newline or an escape in it cannot be typed, nor be shown in a list.
    return [key for key in keys if show(key) == key]


def _prefixes(prefix: str, options: argparse.Namespace) -> list[str]:
    return _keys(prefix, options)


def _user_then_key(prefix: str, options: argparse.Namespace) -> list[str]:
    """For ``kv access``: the users of this host, then keys."""
    if getattr(options, "user", None) is not None:
        return _keys(prefix, options)
    import pwd

    return sorted(user.pw_name for user in pwd.getpwall() if user.pw_name.startswith(prefix))


def _pairs(prefix: str, options: argparse.Namespace) -> list[str]:
    """For ``kv set``: keys with their ``=``, then files behind ``=@``."""
    key, equals, value = prefix.partition("=")
    if not equals:
        # The first "=" ends the key, so one that has it cannot be written like this.
        return [f"{key}=" for key in _keys(prefix, options) if "=" not in key]
    if value.startswith("@") and not getattr(options, "raw_values", False):
        return [f"{key}=@{path}" for path in _files(value[1:], options)]
    return []


def _locks(prefix: str, options: argparse.Namespace) -> list[str]:
    """The names of locks that somebody has or waits for."""
    return list(dict.fromkeys(key.split("/")[1] for key in _keys(f"lock/{prefix}", options) if key.count("/") > 1))


def _points(prefix: str, options: argparse.Namespace) -> dict[str, str]:
    """For VERSION|TIME: versions, and "now"."""
    now = {"now": "the current version"} if prefix and "now".startswith(prefix) else {}
    return {**_versions(prefix, options), **now}


def _versions(prefix: str, options: argparse.Namespace) -> dict[str, str]:
    """The last few versions, newest first, each with what its commit did."""
    from kv.cli.commands.log import keys_text
    from kv.cli.live_keys import live_commits
    from kv.cli.times import show_time

    commits = live_commits(_COMMITS_OFFERED, getattr(options, "socket", None), getattr(options, "token_file", None))
    found = {str(commit.version): f"{show_time(commit.time)[-8:]}  {keys_text(commit.keys, 2)}" for commit in commits}
    return {version: text for version, text in found.items() if version.startswith(prefix)}


def _durations(prefix: str, options: argparse.Namespace) -> list[str]:
    """Some usual ones; or the number that is there, with each unit."""
    from kv.cli.durations import UNITS

    if prefix[-1:].isdigit():
        return [prefix + unit for unit in UNITS]
    return [duration for duration in ("30s", "5m", "1h", "1d", "7d") if duration.startswith(prefix)]


def _programs(prefix: str) -> list[str]:
    """What can be run: in the PATH, or files if a path is typed."""
    if "/" in prefix:
        return _files(prefix, argparse.Namespace())
    found: set[str] = set()
    for folder in os.get_exec_path():
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        found.update(name for name in names if name.startswith(prefix) and name.isprintable())
    return sorted(found) if prefix else []


def _files(prefix: str, options: argparse.Namespace) -> list[str]:
    """Files and directories; the latter end with a slash."""
    start = prefix.rpartition("/")[2]
    typed = prefix[: len(prefix) - len(start)]
    try:
        entries = sorted(os.scandir(os.path.expanduser(typed) or "."), key=lambda entry: entry.name)
    except OSError:
        return []
    hidden = start.startswith(".")
    return [
        typed + entry.name + ("/" if _is_folder(entry.path) else "")
        for entry in entries
        if entry.name.startswith(start) and (hidden or not entry.name.startswith(".")) and entry.name.isprintable()
    ]


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return False


def _shells(prefix: str, options: argparse.Namespace) -> list[str]:
    from kv.cli.shells import SHELLS

    return [shell for shell in SHELLS if shell.startswith(prefix)]


def _topics(prefix: str, options: argparse.Namespace) -> list[str]:
    from kv.cli.helptext import TOPICS

    names = [command.name for command in COMMANDS] + list(TOPICS)
    return [name for name in names if name.startswith(prefix)]


def _choices(*words: str) -> "Callable[[str, argparse.Namespace], list[str]]":
    return lambda prefix, _: [word for word in words if word.startswith(prefix)]


_COMMITS_OFFERED = 20
_COMPLETERS: "dict[str, Callable[[str, argparse.Namespace], list[str] | dict[str, str]]]" = {
    "nothing": _nothing,
    "keys": _keys,
    "prefixes": _prefixes,
    "user-then-key": _user_then_key,
    "pairs": _pairs,
    "points": _points,
    "versions": _versions,
    "durations": _durations,
    "locks": _locks,
    "files": _files,
    "shells": _shells,
    "topics": _topics,
    "distributions": _choices("uniform", "zipf"),
    "log-levels": _choices("debug", "info", "warning", "error"),
    "syncs": _choices("always", "interval", "never"),
    "log-targets": lambda prefix, options: (
        _choices("auto", "stderr", "syslog")(prefix, options) + _files(prefix, options)
    ),
}
