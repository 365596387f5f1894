"""``kv diff``: which keys differ between two versions, and how."""

from kv.cli.context import Context
from kv.cli.escape import show
from kv.cli.failures import UsageError
from kv.cli.parser import CommonOptions, Parser
from kv.cli.points import HistoryPoint
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kv.blocking.client import Client

USAGE = "kv diff [OPTION]... FROM [TO]"
EXAMPLES = """
kv diff 10m                         what has changed in the last ten minutes
kv diff 1233 1234                   what commit 1234 did
kv diff 10:00 11:00                 between ten and eleven o'clock
kv diff --json 1200 now             one JSON object a line
"""
DETAILS = """
FROM and TO are versions or times ('kv help times'); TO is now unless given. Lines that begin with - are what there was,
lines that begin with + what there is; a key whose value has changed has both. Keys come in the order of their bytes.
In JSON "old" and "new" are null where there is nothing. The exit code does not tell whether there is a difference.
"""
_STEP_KEYS = 1_000


class Options(CommonOptions):
    """The options of ``kv diff``."""

    json: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv diff``."""
    parser.operands("FROM [TO]", "versions or times", "points")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(context: Context, options: Options) -> int:
    """Print the differences."""
    operands = options.operands
    if not 1 <= len(operands) <= 2:
        raise UsageError("give one or two versions or times; write 'kv diff FROM [TO]'")
    points = [HistoryPoint(text, "what is compared") for text in (*operands, "now")[:2]]
    with context.connect() as client:
        old, new = (point.version(client) for point in points)
        for key, before, after in differences(client, old, new):
            _print(context, key, before, after, json=options.json)
    return exits.OK


def differences(client: "Client", old: int, new: int) -> "Iterator[tuple[str, bytes | None, bytes | None]]":
    """Yield the keys whose values differ, in order, with both values.

    Raises SnapshotGone if the history does not reach back to both versions.
    """
    # Only keys that were written in between can differ.
    keys: set[str] = set()
    low, high = sorted((old, new))
    client.get_many([], at=high)
    for commit in client.log(low):
        if commit.version > high:
            break
        keys.update(commit.keys)
    ordered = sorted(keys)
    for start in range(0, len(ordered), _STEP_KEYS):
        step = ordered[start : start + _STEP_KEYS]
        before, after = client.get_many(step, at=old), client.get_many(step, at=new)
        for key in step:
            if before[key] != after[key]:
                yield key, before[key], after[key]


def _print(context: Context, key: str, before: bytes | None, after: bytes | None, *, json: bool) -> None:
    if json:
        from kv.cli.jsontext import value_json

        old, new = (None if value is None else value_json(value) for value in (before, after))
        context.print_json({"key": key, "old": old, "new": new})
        return
    for sign, value in (("-", before), ("+", after)):
        if value is not None:
            context.print(f"{sign} {show(key)}: {show(value)}")
