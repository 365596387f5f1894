"""``kv metrics``: print five counters, or all of them: as JSON, or as Prometheus reads them."""

from kv.cli.context import Context
from kv.cli.escape import show
from kv.cli.failures import UsageError
from kv.cli.parser import CommonOptions, Parser, set_completer
from kvd.protocol import exits

USAGE = "kv metrics [OPTION]..."
EXAMPLES = """
kv metrics                          five lines for people
kv metrics --json                   everything that is counted
kv metrics --prometheus             everything that is measured, for Prometheus
kv metrics --textfile /var/lib/prometheus/node-exporter/kvd.prom
"""
DETAILS = """
Bytes are those of the values. Operations are counted for each key: 'kv get a b' counts two.

--textfile is for node-exporter's textfile collector, from a timer: the file is replaced as a whole, readable by all.
The daemon needs the library prometheus-client for it and for --prometheus.
"""
_LABELS = {
    "keys_stored": "Keys Stored",
    "value_bytes_stored": "Bytes Stored (Values)",
    "set_operations": "Set Operations",
    "get_operations": "Get Operations",
    "delete_operations": "Delete Operations",
}
_MODE = 0o644  # node-exporter runs as another user


class Options(CommonOptions):
    """The options of ``kv metrics``."""

    json: bool = False
    prometheus: bool = False
    textfile: str | None = None


def arguments(parser: Parser) -> None:
    """The options of ``kv metrics``."""
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--prometheus", action="store_true", help="Prometheus' text format")
    set_completer(parser.add_argument("--textfile", metavar="FILE", help="the same, into a file"), "files")


def run(context: Context, options: Options) -> int:
    """Print the counters, or write them to a file."""
    textfile = options.textfile
    if options.json + options.prometheus + (textfile is not None) > 1:
        raise UsageError("give one of --json, --prometheus and --textfile")
    if textfile is not None and not textfile.endswith(".prom"):
        raise UsageError(f"node-exporter reads files that end in .prom, which this does not: {textfile}")
    with context.connect() as client:
        if options.prometheus or textfile is not None:
            text = client.exposition()
        else:
            metrics = client.metrics()
    if textfile is not None:
        _write(textfile, text.encode())
    elif options.prometheus:
        for line in text.splitlines():
            context.print(show(line))
    elif options.json:
        context.print_json(metrics)
    else:
        for name, label in _LABELS.items():
            context.print(f"{label}: {metrics[name]}")
    return exits.OK


def _write(path: str, data: bytes) -> None:
    from kv.cli.files import AtomicFile
    from kv.cli.output import write_all

    with AtomicFile(path, _MODE) as descriptor:
        write_all(descriptor, data)
