"""The texts of ``kv help``, ``-h`` and a bare ``kv``, which begin with examples."""

from kv.cli.parser import build_parser
from kv.cli.points import HELP as TIMES
from kv.cli.registry import COMMANDS, Command, find_or_suggest
from kvd.protocol import exits

_OVERVIEW = """\
kv: keys and values, kept by a daemon on this host.

  kv serve --daemon                  start your daemon
  kv set cake=🎂 smiley=😁           set keys
  kv get cake smiley                 read them
  kv ls                              list all keys
  kv del smiley                      delete
  kv watch                           see changes as they happen
  kv shutdown                        stop the daemon

{commands}

'kv help COMMAND' explains one of them, 'kv help exit-codes' what a script gets back, 'kv help times' what is a VERSION
or a TIME. Options such as -s/--socket ADDRESS, --timeout SECONDS, -q and -v may stand before or behind the command."""

_SECTIONS = {
    "Keys": ("set", "get", "del", "ls", "incr", "ttl", "touch", "txn"),
    "Working together": ("watch", "wait", "lock"),
    "Looking back": ("history", "log", "diff", "rollback", "revert"),
    "Data on the disk": ("checkpoint", "backup", "restore", "check", "export", "import"),
    "The daemon": (
        "serve",
        "status",
        "metrics",
        "ping",
        "bench",
        "slowlog",
        "top-keys",
        "access",
        "reload",
        "shutdown",
    ),
    "This command": ("help", "completion", "version"),
}

TOPICS = ("exit-codes", "times")


def explain(topic: str) -> str:
    """Return the help on a command or a topic; for the empty topic, the overview. Raises UsageError."""
    if not topic:
        return overview()
    if topic == "exit-codes":
        return exit_codes()
    if topic == "times":
        return TIMES
    command = find_or_suggest(topic)
    module = command.load()
    also = f" Also: {', '.join(f'kv {alias}' for alias in command.aliases)}." if command.aliases else ""
    examples = "\n".join(f"  {line}" for line in module.EXAMPLES.strip().splitlines())
    parser = build_parser(command, describe=True)
    return f"{command.summary}{also}\n\n{examples}\n\n{parser.format_help()}\n{module.DETAILS.strip()}".rstrip()


def overview() -> str:
    """Return the short help of a bare ``kv``."""
    commands = {command.name: command for command in COMMANDS}
    sections = (_section(heading, [commands[name] for name in names]) for heading, names in _SECTIONS.items())
    return _OVERVIEW.format(commands="\n".join(sections))


def _section(heading: str, commands: list[Command]) -> str:
    lines = (f"  {', '.join((command.name, *command.aliases)):<12} {command.summary}" for command in commands)
    return "\n".join((f"{heading}:", *lines))


def exit_codes() -> str:
    """Return the help on exit codes, a line each."""
    lines = (f"  {code:>3}  {meaning}" for code, meaning in exits.MEANINGS.items())
    return "Exit codes, the same for all commands:\n\n" + "\n".join(lines)
