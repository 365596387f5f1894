"""``kv version``: print the version."""

from kv.cli.context import Context
from kv.cli.parser import CommonOptions, Parser
from kvd.protocol import exits

USAGE = "kv version [OPTION]..."
EXAMPLES = """
kv version                          kv and its version
kv status                           the version of the daemon is in there
"""
DETAILS = ""


class Options(CommonOptions):
    """``kv version`` has no options of its own."""


def arguments(parser: Parser) -> None:
    """``kv version`` has no options of its own."""


def run(context: Context, options: Options) -> int:
    """Print the version."""
    context.print(text())
    return exits.OK


def text() -> str:
    """Return ``kv`` and its version."""
    import kvd

    return f"kv {kvd.__version__}"
