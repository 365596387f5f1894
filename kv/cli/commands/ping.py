"""``kv ping``: whether the daemon answers."""

from kv.cli.context import Context
from kv.cli.parser import CommonOptions, Parser
from kvd.protocol import exits

USAGE = "kv ping [OPTION]..."
EXAMPLES = """
kv ping                             ok
kv ping -q || kv serve --daemon     start the daemon if there is none
"""
DETAILS = """
The exit code is 0 if the daemon answered and 69 if none could be reached.
"""


class Options(CommonOptions):
    """``kv ping`` has no options of its own."""


def arguments(parser: Parser) -> None:
    """``kv ping`` has no options of its own."""


def run(context: Context, options: Options) -> int:
    """Ask, and print ``ok``."""
    with context.connect() as client:
        client.ping()
    context.print("ok")
    return exits.OK
