"""``kv import``: set keys from lines as ``kv export`` writes them, in one commit if they fit into one."""

import os
import time

from kv.cli.context import Context
from kv.cli.failures import CommandFailed, UsageError
from kv.cli.numbers import plural
from kv.cli.parser import Parser, set_completer
from kv.cli.records import Record, records
from kv.cli.writing import SyncOption, add_sync
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import BinaryIO

    from kv.api.transactions import Transaction
    from kv.blocking.client import Client
    from kvd.service.progress import ProgressBar

USAGE = "kv import [OPTION]... [FILE|-]"
EXAMPLES = """
kv import all.jsonl                 set what the file has, in one commit
kv import --replace all.jsonl       and delete what it does not have, in the same commit
kv import --replace --prefix user/ users.jsonl   but only below user/
kv import --batches big.jsonl       more than one commit can hold
kv export | kv -s OTHER import -    from one daemon to another
"""
DETAILS = """
Each line is a JSON object as 'kv export' writes it. All lines are read and checked before anything is written; they are
one commit, all or nothing. What does not fit into one commit is refused, unless --batches allows several: each is
atomic, all of them together are not. Keys whose expiry has passed are left out. With --replace somebody else's change
meanwhile is a conflict (exit code 3) if it goes on through several attempts; nothing was written then.
"""
_BATCH_KEYS = 5_000
_BATCH_BYTES = 2 * 1024 * 1024
_MAX_BYTES = 256 * 1024 * 1024


