"""One client process: it sends transactions with ranges and deletions as raw frames, and records what it sees.

`python -m tests.isolation.worker SOCKET FILE PLAN`. A transaction takes two frames, as with any client: one begins and
reads, one commits. Connections may be cut around a commit (`cuts`), and the daemon may stop. Then the worker may send
the same commit with the same id on the next connection, and records that outcome; otherwise the outcome stays unknown.
`bug` plants a bug in the worker itself, which the checkers must find.
"""

import os
import random
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from tests.harness.waiting import DEADLINE_S
from tests.isolation.records import Recorded, Txn, mark, marker

Reply = Any
encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode


class Plan(msgspec.Struct):
    """The workload. ``cuts``: the share of commits whose connection is cut. ``read_only``: a share of transactions."""

    number: int
    count: int
    keys: int
    read_only: float = 0.25
    blind: float = 0.1
    cuts: float = 0.0
    pad: int = 0
    bug: str = ""
    until: str = ""  # run until this file exists


# Planted bugs: the version at which a transaction reads instead of its snapshot.
WRONG_VERSIONS: dict[str, Callable[[int], int | None]] = {
    "reads what is current": lambda _: None,
    "reads what was": lambda snapshot: max(0, snapshot - 5),
}


def _at_version(reads: list[list[object]], at: int | None) -> list[list[object]]:
    return [[*read, at] for read in reads]


class Connection:
    """Sends and receives frames, and reconnects after an error."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.connects = 0
        self.store_id: str | None = None
        self.open()

    def open(self) -> None:
        """Connect, and wait for the daemon if it is not running."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                self._socket = socket.socket(socket.AF_UNIX)
                self._socket.settimeout(DEADLINE_S)
                self._socket.connect(self._path)
                self._stream = self._socket.makefile("rb")
                self._greet()
                return
            except (OSError, EOFError):
                self.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def _greet(self) -> None:
        self.send(["hello", 1, "worker"])
        [hello] = self.receive()
        assert self.store_id in (None, hello[2]), "another store"
        self.store_id = hello[2]
        self.connects += 1

    def send(self, *requests: object, share: float = 1.0) -> None:
        """Send one frame, or only the first ``share`` of it."""
        payload = encode(requests)
        frame = len(payload).to_bytes(4, "big") + payload
        self._socket.sendall(frame[: max(1, int(len(frame) * share))])

    def receive(self) -> Any:  # noqa: ANN401 - replies
        """Return the next frame. Raises EOFError at the end of the stream, or at a final error."""
        head = self._stream.read(4)
        body = self._stream.read(int.from_bytes(head, "big"))
        if len(head) < 4 or not body:
            raise EOFError
        replies = decode(body)
        if isinstance(replies, dict):
            raise EOFError(replies["error"])
        return replies

    def ask(self, *requests: object) -> Any:  # noqa: ANN401 - replies
        """Return the replies to one frame. Raises OSError, EOFError."""
        self.send(*requests)
        return self.receive()

    def close(self) -> None:
        """Close, even in the middle of a frame."""
        self._socket.close()
        if hasattr(self, "_stream"):
            self._stream.close()


