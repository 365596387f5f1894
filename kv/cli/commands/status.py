"""``kv status``: print what the daemon reports about itself."""

from kv.cli.context import Context
from kv.cli.escape import show
from kv.cli.parser import CommonOptions, Parser
from kvd.protocol import exits

USAGE = "kv status [OPTION]..."
EXAMPLES = """
kv status                           a line for each fact
kv status --json                    one JSON object
"""
DETAILS = """
The exit code is 0 if the daemon answered and 69 if none could be reached.
"""


class Options(CommonOptions):
    """The options of ``kv status``."""

    json: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv status``."""
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(context: Context, options: Options) -> int:
    """Print the facts."""
    with context.connect() as client:
        status = client.status()
    if options.json:
        context.print_json(status)
        return exits.OK
    for name, value in status.items():
        context.print(f"{show(name)}: {show(str(value))}")
    return exits.OK
