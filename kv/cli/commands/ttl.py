"""``kv ttl``: print how long keys still live."""

from kv.cli.context import Context, checked_keys
from kv.cli.escape import show
from kv.cli.parser import CommonOptions, Parser
from kvd.protocol import exits

USAGE = "kv ttl [OPTION]... KEY..."
EXAMPLES = """
kv ttl session                      session: 9m59s
kv ttl session cake                 also: cake: no expiry
kv ttl --json session cake          {"session": 599.87, "cake": -1}
"""
DETAILS = """
A key that is missing is named on standard error, the others are printed, and the exit code is 1. In JSON the numbers
are seconds, -1 for a key that lives without end. 'kv touch' and 'kv set --ttl' change how long a key lives.
"""


class Options(CommonOptions):
    """The options of ``kv ttl``."""

    json: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv ttl``."""
    parser.operands("KEY", "which keys", "keys")
    parser.add_argument("--json", action="store_true", help="one JSON object of keys and seconds; -1: without end")


def run(context: Context, options: Options) -> int:
    """Print the durations as ``key: 9m59s``."""
    keys = checked_keys(options.operands, "ttl")
    with context.connect() as client:
        seconds_left = dict(zip(keys, client.ttl(*keys), strict=True))
    present = {key: seconds for key, seconds in seconds_left.items() if seconds is not None}
    if options.json:
        context.print_json({key: -1 if seconds == float("inf") else seconds for key, seconds in present.items()})
    else:
        for key in keys:
            if key in present:
                context.print(f"{show(key)}: {_text(present[key])}")
    missing = [key for key, seconds in seconds_left.items() if seconds is None]
    context.warn_missing(missing)
    return exits.NOT_FOUND if missing else exits.OK


def _text(seconds: float) -> str:
    from kv.cli.durations import show_duration

    return "no expiry" if seconds == float("inf") else show_duration(seconds)
