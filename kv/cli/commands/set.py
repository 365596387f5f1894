"""``kv set``: all pairs in one atomic commit."""

from kv.cli import exits
from kv.cli.context import Context
from kv.cli.escape import show
from kv.cli.pairs import collect
from kv.cli.parser import Parser, completed

USAGE = """\
kv set [OPTION]... KEY=VALUE...
       kv set [OPTION]... --key KEY --value VALUE...
       kv set [OPTION]... -"""
EXAMPLES = """
kv set cake=🎂 horns=😈              two keys, both or none
kv set motd=@/etc/motd              the value is in a file
date | kv set now=-                 the value comes from standard input
kv set mail==@example.org           the value is the text '@example.org'
kv set --key 'a=b' --value '-'      any key, any value, taken as they are
kv set - < pairs.jsonl              many pairs, in one commit
"""
DETAILS = """
The first '=' ends the key. A value is kept byte for byte. A later pair for the same key wins; pairs given with
--key and --value count as later than operands. For '-', each line of standard input is a JSON object
{"key": "...", "value": "..."}; a value that is no text is written {"base64": "..."}.
"""


def arguments(parser: Parser) -> None:
    """The options of ``kv set``."""
    parser.operands("KEY=VALUE", "what to set: KEY=VALUE, KEY=@FILE, KEY=- (standard input), KEY==TEXT", "pairs")
    parser.verbatim = ("--key", "--value")
    completed(parser.add_argument("--key", action="append", metavar="KEY", help="a key, with --value"), "keys")
    parser.add_argument("--value", action="append", metavar="VALUE", help="the value of the --key before it, as it is")
    parser.add_argument("--raw-values", action="store_true", help="values have no special forms: @, - and = are text")
    parser.add_argument("-n", "--dry-run", action="store_true", help="check and show what would be set; set nothing")


def run(context: Context) -> int:
    """Set the pairs; ``Keys set``."""
    options = context.options
    pairs = collect(
        options.operands,
        options.verbatim["--key"],
        options.verbatim["--value"],
        raw_values=getattr(options, "raw_values", False),
    )
    if getattr(options, "dry_run", False):
        for key, value in pairs.items():
            context.print(f"would set {show(key)}: {show(value)}")
        return exits.OK
    if not pairs:  # empty standard input
        context.note("no pairs on standard input")
        return exits.OK
    with context.connect() as client:
        version = client.set_many(pairs)
    context.print("Keys set")
    context.note(f"{len(pairs)} keys, version {version}")
    return exits.OK
