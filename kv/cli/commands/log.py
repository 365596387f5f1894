"""``kv log``: print commits, the newest last."""

from kv.cli.commands.history import add_limit
from kv.cli.context import Context, history_point
from kv.cli.escape import show
from kv.cli.failures import UsageError
from kv.cli.parser import CommonOptions, Parser, set_completer
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.results import Commit

_DEFAULT_LIMIT = 20
_MAX_KEYS_PER_LINE = 8

USAGE = "kv log [OPTION]..."
EXAMPLES = """
kv log                              the newest 20 commits, the newest last
kv log --limit 100                  the newest hundred
kv log --since 10m                  all of the last ten minutes
kv log --since 1234                 all after version 1234
kv log --all --json                 all that the history holds, one JSON object a line
"""
DETAILS = """
Each line has a commit's version, time, author and the keys that it wrote or deleted; of many keys the first eight, in
JSON all. With --since and --limit: the first after that point. 'kv help times' explains what --since takes. To follow
along: 'kv watch'.
"""


class Options(CommonOptions):
    """The options of ``kv log``."""

    since: str | None = None
    limit: int | None = None
    all: bool = False
    json: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv log``."""
    set_completer(parser.add_argument("--since", metavar="VERSION|TIME", help="the commits after that"), "points")
    add_limit(parser, "so many commits at most (default without --since: 20)")
    parser.add_argument("--all", action="store_true", help="all commits that the history holds")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(context: Context, options: Options) -> int:
    """Print the commits."""
    point = history_point(options.since, "--since")
    limit = options.limit
    if options.all and (point is not None or limit is not None):
        raise UsageError("--all goes without --since and --limit")
    if point is None and not options.all:
        limit = limit or _DEFAULT_LIMIT
    with context.connect() as client:
        since = None if point is None else point.version(client)
        for commit in client.log(since, limit=limit):
            _print(context, commit, json=options.json)
    return exits.OK


def _print(context: Context, commit: "Commit", *, json: bool) -> None:
    from kv.cli.authors import commit_json, who_and_when

    if json:
        context.print_json({**commit_json(commit.version, commit.time, commit.author), "keys": commit.keys})
        return
    who = who_and_when(commit.author, commit.time)
    context.print(f"{commit.version}  {who}  {keys_text(commit.keys, _MAX_KEYS_PER_LINE)}")


def keys_text(keys: list[str], max_keys: int) -> str:
    """Return the text: the first ``max_keys`` keys, and how many more there are."""
    more = len(keys) - max_keys
    return ", ".join(map(show, keys[:max_keys])) + (f" and {more} more" if more > 0 else "")
