"""``kv backup``: everything in one file, while the daemon goes on serving."""

import os

from kv.cli.context import Context
from kv.cli.failures import CommandFailed, OutputFailed, UsageError
from kv.cli.files import AtomicFile
from kv.cli.numbers import plural
from kv.cli.output import write_all
from kv.cli.parser import CommonOptions, Parser
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kv.blocking.backup import Piece

USAGE = "kv backup [OPTION]... FILE|-"
EXAMPLES = """
kv backup kvd.backup                everything, in one file
kv backup - | gzip > kvd.backup.gz  on standard output
kv backup - | ssh host kv restore - /var/lib/kvd
"""
DETAILS = """
The backup is everything as it was at one version, its end; writes go on at full speed meanwhile. FILE appears only when
it is whole and on the disk; one of that name is replaced then. 'kv restore' makes a data directory of it, 'kv check'
reads it to its end. Only root and the daemon's own user may. --timeout is how long to wait for each piece.
"""


class Options(CommonOptions):
    """The options of ``kv backup``."""

    json: bool = False


def arguments(parser: Parser) -> None:
    """The operand of ``kv backup``."""
    parser.add_argument("--json", action="store_true", help="print version and keys as JSON")
    parser.operands("FILE", "where to; '-' is standard output", "files")


def run(context: Context, options: Options) -> int:
    """Take a backup, and print ``Backup written: version 123, 4567 keys``."""
    if len(options.operands) != 1:
        raise UsageError("where to? write 'kv backup FILE', or 'kv backup -' for standard output")
    path = options.operands[0]
    if path == "-":
        _check_no_terminal()
        last = _take(context, _write_out)
    else:
        last = _into_file(context, path)
        _print(context, last, json=options.json)
    context.note(f"version {last.version}, {plural(last.keys, 'key')}")
    return exits.OK


def _print(context: Context, last: "Piece", *, json: bool) -> None:
    if json:
        context.print_json({"version": last.version, "keys": last.keys})
    else:
        context.print(f"Backup written: version {last.version}, {plural(last.keys, 'key')}")


def _check_no_terminal() -> None:
    if os.isatty(1):
        raise UsageError("a backup is not for a terminal; name a file, or pipe it somewhere")


def _write_out(data: bytes) -> None:
    try:
        write_all(1, data)
    except OSError as error:
        raise OutputFailed(error) from None


def _into_file(context: Context, path: str) -> "Piece":
    """Write a complete backup to ``path``, or nothing. Raises CommandFailed."""
    with AtomicFile(path) as descriptor:
        return _take(context, lambda data: write_all(descriptor, data))


def _take(context: Context, write: "Callable[[bytes], None]") -> "Piece":
    """Pass all pieces to ``write``; return the last."""
    from kv.blocking.backup import BackupStream

    with (
        context.connect() as client,
        BackupStream(client, context.options.timeout_s()) as stream,
        context.progress(" keys", "backup") as bar,
    ):
        return _write_pieces(stream, write, bar.update)


def _write_pieces(
    stream: "Iterator[Piece]", write: "Callable[[bytes], None]", update: "Callable[[int, int], None]"
) -> "Piece":
    for piece in stream:
        if piece.data:
            write(piece.data)
        update(piece.keys, piece.keys_in_all)
        if piece.version is not None:
            return piece
    raise CommandFailed("the daemon ended the backup before it was complete")
