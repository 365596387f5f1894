"""One client process: transactions over the bare wire, with ranges and deletions, recorded as they are seen from here.

`python -m tests.isolation.worker SOCKET FILE PLAN`. A transaction is what any client would do with two frames: one that
begins and reads, one that commits. Connections may be cut around a commit (`cuts`), and the daemon may go away: then
the outcome is what the same commit with the same id is told on the next connection, or it stays unknown. `bug` lets
the worker itself do something wrong, to see that it is found.
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
    """What to play. ``cuts`` is the share of commits whose connection is cut, ``read_only`` that of transactions."""

    number: int
    count: int
    keys: int
    read_only: float = 0.25
    blind: float = 0.1
    cuts: float = 0.0
    pad: int = 0
    bug: str = ""
    until: str = ""  # play on until this file is there


# Planted bugs: where a transaction reads instead of at its snapshot.
WRONG_PLACES: dict[str, Callable[[int], int | None]] = {
    "reads what is current": lambda _: None,
    "reads what was": lambda snapshot: max(0, snapshot - 5),
}


def _placed(reads: list[list[object]], at: int | None) -> list[list[object]]:
    return [[*read, at] for read in reads]


class Connection:
    """Frames out and in, on one stream after the other."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.begun = 0
        self.store_id: str | None = None
        self.open()

    def open(self) -> None:
        """Connect, for as long as the daemon may be away."""
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
        self.begun += 1

    def send(self, *requests: object, share: float = 1.0) -> None:
        """One frame, or only a part of it."""
        payload = encode(requests)
        frame = len(payload).to_bytes(4, "big") + payload
        self._socket.sendall(frame[: max(1, int(len(frame) * share))])

    def receive(self) -> Any:  # noqa: ANN401 - replies
        """The next frame. Raises EOFError where the stream ends, or is going to."""
        head = self._stream.read(4)
        body = self._stream.read(int.from_bytes(head, "big"))
        if len(head) < 4 or not body:
            raise EOFError
        replies = decode(body)
        if isinstance(replies, dict):
            raise EOFError(replies["error"])
        return replies

    def ask(self, *requests: object) -> Any:  # noqa: ANN401 - replies
        """The replies to one frame. Raises OSError, EOFError."""
        self.send(*requests)
        return self.receive()

    def close(self) -> None:
        """In the middle of whatever it is."""
        self._socket.close()
        if hasattr(self, "_stream"):
            self._stream.close()


class Worker:
    """Plays and records."""

    def __init__(self, path: str, plan: Plan) -> None:
        self._plan = plan
        self._chance = random.Random(plan.number)  # noqa: S311 - a workload
        self._connection = Connection(path)
        self._known = 0
        self._to_end: list[int] = []  # snapshots to be given back with the next frame
        self.recorded = Recorded(os.getpid())

    def play(self) -> None:
        """All transactions of the plan."""
        for number in range(self._plan.count):
            if number % 64 == 0 and self._plan.until and os.path.exists(self._plan.until):
                break
            try:
                txn = self._read(number)
            except (OSError, EOFError):  # nothing was asked for that could have happened
                self._reconnect()
                continue
            if txn.writes:
                self._commit(txn)
            self.recorded.txns.append(txn)
        self.recorded.reconnected = self._connection.begun - 1

    def _key(self) -> str:
        return f"k/{self._chance.randrange(self._plan.keys):03}"

    # ------------------------------------------------------------------ reading

    def _read(self, number: int) -> Txn:
        """A transaction that has read what it wants, and knows what it wants to write."""
        plan, chance = self._plan, self._chance
        txn = Txn(plan.number, number, time.monotonic_ns(), None, True, None, None, {}, [], {})
        is_blind = chance.random() < plan.blind
        if not is_blind:
            keys = [self._key() for _ in range(chance.randint(1, 3))]
            ranges = [sorted((self._key(), self._key()))] if chance.random() < 0.5 else []
            self._look(txn, list(dict.fromkeys(keys)), [(start, end) for start, end in ranges if start < end])
            txn.end = time.monotonic_ns()
        if is_blind or chance.random() >= plan.read_only:
            self._choose_writes(txn)
        return txn

    def _look(self, txn: Txn, keys: list[str], ranges: list[tuple[str, str]]) -> None:
        """Begin and read: all in one frame, or what comes last of it in a second one, later."""
        begin = [*(["end", snapshot] for snapshot in self._to_end), ["begin"]]
        self._to_end.clear()
        ask, wrong_place = self._connection.ask, WRONG_PLACES.get(self._plan.bug)
        asked: list[list[object]] = [["fetch", keys], *(["scan", start, end, 1_000] for start, end in ranges)]
        first = 0 if wrong_place else self._chance.randint(0, 2 * len(asked))
        snapshot, *seen = ask(*begin, *_placed(asked[:first], -1))[len(begin) - 1 :]
        if asked[first:]:
            seen += ask(*_placed(asked[first:], wrong_place(snapshot) if wrong_place else snapshot))
        txn.snapshot = self._known = snapshot
        self._to_end.append(snapshot)
        txn.reads = {key: (value, version) for key, (value, version, *_) in zip(keys, seen[0], strict=True)}
        for (start, end), (items, following) in zip(ranges, seen[1:], strict=True):
            assert following is None, "one page holds them all"
            txn.ranges.append((start, end, items))

    def _choose_writes(self, txn: Txn) -> None:
        """Mostly of what it has read; a quarter deletes."""
        value: bytes = mark(txn.process, txn.number) + b" " * bool(self._plan.pad) + b"." * self._plan.pad
        met = [*txn.reads, *(item[0] for *_, items in txn.ranges for item in items)]
        for _ in range(self._chance.randint(1, 2)):
            key = self._chance.choice(met) if met and self._chance.random() < 0.7 else self._key()
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
                txn.ok, txn.end = False, time.monotonic_ns()  # half a frame never runs
                raise EOFError
            self._connection.send(*frame)
            if cut:
                raise EOFError
            self._settle(txn, self._connection.receive()[0])
        except (OSError, EOFError):
            self.recorded.cut += cut
            self._reconnect()
            if txn.ok is None and self._chance.random() < 0.5:
                self._ask_again(txn, frame[0])

    def _request(self, txn: Txn) -> list[object]:
        bug = self._plan.bug
        reads = {key: version for key, (_, version) in txn.reads.items()}
        ranges = [(start, end) for start, end, _ in txn.ranges]
        if bug == "forgets reads":
            reads, ranges = {}, []
        elif bug == "forgets ranges":
            ranges = []
        how = {"id": os.urandom(16), "since": self._known}
        return ["commit", txn.writes, reads, ranges, txn.snapshot, how]

    def _ask_again(self, txn: Txn, request: object) -> None:
        """The same request with the same id: it is done once, or was."""
        try:
            self._settle(txn, self._connection.ask(request)[0])
            self.recorded.resent += 1
        except (OSError, EOFError):
            self._reconnect()

    def _settle(self, txn: Txn, reply: Reply) -> None:
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
    """Play, then write down what was seen."""
    worker = Worker(path, msgspec.json.decode(plan, type=Plan))
    worker.play()
    with open(file, "wb") as out:
        out.write(encode(worker.recorded))


if __name__ == "__main__":
    main(*sys.argv[1:])
