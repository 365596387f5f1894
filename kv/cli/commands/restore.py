"""``kv restore``: make a data directory from a backup, or from another data directory at an earlier point."""

from kv.cli.context import Context, history_point
from kv.cli.failures import UsageError
from kv.cli.offline import offline, open_backup, print_result
from kv.cli.parser import CommonOptions, Parser, set_completer
from kvd.protocol import exits

USAGE = "kv restore [OPTION]... SOURCE DIR"
EXAMPLES = """
kv restore kvd.backup ~/kvd                     a data directory out of a backup
gunzip < kvd.backup.gz | kv restore - ~/kvd     out of standard input
kv restore --to 10m ~/kvd ~/kvd.before          as a data directory was ten minutes before now
kv restore --to 1233 ~/kvd ~/kvd.before         as it was at version 1233
kv serve --data-dir ~/kvd                       and start a daemon on it
"""
DETAILS = """
DIR has to be empty or missing. SOURCE is only read; if it is a data directory, no daemon may be using it. --to needs a
data directory, and reaches back as far as its log does: history, and which transactions have committed, come along.
What is restored is a store of its own: programs that have watched the old one are told everything anew. If it is
interrupted, no daemon starts on DIR, and it can be done again. Keys that lived with a connection have ended. DIR will
belong to whoever runs this, and a daemon only uses a directory of its own user (systemd sees to that for its own).
'kv help times' explains what --to takes.
"""


class Options(CommonOptions):
    """The options of ``kv restore``."""

    to: str | None = None
    json: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv restore``."""
    parser.operands("SOURCE DIR", "a backup, a data directory, or '-'; and the directory to be made", "files")
    set_completer(
        parser.add_argument("--to", metavar="VERSION|TIME", help="as a data directory was then (default: at its end)"),
        "nothing",
    )
    parser.add_argument("--json", action="store_true", help="print version and time as JSON")


def run(context: Context, options: Options) -> int:
    """Restore, and print ``Restored: version 123 of 2026-11-23 10:00:00``."""
    operands = options.operands
    if len(operands) != 2:
        raise UsageError("write 'kv restore SOURCE DIR': what to restore, and the directory to be made of it")
    source, directory = operands
    point = history_point(options.to, "--to")
    version, time_us = (None, None) if point is None else point.version_or_time_us
    result = offline(
        context,
        "restoring",
        lambda kvd, progress: kvd.restore(source, directory, version, time_us, open_backup, progress),
    )
    print_result(context, "Restored", result, json=options.json)
    return exits.OK
