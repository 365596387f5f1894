"""``kv revert``: undo one commit, unless a key that it wrote has changed since."""

from kv.cli.commands.rollback import changes, print_plan
from kv.cli.context import Context
from kv.cli.failures import UsageError
from kv.cli.numbers import whole_number
from kv.cli.parser import CommonOptions, Parser
from kvd.protocol import exits, parse_version

USAGE = "kv revert [OPTION]... VERSION"
EXAMPLES = """
kv revert -n 1234                   what would be done?
kv revert 1234                      undo what commit 1234 did
"""
DETAILS = """
Every key that the commit wrote becomes what it was before it, all in one commit, which shows in 'kv log' and can be
reverted in turn. If one of the keys has changed since, it is named, nothing is written, and the exit code is 3; 'kv
rollback' does not mind.
"""


class Options(CommonOptions):
    """The options of ``kv revert``."""

    dry_run: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv revert``."""
    parser.operands("VERSION", "which commit, as 'kv log' shows it", "versions")
    parser.add_argument("-n", "--dry-run", action="store_true", help="show what would be done; change nothing")


def run(context: Context, options: Options) -> int:
    """Undo the commit, and print ``Commit reverted``."""
    if len(options.operands) != 1:
        raise UsageError("give the version of one commit, as 'kv log' shows it; write 'kv revert VERSION'")
    version = parse_version(options.operands[0]) or whole_number("the version of a commit", 1)(options.operands[0])
    with context.connect() as client:
        writes = changes(client, client.plan_revert(version))
        if not writes:
            context.print(f"Nothing to change: already as before version {version}")
            return exits.OK
        if options.dry_run:
            print_plan(context, writes)
            return exits.OK
        new_version = client.revert(version)
    context.print("Commit reverted")
    context.note(f"version {new_version}")
    return exits.OK