class Options(SyncOption):
    """The options of ``kv import``."""

    merge: bool = False
    replace: bool = False
    prefix: str = ""
    batches: bool = False
    dry_run: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv import``."""
    parser.operands("FILE", "lines of JSON; '-' or nothing: standard input", "files")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--merge", action="store_true", help="leave other keys as they are (default)")
    way.add_argument("--replace", action="store_true", help="delete all other keys")
    set_completer(parser.add_argument("--prefix", metavar="PREFIX", help="only keys that begin with it"), "prefixes")
    parser.add_argument("--batches", action="store_true", help="in several commits, if it does not fit into one")
    parser.add_argument("-n", "--dry-run", action="store_true", help="read and check everything; write nothing")
    add_sync(parser)


class Import:
    """One import: its options, and the counts of what it has done."""

    def __init__(self, context: Context, options: Options) -> None:
        self.context = context
        self.prefix = options.prefix
        self.replaces = options.replace
        self.sync = options.sync
        self.keys = self.expired = self.deleted = self.commits = 0

    def accepted(self, records: "Iterable[Record]") -> "Iterator[Record]":
        """Yield the records to write, without those that have expired. Raises UsageError outside of the prefix."""
        for record in records:
            if not record.key.startswith(self.prefix):
                raise UsageError(f"the key {record.key!r} does not begin with {self.prefix!r}")
            if record.expires is not None and record.expires <= time.time_ns() // 1000:
                self.expired += 1
            else:
                yield record

    def write(self, client: "Client", batch: list[Record]) -> None:
        """Set the keys of ``batch`` in one commit."""
        with client.transaction(sync=self.sync) as txn:
            _set(txn, batch)
        self.keys += len(batch)
        self.commits += 1

    def replace(self, client: "Client", batch: list[Record]) -> None:
        """Set the keys of ``batch``, and delete all others below the prefix, in one commit. Raises Conflict."""
        names = {record.key for record in batch}

        def write(txn: "Transaction") -> int:
            others = [item.key for item in txn.scan(self.prefix, keys_only=True) if item.key not in names]
            txn.delete(*others)
            _set(txn, batch)
            return len(others)

        self.deleted = client.run(write, sync=self.sync)
        self.keys, self.commits = len(batch), 1

    def delete_others(self, client: "Client", names: set[str]) -> None:
        """Delete the keys below the prefix that ``names`` has not, in several commits."""
        others: list[str] = []
        for item in client.scan(self.prefix, keys_only=True):
            if item.key not in names:
                others.append(item.key)
        for begin in range(0, len(others), _BATCH_KEYS):
            self.deleted += client.delete(*others[begin : begin + _BATCH_KEYS], missing_ok=True, sync=self.sync)
            self.commits += 1

    def print_summary(self) -> None:
        """Print what was done."""
        expired = f", {self.expired} left out that have expired" if self.expired else ""
        deleted = f", {self.deleted} deleted" if self.replaces else ""
        commits = f", in {self.commits} commits" if self.commits > 1 else ""
        self.context.print(f"Imported: {plural(self.keys, 'key')}{deleted}{expired}{commits}")


def _set(txn: "Transaction", batch: list[Record]) -> None:
    now_us = time.time_ns() // 1000
    for record in batch:
        ttl = None if record.expires is None else max(0.001, (record.expires - now_us) / 1e6)
        txn.set(record.key, record.value, ttl=ttl)


def run(context: Context, options: Options) -> int:
    """Import, and print ``Imported: 123 keys``."""
    operands = options.operands
    if len(operands) > 1:
        raise UsageError("kv import takes one file")
    path = operands[0] if operands else "-"
    work = Import(context, options)
    with _opened(path) as stream:
        if options.dry_run:
            work.keys = sum(1 for _ in work.accepted(records(stream, _name(path))))
            context.print(
                f"would import {plural(work.keys, 'key')}" + (f", {work.expired} have expired" if work.expired else "")
            )
            return exits.OK
        if options.batches:
            _in_batches(work, stream, path)
        else:
            _in_one(work, stream, path)
    work.print_summary()
    return exits.OK


def _name(path: str) -> str:
    return "standard input" if path == "-" else path


def _opened(path: str) -> "BinaryIO":
    try:
        return open(0, "rb", closefd=False) if path == "-" else open(path, "rb")
    except OSError as error:
        raise UsageError(f"cannot read {_name(path)}: {error.strerror}") from None


def _in_one(work: Import, stream: "BinaryIO", path: str) -> None:
    batch: list[Record] = []
    size = 0
    for record in work.accepted(records(stream, _name(path))):
        batch.append(record)
        size += record.size
        if size > _MAX_BYTES:
            raise UsageError(f"{_name(path)} has more than any daemon takes in one commit; --batches makes several")
    with work.context.connect() as client:
        _suggest_batches(work, len(batch), lambda: (work.replace if work.replaces else work.write)(client, batch))


def _suggest_batches(work: Import, keys: int, write: "Callable[[], None]") -> None:
    """Call ``write``. If it is too much for one commit, raise CommandFailed, which suggests --batches."""
    from kv.errors import Refused

    try:
        write()
    except Refused as error:
        if error.code != "too_large":
            raise
        what = "the keys to set and to delete do" if work.replaces else f"{keys} keys do"
        text = f"{what} not fit into one commit: {error.message}; nothing was written; --batches makes several"
        raise CommandFailed(text) from None


def _in_batches(work: Import, stream: "BinaryIO", path: str) -> None:
    if stream.seekable():  # check all lines before the first write
        for _ in work.accepted(records(stream, _name(path))):
            pass
        work.expired = 0
        stream.seek(0)
    names: set[str] = set()
    with work.context.connect() as client, work.context.progress("B", "import") as bar:
        try:
            _write_batches(work, client, stream, path, names, bar)
            if work.replaces:
                work.delete_others(client, names)
        except UsageError as error:
            raise UsageError(f"{error.message}; {_progress_text(work)}") from None
        except Exception:
            work.context.warn(_progress_text(work))
            raise


def _progress_text(work: Import) -> str:
    return f"{work.keys} keys were written, in {work.commits} commits" if work.commits else "nothing was written"


def _write_batches(
    work: Import, client: "Client", stream: "BinaryIO", path: str, names: set[str], bar: "ProgressBar"
) -> None:
    total = os.fstat(stream.fileno()).st_size
    batch: list[Record] = []
    size = done_bytes = 0
    for record in work.accepted(records(stream, _name(path))):
        batch.append(record)
        size += record.size
        if work.replaces:
            names.add(record.key)
        if len(batch) >= _BATCH_KEYS or size >= _BATCH_BYTES:
            work.write(client, batch)
            done_bytes += size
            bar.update(done_bytes, max(total, done_bytes))
            batch, size = [], 0
    if batch:
        work.write(client, batch)
