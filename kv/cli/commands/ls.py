"""``kv ls``: keys in order, a page at a time."""

from kv.cli import exits
from kv.cli.context import Context, checked_key
from kv.cli.escape import show
from kv.cli.failures import UsageError
from kv.cli.parser import Parser, completed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.wire.operations import Item

USAGE = "kv ls [OPTION]... [PREFIX]"
EXAMPLES = """
kv ls                               all keys
kv ls user/                         those that begin with user/
kv ls --long                        with the size of each value and its version
kv ls --at 10:00                    those that were there at ten o'clock
kv ls -0 tmp/ | xargs -0 kv del     for other programs
"""
DETAILS = """
Keys come in the order of their bytes. With --long, bytes of the value and version stand before the key. With --json
each line is an object: {"key": ...}, with --long also "size" and "version". No key is no error. 'kv help times'
explains what --at takes.
"""


def arguments(parser: Parser) -> None:
    """The options of ``kv ls``."""
    parser.operands("PREFIX", "only keys that begin with it", "prefixes")
    parser.add_argument("-l", "--long", action="store_true", help="also the size of the value in bytes and its version")
    completed(parser.add_argument("--at", metavar="VERSION|TIME", help="list what was there then"), "points")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line")
    form.add_argument("-0", "--null", action="store_true", help="end each line with a NUL byte and escape nothing")


def run(context: Context) -> int:
    """Print the keys."""
    if len(context.options.operands) > 1:
        raise UsageError(f"one prefix at a time: {context.options.operands[1]!r} is too many")
    prefix = "".join(checked_key(operand) for operand in context.options.operands if operand)
    long = getattr(context.options, "long", False)
    point = context.point("at")
    with context.connect() as client:
        at = None if point is None else point.version(client)
        for item in client.scan(prefix, at=at, keys_only=not long):
            _print(context, item, long)
    return exits.OK


def _print(context: Context, item: "Item", long: bool) -> None:
    size = len(item.value or b"")
    if context.options.json:
        extra = {"size": size, "version": item.version} if long else {}
        context.print_json({"key": item.key, **extra})
        return
    raw = getattr(context.options, "null", False)
    columns = f"{size:>8} {item.version:>8}  " if long else ""
    context.output.line(columns + (item.key if raw else show(item.key)), end="\0" if raw else "\n")
