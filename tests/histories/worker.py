"""One client process of the list-append workload: it runs transactions against a daemon and records what it sees.

`python -m tests.histories.worker SOCKET FILE NUMBER COUNT KEYS READS FAULT`: COUNT transactions over KEYS lists; READS
is the share of operations that read. FAULT plants a bug: `none`, or `blind`, which commits without a read set.
"""

import random
import sys
import time
from typing import Any

import msgspec

import kv

MAX_APPENDS = 64  # then a new list begins, because checking takes time proportional to the length of the lists
# Versions are ``kv.Position``, of which msgspec does not know that they are numbers.
encode, decode = msgspec.msgpack.Encoder(enc_hook=int).encode, msgspec.msgpack.decode


class Worker:
    """Runs transactions and records them."""

    def __init__(self, db: kv.Client, number: int, keys: int, reads: float, *, blind: bool) -> None:
        self._db = db
        self._chance = random.Random(number)  # noqa: S311 - a workload
        self._reads, self._blind = reads, blind
        self._epochs = [0] * keys
        self._next = number << 32  # each value is appended only once in the whole history
        self.records: list[tuple[Any, ...]] = []

    def run_transaction(self) -> None:
        """Run one transaction and record its outcome, whatever it is."""
        ops: list[tuple[str, str, Any]] = []
        txn = self._db.transaction()
        start, end, ok = time.monotonic_ns(), None, None
        version = snapshot = None
        try:
            with txn:
                self._operate(txn, ops)
                if self._blind:
                    txn._reads.clear()  # the planted bug
            ok, version, snapshot = True, txn.version, txn.snapshot
        except (kv.Conflict, kv.SnapshotGone):
            ok = False
        except kv.KvdError as error:
            ok = None if error.maybe_committed else False
        if ok is not None:
            end = time.monotonic_ns()
        self.records.append((start, end, ok, ops, version, snapshot))

    def _operate(self, txn: kv.Transaction, ops: list[tuple[str, str, Any]]) -> None:
        for _ in range(self._chance.randrange(1, 5)):
            slot = self._chance.randrange(len(self._epochs))
            key = f"{slot}:{self._epochs[slot]}"
            data = txn.get(key)
            values: list[int] = [] if data is None else decode(data)
            if self._chance.random() < self._reads:
                ops.append(("r", key, values))
            else:
                self._next += 1
                txn[key] = encode([*values, self._next])
                ops.append(("append", key, self._next))
            if len(values) >= MAX_APPENDS:
                self._epochs[slot] += 1


def main(path: str, file: str, number: str, count: str, keys: str, reads: str, fault: str) -> None:
    """Run all transactions, then write the records."""
    with kv.connect(path, timeout=30) as db:
        worker = Worker(db, int(number), int(keys), float(reads), blind=fault == "blind")
        for _ in range(int(count)):
            worker.run_transaction()
    with open(file, "wb") as out:
        out.write(encode(worker.records))


if __name__ == "__main__":
    main(*sys.argv[1:])