class Worker:
    """Runs transactions and records them."""

    def __init__(self, path: str, plan: Plan) -> None:
        self._plan = plan
        self._chance = random.Random(plan.number)  # noqa: S311 - a workload
        self._connection = Connection(path)
        self._known = 0
        self._to_end: list[int] = []  # snapshots to release with the next frame
        self.recorded = Recorded(os.getpid())

    def run(self) -> None:
        """Run all transactions of the plan."""
        for number in range(self._plan.count):
            if number % 64 == 0 and self._plan.until and os.path.exists(self._plan.until):
                break
            try:
                txn = self._read(number)
            except (OSError, EOFError):  # the frame had no write, so nothing is recorded
                self._reconnect()
                continue
            if txn.writes:
                self._commit(txn)
            self.recorded.txns.append(txn)
        self.recorded.reconnected = self._connection.connects - 1

    def _key(self) -> str:
        return f"k/{self._chance.randrange(self._plan.keys):03}"

    # ------------------------------------------------------------------ reading

    def _read(self, number: int) -> Txn:
        """Begin a transaction, make its reads, and choose its writes."""
        plan, chance = self._plan, self._chance
        txn = Txn(plan.number, number, time.monotonic_ns(), None, True, None, None, {}, [], {})
        is_blind = chance.random() < plan.blind
        if not is_blind:
            keys = [self._key() for _ in range(chance.randint(1, 3))]
            ranges = [sorted((self._key(), self._key()))] if chance.random() < 0.5 else []
            self._read_at_snapshot(
                txn, list(dict.fromkeys(keys)), [(start, end) for start, end in ranges if start < end]
            )
            txn.end = time.monotonic_ns()
        if is_blind or chance.random() >= plan.read_only:
            self._choose_writes(txn)
        return txn

    def _read_at_snapshot(self, txn: Txn, keys: list[str], ranges: list[tuple[str, str]]) -> None:
        """Begin and read: all in one frame, or some of the reads in a second frame."""
        begin = [*(["end", snapshot] for snapshot in self._to_end), ["begin"]]
        self._to_end.clear()
        ask, wrong_version = self._connection.ask, WRONG_VERSIONS.get(self._plan.bug)
        requests: list[list[object]] = [["fetch", keys], *(["scan", start, end, 1_000] for start, end in ranges)]
        first = 0 if wrong_version else self._chance.randint(0, 2 * len(requests))
        snapshot, *seen = ask(*begin, *_at_version(requests[:first], -1))[len(begin) - 1 :]
        if requests[first:]:
            seen += ask(*_at_version(requests[first:], wrong_version(snapshot) if wrong_version else snapshot))
        txn.snapshot = self._known = snapshot
        self._to_end.append(snapshot)
        txn.reads = {key: (value, version) for key, (value, version, *_) in zip(keys, seen[0], strict=True)}
        for (start, end), (items, next_page) in zip(ranges, seen[1:], strict=True):
            assert next_page is None, "one page must hold all keys"
            txn.ranges.append((start, end, items))

    def _choose_writes(self, txn: Txn) -> None:
        """Choose writes, mostly to keys that the transaction has read; a quarter are deletions."""
        value: bytes = mark(txn.process, txn.number) + b" " * bool(self._plan.pad) + b"." * self._plan.pad
        seen = [*txn.reads, *(item[0] for *_, items in txn.ranges for item in items)]
        for _ in range(self._chance.randint(1, 2)):
            key = self._chance.choice(seen) if seen and self._chance.random() < 0.7 else self._key()
            txn.writes[key] = None if self._chance.random() < 0.25 else value
        txn.writes[marker(txn.process)] = mark(txn.process, txn.number)

    # ------------------------------------------------------------------ committing

    def _commit(self, txn: Txn) -> None:
        frame = [self._request(txn), *(["end", snapshot] for snapshot in self._to_end)]
        self._to_end.clear()
        txn.ok = txn.end = None
        cut = self._chance.random() < self._plan.cuts
        try:
            if cut and self._chance.random() < 0.3:
                self._connection.send(*frame, share=self._chance.random() * 0.99)
                txn.ok, txn.end = False, time.monotonic_ns()  # an incomplete frame never runs
                raise EOFError
            self._connection.send(*frame)
            if cut:
                raise EOFError
            self._record_outcome(txn, self._connection.receive()[0])
        except (OSError, EOFError):
            self.recorded.cut += cut
            self._reconnect()
            if txn.ok is None and self._chance.random() < 0.5:
                self._send_again(txn, frame[0])

    def _request(self, txn: Txn) -> list[object]:
        bug = self._plan.bug
        reads = {key: version for key, (_, version) in txn.reads.items()}
        ranges = [(start, end) for start, end, _ in txn.ranges]
        if bug == "forgets reads":
            reads, ranges = {}, []
        elif bug == "forgets ranges":
            ranges = []
        options = {"id": os.urandom(16), "since": self._known}
        return ["commit", txn.writes, reads, ranges, txn.snapshot, options]

    def _send_again(self, txn: Txn, request: object) -> None:
        """Send the same request with the same id: it takes effect only once."""
        try:
            self._record_outcome(txn, self._connection.ask(request)[0])
            self.recorded.resent += 1
        except (OSError, EOFError):
            self._reconnect()

    def _record_outcome(self, txn: Txn, reply: Reply) -> None:
        if not isinstance(reply, dict):
            txn.ok, txn.version = True, reply
            self._known = reply
        elif reply["error"] in ("conflict", "snapshot_gone"):
            txn.ok, txn.conflicts = False, reply.get("conflicts", [])
        elif reply["error"] == "outcome_unknown":
            return
        else:
            raise AssertionError(reply)
        txn.end = time.monotonic_ns()

    def _reconnect(self) -> None:
        self._connection.close()
        self._to_end.clear()
        self._connection.open()


def main(path: str, file: str, plan: str) -> None:
    """Run the plan, then write the records."""
    worker = Worker(path, msgspec.json.decode(plan, type=Plan))
    worker.run()
    with open(file, "wb") as out:
        out.write(encode(worker.recorded))


if __name__ == "__main__":
    main(*sys.argv[1:])
