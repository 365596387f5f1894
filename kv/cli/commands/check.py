"""``kv check``: whether a data directory or a backup is sound, and what can be saved of a damaged one."""

import os

from kv.cli.context import Context
from kv.cli.failures import UsageError
from kv.cli.numbers import plural
from kv.cli.offline import offline, open_backup, print_result
from kv.cli.parser import CommonOptions, Parser
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvd.engine.examination import CheckReport
    from kvd.journal.recovery import Recovered

USAGE = "kv check [OPTION]... DIR|FILE\n       kv check [OPTION]... --salvage DIR NEWDIR"
EXAMPLES = """
kv check ~/kvd                      would a daemon start on it?
kv check kvd.backup                 is a backup whole?
kv check --salvage ~/kvd ~/saved    copy all that can be saved
"""
DETAILS = """
Nothing that is checked is written to, and no daemon may be using it. A damaged directory gives exit code 65; then what
is wrong is printed, and what a salvage would keep and lose: everything as it was at one version, the latest possible.
A torn tail is no damage: a crash leaves it, nobody was told of what stood there, and the next start leaves it out.
"""


class Options(CommonOptions):
    """The options of ``kv check``."""

    salvage: bool = False
    json: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv check``."""
    parser.operands("DIR", "a data directory or a backup, and for --salvage the directory to be made", "files")
    parser.add_argument("--salvage", action="store_true", help="copy what can be saved to NEWDIR, an empty directory")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def run(context: Context, options: Options) -> int:
    """Check, or salvage."""
    operands = options.operands
    if options.salvage:
        if len(operands) != 2:
            raise UsageError("write 'kv check --salvage DIR NEWDIR': what to save, and the directory to be made of it")
        result = offline(context, "saving", lambda kvd, progress: kvd.salvage(*operands, progress))
        print_result(context, "Saved", result, json=options.json)
        return exits.OK
    if len(operands) != 1:
        raise UsageError("check what? write 'kv check DIR'")
    check = _check_directory if os.path.isdir(operands[0]) else _check_backup
    return check(context, operands[0], json=options.json)


def _check_backup(context: Context, path: str, *, json: bool) -> int:
    result = offline(context, "checking", lambda kvd, progress: kvd.check_backup(path, open_backup, progress))
    print_result(context, "Sound backup", result, json=json)
    return exits.OK


def _check_directory(context: Context, directory: str, *, json: bool) -> int:
    report: CheckReport = offline(context, "checking", lambda kvd, progress: kvd.check(directory, progress))
    if json:
        context.print_json(_as_json(report))
    elif report.recovered is not None:
        _print_sound(context, report, report.recovered)
    else:
        _print_damaged(context, directory, report)
    return exits.DAMAGED_DATA if report.damages else exits.OK


def _print_sound(context: Context, report: "CheckReport", recovered: "Recovered") -> None:
    from kv.cli.times import show_time

    context.print(
        f"Sound: version {recovered.version} of {show_time(report.time or None)}, {plural(report.keys, 'key')}"
    )
    if recovered.torn is not None:
        torn = recovered.torn
        text = f"{torn.path} is torn at byte {torn.offset}: the next start leaves out {torn.bytes} bytes after version"
        context.print(f"{text} {torn.version}, which no reply has confirmed")
    elif not recovered.clean:
        context.print("The last daemon did not stop in order; nothing is missing")


def _print_damaged(context: Context, directory: str, report: "CheckReport") -> None:
    from kv.cli.times import show_time

    for damage in report.damages:
        context.print(f"Damaged: {damage.path} at byte {damage.offset}: {damage.reason}")
    if report.saved is None:
        context.print("Nothing can be saved")
        return
    saved = report.saved
    context.print(f"Can be saved: all as of version {saved.version} of {show_time(saved.time or None)}")
    if report.newest_known > saved.version:
        context.print(f"Would be lost: versions {saved.version + 1} to {report.newest_known}")
    else:
        context.print(f"Would be lost: only history, before version {saved.first}")
    context.print(f"To save it, write: kv check --salvage {directory} NEWDIR")


def _as_json(report: "CheckReport") -> dict[str, object]:
    from kv.cli.times import time_json

    recovered, saved = report.recovered, report.saved
    torn = None if recovered is None or recovered.torn is None else recovered.torn
    return {
        "sound": not report.damages,
        "version": None if recovered is None else recovered.version,
        "time": time_json(report.time or None),
        "keys": None if recovered is None else report.keys,
        "clean": recovered is not None and recovered.clean,
        "torn": None if torn is None else {"path": torn.path, "offset": torn.offset, "bytes": torn.bytes},
        "damages": [{"path": each.path, "offset": each.offset, "reason": each.reason} for each in report.damages],
        "salvage": None if saved is None else {
            "version": saved.version, "time": time_json(saved.time or None),
            "lost_versions": max(0, report.newest_known - saved.version),
        },
    }  # fmt: skip
