"""Commands that run the daemon's own code on a data directory that no daemon uses: check and restore."""

from kv.cli.context import Context
from kv.cli.failures import CommandFailed
from kv.cli.numbers import plural
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from kvd.service.offline import DataSummary

    Progress = Callable[[int, int], None]
    Result = TypeVar("Result")


def offline(context: Context, label: str, work: "Callable[[Any, Progress], Result]") -> "Result":
    """``work(kvd.service.offline, progress)`` with a bar on a terminal. Raises CommandFailed."""
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


def tell_made(context: Context, word: str, made: "DataSummary", *, json: bool) -> None:
    """Say with which version a directory was made, and what was lost."""
    from kv.cli.times import show_time, time_json

    if json:
        shown = {"version": made.version, "time": time_json(made.time or None), "lost_versions": made.lost}
        context.print_json(shown)
        return
    keys = "" if made.keys is None else f", {plural(made.keys, 'key')}"
    context.print(f"{word}: version {made.version}{_of(show_time(made.time)) if made.time else ''}{keys}")
    if made.lost:
        context.print(f"Lost: versions {made.version + 1} to {made.version + made.lost}")


def _of(time: str) -> str:
    return f" of {time}"
