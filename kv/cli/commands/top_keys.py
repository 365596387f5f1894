"""``kv top-keys``: print the largest keys, or those read or written most often."""

from kv.cli.commands.history import add_limit
from kv.cli.context import Context
from kv.cli.escape import show
from kv.cli.parser import CommonOptions, Parser
from kvd.protocol import exits

_DEFAULT_LIMIT = 10
_ORDERS = ("size", "reads", "writes")

USAGE = "kv top-keys [OPTION]..."
EXAMPLES = """
kv top-keys                         the ten keys with the largest values, and their bytes
kv top-keys --by reads              those that were read most in the last minute or two, and about how often
kv top-keys --by writes --limit 3   the three that were written most
kv top-keys --json --by reads       one JSON object
"""
DETAILS = """
The largest are found by a look at every key, in steps of a millisecond or two, between which the daemon serves others;
what changes meanwhile may be seen or not.

What is read and written most is estimated: of all frames, which is what a client sends at once, about one in 61 is
looked at, and chance decides which. So a number is good if it is in the thousands, and a key that was read a few times
may be missing. Reads that near caches answer do not reach the daemon, and pages of 'kv ls' are not counted. For
administrators only.
"""


class Options(CommonOptions):
    """The options of ``kv top-keys``."""

    by: str = "size"
    limit: int | None = None
    json: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv top-keys``."""
    parser.add_argument("--by", choices=_ORDERS, help="size (the default), reads or writes")
    add_limit(parser, "so many keys at most, up to 1000 (default: 10)")
    parser.add_argument("--json", action="store_true", help="one JSON object of keys and numbers, the greatest first")


def run(context: Context, options: Options) -> int:
    """Print the keys as ``key: number``."""
    limit = options.limit or _DEFAULT_LIMIT
    with context.connect() as client:
        if options.by == "size":
            numbers = client.largest_keys(limit=limit)
        else:
            hottest = client.hottest_keys(options.by, limit=limit)
            numbers = hottest.operations
            context.note(f"{options.by} of the last {hottest.seconds:.0f} s, estimated")
    if options.json:
        context.print_json(numbers)
        return exits.OK
    for key, number in numbers.items():
        context.print(f"{show(key)}: {number}")
    return exits.OK
