"""``kv reload``: make the daemon read its configuration again; it applies all of it or nothing."""

from kv.cli.context import Context
from kv.cli.escape import show
from kv.cli.parser import CommonOptions, Parser
from kvd.protocol import exits

USAGE = "kv reload [OPTION]..."
EXAMPLES = """
kv reload                           prints what changed
kv serve --check-config             is the file right?
"""
DETAILS = """
If the configuration is wrong the daemon keeps the one it has, and the reason is printed.
"""


class Options(CommonOptions):
    """``kv reload`` has no options of its own."""


def arguments(parser: Parser) -> None:
    """``kv reload`` has no options of its own."""


def run(context: Context, options: Options) -> int:
    """Ask, and print a line for each change."""
    with context.connect() as client:
        changes = client.reload()
    for change in changes or ["Nothing changed"]:
        context.print(show(change))
    return exits.OK
