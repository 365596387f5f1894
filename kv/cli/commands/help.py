"""``kv help``: the overview, or the help on a command or a topic."""

from kv.cli.context import Context
from kv.cli.failures import UsageError
from kv.cli.parser import CommonOptions, Parser
from kvd.protocol import exits

USAGE = "kv help [COMMAND|exit-codes|times]"
EXAMPLES = """
kv help set                         one command
kv help exit-codes                  what a script gets back
kv help times                       how to write a VERSION or a TIME
"""
DETAILS = ""


class Options(CommonOptions):
    """``kv help`` has no options of its own."""


def arguments(parser: Parser) -> None:
    """``kv help`` takes the name of a command."""
    parser.operands("COMMAND", "what to explain", "topics")


def run(context: Context, options: Options) -> int:
    """Print the help."""
    from kv.cli.helptext import explain

    if len(options.operands) > 1:
        raise UsageError("one command at a time; see 'kv help'")
    context.print(explain("".join(options.operands)))
    return exits.OK
