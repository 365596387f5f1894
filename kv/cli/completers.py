"""The words that TAB offers for each kind of operand and option value: keys, versions, durations, files and others.

The kinds have names, which the commands give to their options and operands with ``set_completer``.
"""

import argparse
import os
import stat

from kv.cli.escape import show
from kv.cli.parser import CommonOptions
from kv.cli.registry import COMMANDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Complete = Callable[[str, "LineOptions"], list[str] | dict[str, str]]

_COMMITS_OFFERED = 20


class LineOptions(CommonOptions):
    """The options on the line so far that decide what is offered, of whichever command it is."""

    user: str | None = None
    raw_values: bool = False


class Completer:
    """What argcomplete calls for one option or operand."""

    def __init__(self, action: argparse.Action, *, literal: bool = False) -> None:
        choices = _choices(*action.choices) if action.choices else None
        self._complete = choices or _COMPLETERS[getattr(action, "completes", "nothing")]
        self._dashes = literal or bool(action.option_strings)

    def __call__(self, *, prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str] | dict[str, str]:
        options = LineOptions()
        vars(options).update(vars(parsed_args))
        words = self._complete(prefix, options)
        # An operand that begins with "-" can only stand after "--".
        if self._dashes or isinstance(words, dict):
            return words
        return [word for word in words if not word.startswith("-")]


def _nothing(prefix: str, options: LineOptions) -> list[str]:
    return []


def _keys(prefix: str, options: LineOptions) -> list[str]:
    from kv.cli.live_keys import live_keys

    keys = live_keys(prefix, options.socket, options.token_file)
    # A key with a newline or an escape in it cannot be typed, nor be shown in a list.
    return [key for key in keys if show(key) == key]


def _user_then_key(prefix: str, options: LineOptions) -> list[str]:
    """For ``kv access``: the users of this host, then keys."""
    if options.user is not None:
        return _keys(prefix, options)
    import pwd

    return sorted(user.pw_name for user in pwd.getpwall() if user.pw_name.startswith(prefix))


def _pairs(prefix: str, options: LineOptions) -> list[str]:
    """For ``kv set``: keys with their ``=``, then files after ``=@``."""
    key, equals, value = prefix.partition("=")
    if not equals:
        # The first "=" ends the key, so a key that has one cannot be written like this.
        return [f"{key}=" for key in _keys(prefix, options) if "=" not in key]
    if value.startswith("@") and not options.raw_values:
        return [f"{key}=@{path}" for path in file_names(value[1:])]
    return []


def _locks(prefix: str, options: LineOptions) -> list[str]:
    """The names of locks that a client holds or waits for."""
    return list(dict.fromkeys(key.split("/")[1] for key in _keys(f"lock/{prefix}", options) if key.count("/") > 1))


def _points(prefix: str, options: LineOptions) -> dict[str, str]:
    """For VERSION|TIME: versions, and "now"."""
    now = {"now": "the current version"} if prefix and "now".startswith(prefix) else {}
    return {**_versions(prefix, options), **now}


def _versions(prefix: str, options: LineOptions) -> dict[str, str]:
    """The last few versions, newest first, each with what its commit did."""
    from kv.cli.commands.log import keys_text
    from kv.cli.live_keys import live_commits
    from kv.cli.times import show_time

    commits = live_commits(_COMMITS_OFFERED, options.socket, options.token_file)
    versions = {
        str(commit.version): f"{show_time(commit.time)[11:19]}  {keys_text(commit.keys, 2)}" for commit in commits
    }
    return {version: text for version, text in versions.items() if version.startswith(prefix)}


def _durations(prefix: str, options: LineOptions) -> list[str]:
    """Some usual ones; or the number that is there, with each unit."""
    from kv.cli.durations import UNITS

    if prefix[-1:].isdigit():
        return [prefix + unit for unit in UNITS]
    return [duration for duration in ("30s", "5m", "1h", "1d", "7d") if duration.startswith(prefix)]


def program_names(prefix: str) -> list[str]:
    """The programs in the PATH; files if ``prefix`` is a path."""
    if "/" in prefix:
        return file_names(prefix)
    programs: set[str] = set()
    for folder in os.get_exec_path():
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        programs.update(name for name in names if name.startswith(prefix) and name.isprintable())
    return sorted(programs) if prefix else []


def file_names(prefix: str) -> list[str]:
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


def _files(prefix: str, options: LineOptions) -> list[str]:
    return file_names(prefix)


def _log_targets(prefix: str, options: LineOptions) -> list[str]:
    return [word for word in ("auto", "stderr", "syslog") if word.startswith(prefix)] + file_names(prefix)


def _shells(prefix: str, options: LineOptions) -> list[str]:
    from kv.cli.shells import SHELLS

    return [shell for shell in SHELLS if shell.startswith(prefix)]


def _topics(prefix: str, options: LineOptions) -> list[str]:
    from kv.cli.helptext import TOPICS

    names = [command.name for command in COMMANDS] + list(TOPICS)
    return [name for name in names if name.startswith(prefix)]


def _choices(*words: str) -> "Complete":
    return lambda prefix, _: [word for word in words if word.startswith(prefix)]


_COMPLETERS: "dict[str, Complete]" = {
    "nothing": _nothing,
    "keys": _keys,
    "prefixes": _keys,
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
    "log-targets": _log_targets,
}
