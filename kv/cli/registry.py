"""All commands: names, aliases, and the module of each, which is imported only when its command runs."""

from kv.cli.failures import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType


class Command:
    """One command: its name, its aliases, the module that runs it, and a summary of one sentence."""

    __slots__ = ("aliases", "module_name", "name", "summary")

    def __init__(self, name: str, aliases: tuple[str, ...], module_name: str, summary: str) -> None:
        self.name = name
        self.aliases = aliases
        self.module_name = module_name
        self.summary = summary

    def load(self) -> "ModuleType":
        """Import the module of the command, and return it."""
        qualified = f"kv.cli.commands.{self.module_name}"
        __import__(qualified)
        import sys

        return sys.modules[qualified]


COMMANDS = (
    Command("set", ("s",), "set", "Set keys to values, all or none."),
    Command("get", ("g",), "get", "Print the values of keys."),
    Command("del", ("delete",), "delete", "Delete keys, all or none."),
    Command("ls", (), "ls", "List keys in order."),
    Command("incr", (), "increment", "Add to a number."),
    Command("ttl", (), "ttl", "Print how long keys have still to live."),
    Command("touch", (), "touch", "Change how long keys have still to live."),
    Command("txn", (), "txn", "Check, read and write keys, all in one atomic transaction."),
    Command("watch", (), "watch", "Print changes as they happen, or run a command for each."),
    Command("wait", (), "wait", "Wait until a key exists, has a value, or is gone."),
    Command("lock", (), "lock", "Run a command while holding a lock."),
    Command("history", (), "history", "Print the versions of a key."),
    Command("log", (), "log", "Print the commits."),
    Command("diff", (), "diff", "Print what changed between two versions."),
    Command("rollback", (), "rollback", "Make keys what they were."),
    Command("revert", (), "revert", "Undo one commit."),
    Command("checkpoint", (), "checkpoint", "Have the daemon write its values to one file now."),
    Command("backup", (), "backup", "Write everything to one file, while the daemon serves on."),
    Command("restore", (), "restore", "Make a data directory out of a backup, or of an earlier point."),
    Command("export", (), "export", "Print all keys as lines of JSON, sorted, of one instant."),
    Command("import", (), "importing", "Set keys out of lines of JSON, in one commit."),
    Command("check", (), "check", "Look for damage in a data directory or a backup, and save what can be saved."),
    Command("bench", (), "bench", "Measure how much the daemon does, and how quickly it answers."),
    Command("metrics", ("m",), "metrics", "Print how much is stored and how often it was used."),
    Command("ping", (), "ping", "Ask whether the daemon answers."),
    Command("status", (), "status", "Print what the daemon says about itself."),
    Command("serve", ("srv",), "serve", "Run the daemon."),
    Command("access", (), "access", "Explain what somebody may do with a key."),
    Command("slowlog", (), "slowlog", "Print what held the daemon for long."),
    Command("top-keys", (), "top_keys", "Print the largest keys, or those read or written most."),
    Command("reload", (), "reload", "Make the daemon read its configuration again."),
    Command("shutdown", (), "shutdown", "Stop the daemon and wait until it is gone."),
    Command("version", (), "version", "Print the version."),
    Command("completion", (), "completion", "Print the completion script of a shell."),
    Command("help", (), "help", "Explain a command, the exit codes, or versions and times."),
)


def find(name: str) -> Command | None:
    """Return the command with the name or alias ``name``, if there is one."""
    for command in COMMANDS:
        if name == command.name or name in command.aliases:
            return command
    return None


def find_or_suggest(name: str) -> Command:
    """Return the command with the name or alias ``name``. Raises UsageError, which suggests the nearest name."""
    command = find(name)
    if command is not None:
        return command
    from difflib import get_close_matches

    near = get_close_matches(name, [word for command in COMMANDS for word in (command.name, *command.aliases)], 1, 0.5)
    hint = f"did you mean {near[0]!r}?" if near else "'kv help' lists the commands"
    raise UsageError(f"no such command: {name}; {hint}")
