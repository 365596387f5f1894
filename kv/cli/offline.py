"""What ``kv check`` and ``kv restore`` share: they run the daemon's code on a data directory that no daemon uses."""

from kv.cli.context import Context
from kv.cli.failures import CommandFailed
from kv.cli.input import open_input
from kv.cli.numbers import plural
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, BinaryIO, TypeVar

    from kvd.service.offline import DataSummary

    Progress = Callable[[int, int], None]
    Result = TypeVar("Result")


def offline(context: Context, label: str, work: "Callable[[Any, Progress], Result]") -> "Result":
    """Return ``work(kvd.service.offline, progress)``, with a bar on a terminal. Raises CommandFailed."""
    try:
        from kvd.service import offline as module
        from kvd.service.errors import StartError
    except ImportError as error:
        raise CommandFailed(f"the daemon is not installed completely: {error}", exits.INTERNAL) from None
    with context.progress("B", label) as bar:
        try:
            return work(module, bar.update)
        except StartError as error:
            raise CommandFailed(error.text, error.exit_code) from None


def open_backup(path: str) -> "BinaryIO":
    """Open a backup; "-" is standard input. Raises CommandFailed, and its reads too."""
    return open_input(path, exits.IO_ERROR)


def print_result(context: Context, verb: str, result: "DataSummary", *, json: bool) -> None:
    """Print the version of the directory that was made or checked, and what is lost."""
    from kv.cli.times import show_time, time_json

    if json:
        context.print_json(
            {"version": result.version, "time": time_json(result.time or None), "lost_versions": result.lost}
        )
        return
    keys = "" if result.keys is None else f", {plural(result.keys, 'key')}"
    context.print(f"{verb}: version {result.version}{_of(show_time(result.time)) if result.time else ''}{keys}")
    if result.lost:
        context.print(f"Lost: versions {result.version + 1} to {result.version + result.lost}")


def _of(time: str) -> str:
    return f" of {time}"
