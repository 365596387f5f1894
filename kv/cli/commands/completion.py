"""``kv completion``: the script with which a shell completes ``kv``."""

from kv.cli.context import Context
from kv.cli.failures import UsageError
from kv.cli.parser import CommonOptions, Parser
from kvd.protocol import exits

USAGE = "kv completion [OPTION]... bash|zsh|fish"
EXAMPLES = """
source <(kv completion bash)        in ~/.bashrc
source <(kv completion zsh)         in ~/.zshrc, behind compinit
kv completion fish | source         in ~/.config/fish/config.fish
"""
DETAILS = """
Needed only where the scripts that come with kv are not installed in the places where the shells look.
"""


class Options(CommonOptions):
    """``kv completion`` has no options of its own."""


def arguments(parser: Parser) -> None:
    """``kv completion`` takes the name of a shell."""
    parser.operands("SHELL", "bash, zsh or fish", "shells")


def run(context: Context, options: Options) -> int:
    """Print the script."""
    from kv.cli.shells import SHELLS, script

    if len(options.operands) != 1 or options.operands[0] not in SHELLS:
        raise UsageError(f"name one shell: {', '.join(SHELLS)}")
    context.output.line(script(options.operands[0]), end="")
    return exits.OK
