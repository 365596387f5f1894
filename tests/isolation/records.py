"""The records of client processes: their transactions, and the events of their watches."""

from collections.abc import Iterable
from typing import Any

import msgspec

Value = bytes | None
Identity = tuple[int, int]  # process and number of a transaction
Item = tuple[str, bytes, int]  # key, value, version


class Txn(msgspec.Struct, array_like=True):
    """One transaction, as its client saw it. Times are in ns of CLOCK_MONOTONIC, on one machine.

    ``ok``: whether it committed, None if that is not known; then ``end`` is None, too. ``snapshot`` is None for a blind
    write. ``version``: from the reply to the commit. A transaction that writes also writes ``marker``.
    """

    process: int
    number: int
    start: int
    end: int | None
    ok: bool | None
    snapshot: int | None
    version: int | None
    reads: dict[str, tuple[Value, int]]
    ranges: list[tuple[str, str, list[Item]]]
    writes: dict[str, Value]
    conflicts: list[tuple[str, int, int, int | None, Any]] = []

    @property
    def identity(self) -> Identity:
        """The process and the number of the transaction."""
        return self.process, self.number

    @property
    def keys(self) -> set[str]:
        """All keys that it read or wrote, without its marker."""
        return {*self.reads, *self.writes, *(item[0] for *_, items in self.ranges for item in items)} - {
            marker(self.process)
        }


class Session(msgspec.Struct, array_like=True):
    """One connection of a watcher: its request, its events, and the newest version that it knew before (``known``)."""

    prefix: str
    since: int | None
    known: int
    events: list[list[Any]]


class Recorded(msgspec.Struct, array_like=True):
    """The record that one process writes when it ends."""

    pid: int
    txns: list[Txn] = []
    sessions: list[Session] = []
    resent: int = 0
    cut: int = 0
    reconnected: int = 0


def marker(process: int) -> str:
    """Return the key that each writing transaction of a process sets to its identity; its history lists the commits."""
    return f"by/{process}"


def mark(process: int, number: int) -> bytes:
    """Return the value that a transaction writes to its keys; no other transaction writes it."""
    return b"%d.%d" % (process, number)


def identity_of(value: bytes) -> Identity:
    """Return the identity of the transaction that wrote ``value``."""
    process, number = value.split(b" ")[0].split(b".")
    return int(process), int(number)


def all_txns(records: Iterable[Recorded]) -> list[Txn]:
    """Return the transactions of all processes."""
    return [txn for each in records for txn in each.txns]
