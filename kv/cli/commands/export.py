"""``kv export``: all keys of one instant as text, sorted, one JSON object a line."""

import time

from kv.cli.context import Context, checked_prefix
from kv.cli.numbers import plural
from kv.cli.parser import CommonOptions, Parser, set_completer
from kv.cli.records import Record, line_of
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kv.blocking.client import Client
    from kv.results import Item

USAGE = "kv export [OPTION]... [PREFIX]"
EXAMPLES = """
kv export > all.jsonl               every key, one JSON object a line
kv export -o all.jsonl              the same; the file appears when it is whole
kv export user/ | kv -s OTHER import -   some keys, into another daemon
diff <(kv export) all.jsonl         what has changed since?
"""
DETAILS = """
Keys come in the order of their bytes, all of one instant, whatever is written meanwhile. A value that is no text is
{"base64": "..."}. A key that expires has "expires", to the second, as it stands when its line is written. Keys that
live as long as a connection are keys like any other here. 'kv import' reads it. For everything as it is, quickly, with
the exact lifetimes: 'kv backup'.
"""
_PAGE_KEYS = 500


class Options(CommonOptions):
    """The options of ``kv export``."""

    output: str | None = None


def arguments(parser: Parser) -> None:
    """The options of ``kv export``."""
    parser.operands("PREFIX", "only keys that begin with it", "prefixes")
    set_completer(
        parser.add_argument("-o", "--output", metavar="FILE", help="write to a file, all of it or nothing"), "files"
    )


def run(context: Context, options: Options) -> int:
    """Print the keys, or write them to a file."""
    prefix = checked_prefix(*options.operands)
    if options.output is None:
        count = _export(context, prefix, lambda text: context.output.write(text.encode()))
    else:
        count = _into_file(context, prefix, options.output)
    context.note(plural(count, "key"))
    return exits.OK


def _into_file(context: Context, prefix: str, path: str) -> int:
    from kv.cli.files import AtomicFile
    from kv.cli.output import write_all

    with AtomicFile(path) as descriptor:
        return _export(context, prefix, lambda text: write_all(descriptor, text.encode()))


def _export(context: Context, prefix: str, write: "Callable[[str], None]") -> int:
    """Pass one page of lines after another to ``write``; return the number of keys."""
    count = 0
    with context.connect() as client, context.progress(" keys", "export") as bar:
        total = 0 if prefix else client.metrics()["keys_stored"]
        for lines in _pages(client, prefix):
            write("".join(f"{line}\n" for line in lines))
            count += len(lines)
            bar.update(count, total)
    return count


def _pages(client: "Client", prefix: str) -> "Iterator[list[str]]":
    expiring = client.metrics()["keys_with_deadline"] > 0
    # Of keys that are deleted before their lines are written: the snapshot still has them.
    known = _all_expiries(client, prefix) if expiring else {}
    with client.snapshot() as snapshot:
        page: list[Item] = []
        for item in snapshot.scan(prefix):
            page.append(item)
            if len(page) == _PAGE_KEYS:
                yield _lines(client, page, known, expiring=expiring)
                page = []
        yield _lines(client, page, known, expiring=expiring)


def _lines(client: "Client", page: "list[Item]", known: dict[str, int], *, expiring: bool) -> list[str]:
    now = _expiries(client, [item.key for item in page]) if expiring and page else {}
    return [line_of(Record(item.key, item.value or b"", now.get(item.key, known.get(item.key)))) for item in page]


def _all_expiries(client: "Client", prefix: str) -> dict[str, int]:
    expiries: dict[str, int] = {}
    keys: list[str] = []
    for item in client.scan(prefix, keys_only=True):
        keys.append(item.key)
        if len(keys) == _PAGE_KEYS:
            expiries.update({key: expiry for key, expiry in _expiries(client, keys).items() if expiry is not None})
            keys = []
    expiries.update({key: expiry for key, expiry in _expiries(client, keys).items() if expiry is not None})
    return expiries


def _expiries(client: "Client", keys: list[str]) -> dict[str, int | None]:
    """Return when each existing key of ``keys`` expires, in µs since the epoch; None: never."""
    if not keys:
        return {}
    now_us = time.time_ns() // 1000
    left = zip(keys, client.ttl(*keys), strict=True)
    return {key: None if s == float("inf") else now_us + int(s * 1e6) for key, s in left if s is not None}
