"""``kv import``: set keys from lines as ``kv export`` writes them, in one commit if they fit into one."""

import os
import time

from kv.cli.context import Context, checked_prefix
from kv.cli.durations import MAX_S
from kv.cli.failures import CommandFailed, UsageError
from kv.cli.input import STDIN, name_of, open_input
from kv.cli.numbers import plural
from kv.cli.parser import Parser, set_completer
from kv.cli.records import Record, records
from kv.cli.writing import SyncOption, add_sync
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from kv.api.transactions import Transaction
    from kv.blocking.client import Client
    from kv.errors import Refused
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
meanwhile is a conflict (exit code 3) if it goes on through several attempts; nothing was written then. An input without
a key to set, which may be what a failed command has left, is refused with --replace, unless --allow-empty is given.
"""
_BATCH_KEYS = 5_000
_BATCH_BYTES = 2 * 1024 * 1024
_MAX_BYTES = 256 * 1024 * 1024
# An export rounds an expiry to the second, so the longest life may seem longer when it is read back at once.
_ROUNDING_US = 1_000_000
_MAX_LIFETIME_US = int(MAX_S * 1_000_000)


class Options(SyncOption):
    """The options of ``kv import``."""

    merge: bool = False
    replace: bool = False
    allow_empty: bool = False
    prefix: str = ""
    batches: bool = False
    dry_run: bool = False


def arguments(parser: Parser) -> None:
    """The options of ``kv import``."""
    parser.operands("FILE", "lines of JSON; '-' or nothing: standard input", "files")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--merge", action="store_true", help="leave other keys as they are (default)")
    way.add_argument("--replace", action="store_true", help="delete all other keys")
    parser.add_argument("--allow-empty", action="store_true", help="with --replace: the input may have no keys at all")
    set_completer(parser.add_argument("--prefix", metavar="PREFIX", help="only keys that begin with it"), "prefixes")
    parser.add_argument("--batches", action="store_true", help="in several commits, if it does not fit into one")
    parser.add_argument("-n", "--dry-run", action="store_true", help="read and check everything; write nothing")
    add_sync(parser)


class Import:
    """One import: where it reads, its options, and the counts of what it has done."""

    def __init__(self, context: Context, options: Options, stream: "BinaryIO", name: str) -> None:
        self.context = context
        self.stream = stream
        self.name = name
        self.prefix = checked_prefix(options.prefix)
        self.replaces = options.replace
        self.sync = options.sync
        self.keys = self.expired = self.deleted = self.commits = 0
        self._allows_empty = options.allow_empty

    def records(self) -> "Iterator[Record]":
        """Yield the records to write, without those that have expired. Raises UsageError."""
        for record in records(self.stream, self.name):
            left_us = 0 if record.expires is None else record.expires - time.time_ns() // 1000
            if not record.key.startswith(self.prefix):
                raise UsageError(self.at_line(record, f"the key {record.key!r} does not begin with {self.prefix!r}"))
            if left_us > _MAX_LIFETIME_US + _ROUNDING_US:
                raise UsageError(self.at_line(record, "it would expire in more than a hundred years"))
            if record.expires is not None and left_us <= 0:
                self.expired += 1
            else:
                yield record

    def at_line(self, record: Record, text: str) -> str:
        """Return ``text`` with the line of a record before it."""
        return f"line {record.line} of {self.name}: {text}"

    def check_not_empty(self, keys: int) -> None:
        """Raise UsageError if there is nothing to set and all other keys would be deleted."""
        if self.replaces and not keys and not self._allows_empty:
            below = f" that begin with {self.prefix!r}" if self.prefix else ""
            what = "only keys that have expired" if self.expired else "no keys"
            raise UsageError(
                f"{self.name} has {what}, so --replace would delete all keys{below}; nothing was deleted; "
                "add --allow-empty if that is meant"
            )

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
        ttl = None if record.expires is None else min(MAX_S, max(0.001, (record.expires - now_us) / 1e6))
        txn.set(record.key, record.value, ttl=ttl)


def run(context: Context, options: Options) -> int:
    """Import, and print ``Imported: 123 keys``."""
    operands = options.operands
    if len(operands) > 1:
        raise UsageError("kv import takes one file")
    if options.allow_empty and not options.replace:
        raise UsageError("--allow-empty is for --replace")
    path = operands[0] if operands else STDIN
    with open_input(path) as stream:
        work = Import(context, options, stream, name_of(path))
        if options.dry_run:
            _rehearse(work)
            return exits.OK
        if options.batches:
            _in_batches(work)
        else:
            _in_one(work)
    work.print_summary()
    return exits.OK


def _rehearse(work: Import) -> None:
    keys = sum(1 for _ in work.records())
    work.check_not_empty(keys)
    expired = f", {work.expired} have expired" if work.expired else ""
    work.context.print(f"would import {plural(keys, 'key')}{expired}")


def _in_one(work: Import) -> None:
    batch: list[Record] = []
    size = 0
    for record in work.records():
        batch.append(record)
        size += record.size
        if size > _MAX_BYTES:
            raise UsageError(f"{work.name} has more than any daemon takes in one commit; --batches makes several")
    work.check_not_empty(len(batch))
    with work.context.connect() as client:
        _explain_too_large(work, batch, lambda: (work.replace if work.replaces else work.write)(client, batch))


def _explain_too_large(work: Import, batch: list[Record], write: "Callable[[], None]") -> None:
    """Call ``write``. If ``batch`` is too much for one commit, raise CommandFailed, which says what to do."""
    from kv.errors import Refused

    try:
        write()
    except Refused as error:
        if error.code != "too_large":
            raise
        culprit = _culprit(batch, error)
        if culprit is not None:
            text = f"{work.at_line(culprit, error.message)}; {_progress_text(work)}"
            raise CommandFailed(text) from None
        what = "the keys to set and to delete do" if work.replaces else f"{len(batch)} keys do"
        text = f"{what} not fit into one commit: {error.message}; {_progress_text(work)}; --batches makes several"
        raise CommandFailed(text) from None


def _culprit(batch: list[Record], error: "Refused") -> Record | None:
    """Return the record that is too large by itself, which no division into commits helps."""
    limit = error.fields.get("limit")
    if limit == "max_key_bytes":
        return max(batch, key=lambda record: len(record.key.encode()))
    if limit == "max_value_bytes":
        return max(batch, key=lambda record: len(record.value))
    return batch[0] if len(batch) == 1 else None


def _in_batches(work: Import) -> None:
    if work.stream.seekable():  # check all lines before the first write
        start = work.stream.tell()
        work.check_not_empty(sum(1 for _ in work.records()))
        work.expired = 0
        work.stream.seek(start)
    names: set[str] = set()
    with work.context.connect() as client, work.context.progress("B", "import") as bar:
        try:
            _write_batches(work, client, names, bar)
            work.check_not_empty(work.keys)
            if work.replaces:
                work.delete_others(client, names)
        except UsageError as error:
            raise UsageError(f"{error.message}; {_progress_text(work)}") from None
        except Exception as error:
            if not isinstance(error, CommandFailed):  # which says it itself
                work.context.warn(_progress_text(work))
            raise


def _progress_text(work: Import) -> str:
    return f"{work.keys} keys were written, in {work.commits} commits" if work.commits else "nothing was written"


def _write_batches(work: Import, client: "Client", names: set[str], bar: "ProgressBar") -> None:
    total = os.fstat(work.stream.fileno()).st_size
    batch: list[Record] = []
    size = done_bytes = 0
    for record in work.records():
        batch.append(record)
        size += record.size
        if work.replaces:
            names.add(record.key)
        if len(batch) >= _BATCH_KEYS or size >= _BATCH_BYTES:
            _write_batch(work, client, batch)
            done_bytes += size
            bar.update(done_bytes, max(total, done_bytes))
            batch, size = [], 0
    if batch:
        _write_batch(work, client, batch)


def _write_batch(work: Import, client: "Client", batch: list[Record]) -> None:
    _explain_too_large(work, batch, lambda: work.write(client, batch))
