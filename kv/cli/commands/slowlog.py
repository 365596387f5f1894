"""``kv slowlog``: print the frames that kept the daemon busy for long."""

from kv.cli.commands.history import add_limit
from kv.cli.context import Context
from kv.cli.escape import show
from kv.cli.parser import CommonOptions, Parser
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.results import SlowFrame

_DEFAULT_LIMIT = 20

USAGE = "kv slowlog [OPTION]..."
EXAMPLES = """
kv slowlog                          the last 20 frames that held the daemon, the newest last
kv slowlog --limit 100              the last hundred
kv slowlog --reset                  the same, and forget all there are
kv slowlog --json                   one JSON object a line
"""
DETAILS = """
While the daemon runs a frame, which is what a client sends at once, it serves nobody else. Those that took 10 ms or
longer are kept, the last 128, unless [slowlog] in the daemon's configuration says otherwise: when, for how long, for
whom, which requests and how many of each, and the first keys that they name. Large frames run in slices, and each slice
is measured by itself; so are the sets of many clients that are made together, under the name of the first.

Not measured: the decoding of a frame, the events of watches, and a get alone in its frame while no value is as large as
64 KiB. For administrators only.
"""


class Options(CommonOptions):
    """The options of ``kv slowlog``."""

    limit: int | None = None
    reset: bool = False
    json: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv slowlog``."""
    add_limit(parser, "so many at most, up to 1000 (default: 20)")
    parser.add_argument("--reset", action="store_true", help="and forget all there are")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(context: Context, options: Options) -> int:
    """Print the entries."""
    with context.connect() as client:
        frames = client.slow_log(limit=options.limit or _DEFAULT_LIMIT, reset=options.reset)
    for frame in reversed(frames):
        _print(context, frame, json=options.json)
    return exits.OK


def _print(context: Context, frame: "SlowFrame", *, json: bool) -> None:
    from kv.cli.authors import author_json, who_and_when
    from kv.cli.times import time_json

    if json:
        context.print_json(
            {
                "time": time_json(frame.time),
                "held_us": frame.held_us,
                "author": author_json(frame.author),
                "requests": frame.requests,
                "keys": frame.keys,
                "more_keys": frame.more_keys,
            }
        )
        return
    requests = ", ".join(f"{count} {name}" if count > 1 else name for name, count in frame.requests.items())
    keys = ", ".join(map(show, frame.keys)) + (", …" if frame.more_keys else "")
    held = f"{frame.held_us / 1000:.3f} ms"
    who = who_and_when(frame.author, frame.time)
    context.print(f"{who}  {held}  {show(requests)}{': ' if keys else ''}{keys}")
