"""``kv set``: set all pairs in one atomic commit."""

from kv.cli.context import Context
from kv.cli.escape import show
from kv.cli.pairs import collect
from kv.cli.parser import Parser, set_completer
from kv.cli.writing import WriteOptions, add_lifetime, add_sync
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.blocking.client import Client

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
kv set --ttl 10m session=open       gone in ten minutes
kv set --if-absent leader=$HOST     only if there is none yet; otherwise exit code 3
kv set --if-version 12 a=1 b=2      only if both are still at version 12
"""
DETAILS = """
The first '=' ends the key. A value is kept byte for byte. A later pair for the same key wins; pairs given with
--key and --value count as later than operands. For '-', each line of standard input is a JSON object
{"key": "...", "value": "..."}; a value that is no text is written {"base64": "..."}.
A key set without --ttl and --keep-ttl lives without end. With --if-version or --if-absent the condition holds for every
key named, or nothing is set, the first key for which it does not hold is named, and the exit code is 3.
"""


class Options(WriteOptions):
    """The options of ``kv set``."""

    raw_values: bool = False
    if_version: int | None = None
    if_absent: bool = False
    dry_run: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv set``."""
    parser.operands("KEY=VALUE", "what to set: KEY=VALUE, KEY=@FILE, KEY=- (standard input), KEY==TEXT", "pairs")
    parser.verbatim = ("--key", "--value")
    set_completer(parser.add_argument("--key", action="append", metavar="KEY", help="a key, with --value"), "keys")
    parser.add_argument("--value", action="append", metavar="VALUE", help="the value of the --key before it, as it is")
    parser.add_argument("--raw-values", action="store_true", help="values have no special forms: @, - and = are text")
    add_lifetime(parser)
    add_sync(parser)
    condition = parser.add_mutually_exclusive_group()
    set_completer(
        condition.add_argument(
            "--if-version", metavar="VERSION", type=_version, help="only if the keys are at this version; 0: absent"
        ),
        "versions",
    )
    condition.add_argument("--if-absent", action="store_true", help="only if there are no such keys")
    parser.add_argument("-n", "--dry-run", action="store_true", help="check and show what would be set; set nothing")


def _version(text: str) -> int:
    from kv.cli.numbers import whole_number

    return whole_number("--if-version")(text)


def run(context: Context, options: Options) -> int:
    """Set the pairs, and print ``Keys set``."""
    pairs = collect(
        options.operands,
        options.verbatim["--key"],
        options.verbatim["--value"],
        raw_values=options.raw_values,
    )
    if not pairs:  # empty standard input
        context.note("no pairs on standard input")
        return exits.OK
    expected = 0 if options.if_absent else options.if_version
    if options.dry_run:
        return _rehearse(context, pairs, expected)
    with context.connect() as client:
        version = _write(client, pairs, expected, options)
    context.print("Keys set")
    context.note(f"{len(pairs)} keys, version {version}")
    return exits.OK


def _write(client: "Client", pairs: dict[str, bytes], expected: int | None, options: WriteOptions) -> int:
    """Commit the pairs; return the version. Raises Conflict if a key is not at the version ``expected``."""
    if expected is None:
        return client.set_many(pairs, ttl=options.ttl_s, keep_ttl=options.keep_ttl, sync=options.sync)
    reads = dict.fromkeys(pairs, expected)
    return client.commit(pairs, reads=reads, ttl=options.ttl_s, keep_ttl=options.keep_ttl, sync=options.sync)


def _rehearse(context: Context, pairs: dict[str, bytes], expected: int | None) -> int:
    if expected is not None:
        with context.connect() as client:
            client.commit({}, reads=dict.fromkeys(pairs, expected))  # only the check, no write
    for key, value in pairs.items():
        context.print(f"would set {show(key)}: {show(value)}")
    return exits.OK
