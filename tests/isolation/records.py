"""What one client process records of its transactions, and one watcher of its feed."""

from collections.abc import Iterable
from typing import Any

import msgspec

Value = bytes | None
Identity = tuple[int, int]  # process and number of a transaction
Item = tuple[str, bytes, int]  # key, value, version


class Txn(msgspec.Struct, array_like=True):
    """One transaction, as its client saw it. Times in ns of CLOCK_MONOTONIC, one machine.

    ``ok``: whether it committed, None if it is not known; then ``end`` is None too. ``snapshot`` is None for a blind
    write. ``version`` is what the reply to the commit said. A transaction that writes also writes ``marker``.
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
        """Who it was."""
        return self.process, self.number

    @property
    def keys(self) -> set[str]:
        """All keys that it met."""
        return {*self.reads, *self.writes, *(item[0] for *_, items in self.ranges for item in items)} - {
            marker(self.process)
        }


class Session(msgspec.Struct, array_like=True):
    """One connection of a watcher: what it asked for, what it was told, and the version that it knew before."""

    prefix: str
    since: int | None
    known: int
    events: list[list[Any]]


class Recorded(msgspec.Struct, array_like=True):
    """What one process writes when it ends."""

    pid: int
    txns: list[Txn] = []
    sessions: list[Session] = []
    resent: int = 0
    cut: int = 0
    reconnected: int = 0


def marker(process: int) -> str:
    """The key that every writing transaction of a process sets to its identity: the history of it tells which were."""
    return f"by/{process}"


def mark(process: int, number: int) -> bytes:
    """What a transaction writes, wherever it writes: nobody else writes this."""
    return b"%d.%d" % (process, number)


def identity_of(value: bytes) -> Identity:
    """Who wrote ``value``."""
    process, number = value.split(b" ")[0].split(b".")
    return int(process), int(number)


def all_txns(recorded: Iterable[Recorded]) -> list[Txn]:
    """What all processes recorded."""
    return [txn for each in recorded for txn in each.txns]
