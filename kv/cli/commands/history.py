"""``kv history``: the versions of a key, newest first."""

from kv.cli.context import Context, checked_key
from kv.cli.escape import show
from kv.cli.failures import UsageError
from kv.cli.parser import CommonOptions, Parser
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.results import Version

USAGE = "kv history [OPTION]... KEY"
EXAMPLES = """
kv history cake                     version, time, author, value: newest first
kv history --limit 1 cake           who changed it last?
kv history --json cake              one JSON object a line
"""
DETAILS = """
The versions that the history still holds. The exit code is 1 if it holds none. In JSON a deletion has the value null.
The author is the process that connected: user, process id and name by the kernel's word, as far as they can be known.
"""


class Options(CommonOptions):
    """The options of ``kv history``."""

    limit: int | None = None
    json: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv history``."""
    parser.operands("KEY", "which key", "keys")
    add_limit(parser, "so many versions at most")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def add_limit(parser: Parser, help: str) -> None:  # noqa: A002 - argparse's word
    """Add the option --limit."""
    parser.add_argument("--limit", metavar="N", type=_limit, help=help)


def _limit(text: str) -> int:
    from kv.cli.numbers import whole_number

    return whole_number("--limit", 1)(text)


def run(context: Context, options: Options) -> int:
    """Print the versions."""
    if len(options.operands) != 1:
        raise UsageError("give one key; write 'kv history KEY'")
    key = checked_key(options.operands[0])
    is_empty = True
    with context.connect() as client:
        for version in client.history(key, limit=options.limit):
            is_empty = False
            _print(context, key, version, json=options.json)
    if is_empty and not options.quiet:
        context.warn(f"error: the history holds no version of {key}")
    return exits.NOT_FOUND if is_empty else exits.OK


def _print(context: Context, key: str, version: "Version", *, json: bool) -> None:
    if json:
        from kv.cli.authors import commit_json
        from kv.cli.jsontext import value_json

        value = None if version.value is None else value_json(version.value)
        context.print_json({**commit_json(version.version, version.time, version.author), "key": key, "value": value})
        return
    from kv.cli.authors import who_and_when

    context.print(f"{version.version}  {who_and_when(version.author, version.time)}  {event_text(key, version.value)}")


def event_text(key: str, value: bytes | None) -> str:
    """Return the text: what a commit did to a key."""
    return f"deleted {show(key)}" if value is None else f"set {show(key)}: {show(value)}"
