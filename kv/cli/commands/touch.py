"""``kv touch``: change how long keys live, and not their values."""

from kv.cli.context import Context, checked_keys
from kv.cli.escape import show
from kv.cli.failures import UsageError
from kv.cli.parser import CommonOptions, Parser, set_completer
from kvd.protocol import exits

USAGE = "kv touch [OPTION]... --ttl DURATION|none KEY..."
EXAMPLES = """
kv touch --ttl 10m session          ten minutes from now
kv touch --ttl none session         without end
kv touch --ttl 10m --json a b       {"a": true, "b": false}: a lives on, and there is no b
kv touch -n --ttl 10m session       would it work?
"""
DETAILS = """
Values stay as they are. A key that is missing is named, the others are changed all the same, in one commit, and the
exit code is 1. Below a prefix with a longest life ([[prefix]] in the daemon's configuration) a longer one, or none, is
refused, and nothing is changed. 'kv get --touch' reads at the same time.
"""


class Options(CommonOptions):
    """The options of ``kv touch``."""

    ttl: str | None = None
    json: bool = False
    dry_run: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv touch``."""
    parser.operands("KEY", "which keys", "keys")
    set_completer(
        parser.add_argument("--ttl", metavar="DURATION", help="how long from now on, as in 'kv set'; or none"),
        "durations",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object of keys and whether each is there")
    parser.add_argument("-n", "--dry-run", action="store_true", help="show what would be done; change nothing")


def run(context: Context, options: Options) -> int:
    """Change the times to live, and print ``Keys touched``."""
    if options.ttl is None:
        raise UsageError("how long? write --ttl DURATION, or --ttl none for a life without end")
    keys = list(dict.fromkeys(checked_keys(options.operands, "touch")))
    ttl_s = None if options.ttl == "none" else _ttl_s(options.ttl)
    with context.connect() as client:
        exists = [left is not None for left in client.ttl(*keys)] if options.dry_run else client.touch(*keys, ttl=ttl_s)
    touched = [key for key, is_there in zip(keys, exists, strict=True) if is_there]
    if options.json:
        context.print_json(dict(zip(keys, exists, strict=True)))
    elif options.dry_run:
        for key in touched:
            context.print(f"would touch {show(key)}")
    elif touched:
        context.print("Keys touched")
    missing = [key for key in keys if key not in touched]
    context.warn_missing(missing)
    return exits.NOT_FOUND if missing else exits.OK


def _ttl_s(text: str) -> float:
    from kv.cli.durations import duration_s

    return duration_s(text, "--ttl")
