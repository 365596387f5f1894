"""``kv help``: the help on everything, on a command, or on a topic."""

from kv.cli import exits
from kv.cli.context import Context
from kv.cli.failures import UsageError
from kv.cli.parser import Parser

USAGE = "kv help [COMMAND|exit-codes|times]"
EXAMPLES = """
kv help set                         one command
kv help exit-codes                  what a script gets back
kv help times                       how to write a VERSION or a TIME
"""
DETAILS = ""


def arguments(parser: Parser) -> None:
    """``kv help`` takes the name of a command."""
    parser.operands("COMMAND", "what to explain", "topics")


def run(context: Context) -> int:
    """Print the help."""
    from kv.cli.helptext import explain

    if len(context.options.operands) > 1:
        raise UsageError("one command at a time; see 'kv help'")
    context.print(explain("".join(context.options.operands)))
    return exits.OK
