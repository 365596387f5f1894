"""``kv ls``: print keys in order, fetched a page at a time."""

from kv.cli.context import Context, checked_prefix, history_point
from kv.cli.escape import show
from kv.cli.parser import CommonOptions, Parser, set_completer
from kvd.protocol import exits

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
each line is an object: {"key": ...}, with --long also "size" and "version". No key is no error. With -0, a
key with a NUL byte in it is named on standard error instead, and the exit code is 1. 'kv help times'
explains what --at takes.
"""


class Options(CommonOptions):
    """The options of ``kv ls``."""

    long: bool = False
    at: str | None = None
    json: bool = False
    null: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv ls``."""
    parser.operands("PREFIX", "only keys that begin with it", "prefixes")
    parser.add_argument("-l", "--long", action="store_true", help="also the size of the value in bytes and its version")
    set_completer(parser.add_argument("--at", metavar="VERSION|TIME", help="list what was there then"), "points")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line")
    form.add_argument("-0", "--null", action="store_true", help="end each line with a NUL byte and escape nothing")


def run(context: Context, options: Options) -> int:
    """Print the keys."""
    prefix = checked_prefix(*options.operands)
    point = history_point(options.at, "--at")
    with context.connect() as client:
        at = None if point is None else point.version(client)
        status = exits.OK
        for item in client.scan(prefix, at=at, keys_only=not options.long):
            if options.null and "\0" in item.key:
                context.warn_nul(item.key)
                status = exits.NOT_FOUND
            else:
                _print(context, options, item)
    return status


def _print(context: Context, options: Options, item: "Item") -> None:
    size = len(item.value or b"")
    if options.json:
        extra = {"size": size, "version": item.version} if options.long else {}
        context.print_json({"key": item.key, **extra})
        return
    columns = f"{size:>8} {item.version:>8}  " if options.long else ""
    context.output.line(columns + (item.key if options.null else show(item.key)), end="\0" if options.null else "\n")
