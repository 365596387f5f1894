"""``kv txn``: run a script of checks, reads and writes as one atomic transaction."""

from kv.cli.commands.rollback import print_plan
from kv.cli.context import Context
from kv.cli.escape import show
from kv.cli.input import read_stdin
from kv.cli.numbers import plural
from kv.cli.parser import Parser
from kv.cli.statements import parse
from kv.cli.transactions import Outcome, carry_out
from kv.cli.writing import WriteOptions, add_lifetime, add_sync
from kvd.protocol import exits

USAGE = "kv txn [OPTION]... < SCRIPT"
EXAMPLES = """
printf '%s\\n' 'check a = 5' 'set a 6' 'set b new' | kv txn
kv txn < move.txt                   where move.txt is
                                      # from one place to the other
                                      check stock/here exists
                                      check order/7 version 1234
                                      incr stock/here -1
                                      incr stock/there
                                      set order/7 "sent off"
                                      get stock/here
kv txn -n < move.txt                would it work, and what would it write?
"""
DETAILS = """
Statements, one a line; words with blanks stand in quotes as in a shell, which may go over several lines; a line that
begins with # is a comment:

  check KEY version N   is it at this version (0: absent)?      check KEY absent    is there no such key?
  check KEY = VALUE     has it this value?                      check KEY exists    is there one?
  get KEY...            print as 'kv get' does                  set KEY VALUE       set it
  del KEY...            delete it, if there is one              incr KEY [N]        add N (1), print the new number

They are gone through in their order, each sees what those before it have written, and all of it happens at one
instant or not at all. Exit code 0: it was done. 3: a check does not hold; it is named, and nothing was written or
printed. 2: a statement is wrong; nothing was sent. 5: incr of what is no number. A key that get does not find is
named on standard error, and null in JSON. Keys that are written live without end, unless --ttl or --keep-ttl says
otherwise.
"""


class Options(WriteOptions):
    """The options of ``kv txn``."""

    json: bool = False
    dry_run: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv txn``."""
    add_lifetime(parser)
    add_sync(parser)
    parser.add_argument("--json", action="store_true", help='one JSON object: {"version": ..., "found": {key: value}}')
    parser.add_argument("-n", "--dry-run", action="store_true", help="check and show what would be done; write nothing")


def run(context: Context, options: Options) -> int:
    """Run the script, and print what it read."""
    statements = parse(read_stdin())
    if not statements:
        context.note("no statements on standard input")
        return exits.OK
    with context.connect() as client:
        outcome, version = carry_out(client, statements, dry_run=options.dry_run, options=options)
    _print(context, options, outcome, version)
    return exits.OK


def _print(context: Context, options: Options, outcome: Outcome, version: int | None) -> None:
    if options.json:
        from kv.cli.jsontext import value_json

        values = {key: None if value is None else value_json(value) for key, value in outcome.shown}
        context.print_json({"version": version, "found": values})
        return
    for key, value in outcome.shown:
        if value is None:
            context.warn(f"no such key: {key}")
        else:
            context.print(f"{show(key)}: {show(value)}")
    if options.dry_run:
        print_plan(context, outcome.writes)
    elif version is not None:
        context.note(f"{plural(len(outcome.writes), 'key')} written, version {version}")
