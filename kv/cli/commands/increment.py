"""``kv incr``: add to a number. The daemon adds, so clients that do it at the same time do not conflict."""

from kv.cli.context import Context, checked_key
from kv.cli.escape import show
from kv.cli.failures import CommandFailed, UsageError
from kv.cli.parser import Parser
from kv.cli.writing import WriteOptions, add_lifetime, add_sync
from kvd.protocol import exits
from kvd.protocol.numbers import decimal, is_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.blocking.client import Client

USAGE = "kv incr [OPTION]... KEY [NUMBER]"
EXAMPLES = """
kv incr visits                      prints the new value
kv incr visits 10                   adds ten
kv incr stock -1                    takes one away
kv incr --ttl 1m --keep-ttl calls   a new counter each minute
"""
DETAILS = """
A key that does not exist counts as 0. The value is kept as decimal text of 64 bits with a sign; what is no such
number is refused. Unlike with 'kv set' the key keeps its end of life, unless --ttl is given without --keep-ttl.
Increments never conflict.
"""


class Options(WriteOptions):
    """The options of ``kv incr``."""

    json: bool = False
    dry_run: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv incr``."""
    parser.takes_numbers = True
    parser.operands("KEY", "the number's key, and how much to add (default: 1)", "keys")
    add_lifetime(parser)
    add_sync(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object of the key and the new number")
    parser.add_argument("-n", "--dry-run", action="store_true", help="show what would be set; set nothing")


def run(context: Context, options: Options) -> int:
    """Add, and print the new number."""
    operands = options.operands
    if not 1 <= len(operands) <= 2:
        raise UsageError("give a key, and at most one number; write 'kv incr KEY [NUMBER]'")
    key = checked_key(operands[0])
    by = increment_of(operands[1]) if len(operands) == 2 else 1
    with context.connect() as client:
        if options.dry_run:
            context.print(f"would set {show(key)}: {_rehearsed(client, key, by)}")
            return exits.OK
        number = client.increment(key, by, ttl=options.ttl_s, keep_ttl=options.keep_ttl, sync=options.sync)
    if options.json:
        context.print_json({key: number})
    else:
        context.print(str(number))
    return exits.OK


def increment_of(text: str) -> int:
    """Return how much to add. Raises UsageError."""
    number = decimal(text.encode("ascii", "replace"))
    if number is None or not is_number(number):
        raise UsageError(f"what is added is a whole number of 64 bits, not {text!r}")
    return number


def _rehearsed(client: "Client", key: str, by: int) -> int:
    number = number_in(client.get(key))
    if number is None or not is_number(number + by):
        raise CommandFailed(
            f"{key} is not a decimal number of 64 bits, or would not stay one; nothing would be changed"
        )
    return number + by


def number_in(value: bytes | None) -> int | None:
    """Return the number in ``value``; 0 without a value, None if the daemon would refuse to add to it."""
    if value is None:
        return 0
    number = decimal(value)
    return number if number is not None and is_number(number) else None
