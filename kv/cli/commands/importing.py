"""``kv import``: keys out of lines as ``kv export`` writes them, in one commit if it can be done in one."""

import os
import time

from kv.cli.context import Context
from kv.cli.failures import CommandFailed, UsageError
from kv.cli.numbers import plural
from kv.cli.parser import Parser, completed
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
_MOST_BYTES = 256 * 1024 * 1024


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
    completed(parser.add_argument("--prefix", metavar="PREFIX", help="only keys that begin with it"), "prefixes")
    parser.add_argument("--batches", action="store_true", help="in several commits, if it does not fit into one")
    parser.add_argument("-n", "--dry-run", action="store_true", help="read and check everything; write nothing")
    add_sync(parser)


class Import:
    """What was asked for, and what has been done of it."""

    def __init__(self, context: Context, options: Options) -> None:
        self.context = context
        self.prefix = options.prefix
        self.replaces = options.replace
        self.sync = options.sync
        self.keys = self.expired = self.deleted = self.commits = 0

    def wanted(self, found: "Iterable[Record]") -> "Iterator[Record]":
        """Those records that are to be written. Raises UsageError for one outside of the prefix."""
        for record in found:
            if not record.key.startswith(self.prefix):
                raise UsageError(f"the key {record.key!r} does not begin with {self.prefix!r}")
            if record.expires is not None and record.expires <= time.time_ns() // 1000:
                self.expired += 1
            else:
                yield record

    def write(self, client: "Client", batch: list[Record]) -> None:
        """Set these in one commit."""
        with client.transaction(sync=self.sync) as txn:
            _set(txn, batch)
        self.keys += len(batch)
        self.commits += 1

    def replace(self, client: "Client", all_: list[Record]) -> None:
        """Make the keys below the prefix just these, in one commit. Raises Conflict."""
        names = {record.key for record in all_}

        def make(txn: "Transaction") -> int:
            others = [item.key for item in txn.scan(self.prefix, keys_only=True) if item.key not in names]
            txn.delete(*others)
            _set(txn, all_)
            return len(others)

        self.deleted = client.run(make, sync=self.sync)
        self.keys, self.commits = len(all_), 1

    def delete_others(self, client: "Client", names: set[str]) -> None:
        """Delete the keys below the prefix that are not among ``names``, in several commits."""
        others: list[str] = []
        for item in client.scan(self.prefix, keys_only=True):
            if item.key not in names:
                others.append(item.key)
        for begin in range(0, len(others), _BATCH_KEYS):
            self.deleted += client.delete(*others[begin : begin + _BATCH_KEYS], missing_ok=True, sync=self.sync)
            self.commits += 1

    def tell(self) -> None:
        """What has been done."""
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
    """Import; ``Imported: 123 keys``."""
    operands = options.operands
    if len(operands) > 1:
        raise UsageError("kv import takes one file")
    path = operands[0] if operands else "-"
    work = Import(context, options)
    with _opened(path) as stream:
        if options.dry_run:
            work.keys = sum(1 for _ in work.wanted(records(stream, _name(path))))
            context.print(
                f"would import {plural(work.keys, 'key')}" + (f", {work.expired} have expired" if work.expired else "")
            )
            return exits.OK
        if options.batches:
            _in_batches(work, stream, path)
        else:
            _in_one(work, stream, path)
    work.tell()
    return exits.OK


def _name(path: str) -> str:
    return "standard input" if path == "-" else path


def _opened(path: str) -> "BinaryIO":
    try:
        return open(0, "rb", closefd=False) if path == "-" else open(path, "rb")
    except OSError as error:
        raise UsageError(f"cannot read {_name(path)}: {error.strerror}") from None


def _in_one(work: Import, stream: "BinaryIO", path: str) -> None:
    everything: list[Record] = []
    size = 0
    for record in work.wanted(records(stream, _name(path))):
        everything.append(record)
        size += record.size
        if size > _MOST_BYTES:
            raise UsageError(f"{_name(path)} has more than any daemon takes in one commit; --batches makes several")
    with work.context.connect() as client:
        _explaining(work, len(everything), lambda: (work.replace if work.replaces else work.write)(client, everything))


def _explaining(work: Import, keys: int, write: "Callable[[], None]") -> None:
    """Say what can be done about too much for one commit."""
    from kv.errors import Refused

    try:
        write()
    except Refused as error:
        if error.code != "too_large":
            raise
        what = "what is to be set and deleted does" if work.replaces else f"{keys} keys do"
        text = f"{what} not fit into one commit: {error.message}; nothing was written; --batches makes several"
        raise CommandFailed(text) from None


def _in_batches(work: Import, stream: "BinaryIO", path: str) -> None:
    if stream.seekable():  # all of it is checked before anything is written
        for _ in work.wanted(records(stream, _name(path))):
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
            raise UsageError(f"{error.message}; {_so_far(work)}") from None
        except Exception:
            work.context.complain(_so_far(work))
            raise


def _so_far(work: Import) -> str:
    return f"{work.keys} keys were written, in {work.commits} commits" if work.commits else "nothing was written"


def _write_batches(
    work: Import, client: "Client", stream: "BinaryIO", path: str, names: set[str], bar: "ProgressBar"
) -> None:
    total = os.fstat(stream.fileno()).st_size
    batch: list[Record] = []
    size = done = 0
    for record in work.wanted(records(stream, _name(path))):
        batch.append(record)
        size += record.size
        if work.replaces:
            names.add(record.key)
        if len(batch) >= _BATCH_KEYS or size >= _BATCH_BYTES:
            work.write(client, batch)
            done += size
            bar.update(done, max(total, done))
            batch, size = [], 0
    if batch:
        work.write(client, batch)
