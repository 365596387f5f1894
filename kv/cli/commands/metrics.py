"""``kv metrics``: five counters, or with --json everything that is counted."""

from kv.cli import exits
from kv.cli.context import Context
from kv.cli.parser import Parser

USAGE = "kv metrics [OPTION]..."
EXAMPLES = """
kv metrics                          five lines for people
kv metrics --json                   everything that is counted
"""
DETAILS = """
Bytes are those of the values. Operations are counted for each key: 'kv get a b' counts two.
"""
_LABELS = {
    "keys_stored": "Keys Stored",
    "value_bytes_stored": "Bytes Stored (Values)",
    "set_operations": "Set Operations",
    "get_operations": "Get Operations",
    "delete_operations": "Delete Operations",
}


def arguments(parser: Parser) -> None:
    """The options of ``kv metrics``."""
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(context: Context) -> int:
    """Print the counters."""
    with context.connect() as client:
        metrics = client.metrics()
    if context.options.json:
        context.print_json(metrics)
        return exits.OK
    for name, label in _LABELS.items():
        context.print(f"{label}: {metrics[name]}")
    return exits.OK
