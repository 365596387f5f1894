"""``kv rollback``: give keys their earlier values again, in a new commit."""

from kv.cli.context import Context, checked_keys, history_point
from kv.cli.escape import show
from kv.cli.failures import UsageError
from kv.cli.numbers import plural
from kv.cli.parser import CommonOptions, Parser, set_completer
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.blocking.client import Client

USAGE = "kv rollback [OPTION]... --to VERSION|TIME KEY..."
EXAMPLES = """
kv rollback -n --to 10m cake        what would be done?
kv rollback --to 10m cake horns     as they were ten minutes ago, both or neither
kv rollback --to 1233 cake          as it was at version 1233
"""
DETAILS = """
A key that did not exist then is deleted; one that has been deleted since comes back. Keys keep how long they have to
live. It is an ordinary commit: it shows in 'kv log', and can itself be undone. Should somebody change one of the keys
at the same moment, nothing is written and the exit code is 3. 'kv help times' explains what --to takes.
"""


class Options(CommonOptions):
    """The options of ``kv rollback``."""

    to: str | None = None
    dry_run: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv rollback``."""
    parser.operands("KEY", "which keys", "keys")
    set_completer(parser.add_argument("--to", metavar="VERSION|TIME", help="as they were then"), "points")
    parser.add_argument("-n", "--dry-run", action="store_true", help="show what would be done; change nothing")


def run(context: Context, options: Options) -> int:
    """Roll back, and print ``Keys rolled back``."""
    keys = list(dict.fromkeys(checked_keys(options.operands, "rollback")))
    point = history_point(options.to, "--to")
    if point is None:
        raise UsageError("to which version or time? write --to VERSION|TIME; 'kv history KEY' shows the versions")
    with context.connect() as client:
        to = point.version(client)
        writes = changes(client, client.plan_rollback(*keys, to=to))
        if not writes:
            context.print(f"Nothing to change: already as at version {to}")
            return exits.OK
        if options.dry_run:
            print_plan(context, writes)
            return exits.OK
        version = client.rollback(*keys, to=to)
    context.print("Keys rolled back")
    context.note(f"{plural(len(writes), 'key')} to version {to}, version {version}")
    return exits.OK


def changes(client: "Client", writes: dict[str, bytes | None]) -> dict[str, bytes | None]:
    """Return those of the planned ``writes`` that change a value."""
    current = client.get_many(writes)
    return {key: value for key, value in writes.items() if value != current[key]}


def print_plan(context: Context, writes: dict[str, bytes | None]) -> None:
    """Print what would be written, a line for each key."""
    for key, value in writes.items():
        context.print(f"would delete {show(key)}" if value is None else f"would set {show(key)}: {show(value)}")
