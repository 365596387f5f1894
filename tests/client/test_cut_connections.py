"""A connection cut at every byte of a write's request and of its reply: the write is made once, or known not to be.

Between the client and a real daemon is a proxy, which passes a number of bytes in one direction and then cuts.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

import kv
from tests.harness.waiting import DEADLINE_S

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon

ENOUGH = 1 << 30
Connect = Callable[..., kv.Client]


class Proxy:
    """Passes bytes on. ``cut_after`` a number of bytes, to the daemon or back, it ends the connection, once."""

    def __init__(self, address: str, daemon: str) -> None:
        self.address = address
        self._daemon = daemon
        self._guard = threading.Lock()
        self._remaining = {"request": ENOUGH, "reply": ENOUGH}
        self.passed = {"request": 0, "reply": 0}
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(address)
        self._listening.listen()
        self._ends: list[socket.socket] = []
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, direction: str, count: int) -> None:
        with self._guard:
            self._remaining[direction] = count

    def heal(self) -> None:
        with self._guard:
            self._remaining = {"request": ENOUGH, "reply": ENOUGH}

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            daemon = socket.socket(socket.AF_UNIX)
            daemon.connect(self._daemon)
            self._ends += [client, daemon]
            for direction, source, target in (("request", client, daemon), ("reply", daemon, client)):
                threading.Thread(target=self._pass, args=(direction, source, target), daemon=True).start()

    def _pass(self, direction: str, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                with self._guard:
                    part = data[: self._remaining[direction]]
                    self._remaining[direction] -= len(part)
                    self.passed[direction] += len(part)
                    cut = len(part) < len(data) or self._remaining[direction] == 0
                    if cut:
                        self._remaining = {"request": ENOUGH, "reply": ENOUGH}
                        self.cuts += 1
                target.sendall(part)
                if cut:
                    break
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def proxy(shared_daemon: "Daemon", tmp_path: Any) -> Iterator[Proxy]:  # noqa: ANN401
    proxy = Proxy(f"{tmp_path}/proxy.sock", shared_daemon.address)
    yield proxy
    proxy.end()


def increment(db: kv.Client, key: str) -> None:
    assert db.increment(key) == 1


def transaction(db: kv.Client, key: str) -> None:
    with db.transaction() as txn:
        txn.set(key, str(int(txn.get(key, b"0") or b"") + 1).encode())


def commit(db: kv.Client, key: str) -> None:
    db.commit({key: b"1", "other": b"x" * 20}, reads={key: 0})


def set_(db: kv.Client, key: str) -> None:
    db.set(key, b"1")


@pytest.mark.parametrize("write", [increment, transaction, commit, set_])
@pytest.mark.parametrize("direction", ["request", "reply"])
def test_a_write_is_made_once_wherever_its_connection_is_cut(
    open_client: Connect,
    connect: Connect,
    proxy: Proxy,
    shared_daemon: "Daemon",
    direction: str,
    write: Callable[[kv.Client, str], None],
) -> None:
    """The client knows the store already, so it can always find out: no CommitUnknown is allowed here."""
    observer = connect(shared_daemon.address, timeout=DEADLINE_S)
    db = open_client(proxy.address, timeout=DEADLINE_S)
    count, total = 0, ENOUGH
    while count < total:
        db.ping()
        key = f"{write.__name__}:{direction}:{count}:{os.urandom(4).hex()}"
        before, cuts = proxy.passed[direction], proxy.cuts
        proxy.cut_after(direction, count + 1)
        write(db, key)
        proxy.heal()
        if proxy.cuts == cuts:  # the write needed fewer bytes
            total = count
            assert proxy.passed[direction] - before <= count
        history = [entry.value for entry in observer.history(key)]
        assert history == [b"1"], f"cut after byte {count + 1} of the {direction}"
        count += 1
    assert count > (50 if direction == "request" else 4), "it went through the whole write"


@pytest.mark.parametrize("direction", ["request", "reply"])
def test_the_first_write_of_a_client_is_made_once_or_reported_as_unknown(
    open_client: Connect, connect: Connect, proxy: Proxy, shared_daemon: "Daemon", direction: str
) -> None:
    """If the cut comes before the daemon has said which store it has, the client reports an unknown outcome."""
    assert 1 in outcomes_of_first_writes(open_client, connect, proxy, shared_daemon, direction)


@pytest.mark.parametrize("direction", ["request", "reply"])
def test_the_first_write_of_a_client_is_never_made_twice_by_a_daemon_that_remembers_no_ids(
    open_client: Connect,
    connect: Connect,
    start_daemon: Callable[..., "Daemon"],
    tmp_path: Any,  # noqa: ANN401
    direction: str,
) -> None:
    forgetful = start_daemon(KVD_LIMITS_MAX_REMEMBERED_WRITES="0")
    proxy = Proxy(f"{tmp_path}/proxy.sock", forgetful.address)
    try:
        outcomes_of_first_writes(open_client, connect, proxy, forgetful, direction)
    finally:
        proxy.end()


def outcomes_of_first_writes(
    open_client: Connect, connect: Connect, proxy: Proxy, daemon: "Daemon", direction: str
) -> set[int | None]:
    """Cut the first write of a client after each byte; see that what it reports is so. Return what it reported."""
    observer = connect(daemon.address, timeout=DEADLINE_S)
    outcomes: set[int | None] = set()
    count, cuts = 0, -1
    while cuts != proxy.cuts:
        cuts = proxy.cuts
        key = f"first:{direction}:{count}:{os.urandom(4).hex()}"
        db = open_client(proxy.address, timeout=DEADLINE_S)
        count += 1
        proxy.cut_after(direction, count)
        try:
            db.increment(key)
            outcome = 1
        except (kv.ConnectionLost, kv.Unavailable) as error:
            outcome = None if error.maybe_committed else 0
        proxy.heal()
        db.close()
        commits = len(list(observer.history(key)))
        assert commits == outcome or (outcome is None and commits <= 1), f"cut after byte {count} of the {direction}"
        outcomes.add(outcome)
    assert count > 20
    return outcomes


@pytest.mark.parametrize("direction", ["request", "reply"])
def test_a_watch_loses_nothing_wherever_it_is_cut(
    open_client: Connect, connect: Connect, proxy: Proxy, shared_daemon: "Daemon", direction: str
) -> None:
    writer = connect(shared_daemon.address, timeout=DEADLINE_S)
    prefix = f"watched:{os.urandom(4).hex()}:"
    for count in range(1, 400, 7):
        db = open_client(proxy.address, timeout=DEADLINE_S)
        with db.watch(prefix) as watch:
            version = watch.version
            proxy.cut_after(direction, count)
            for number in range(3):
                writer.set(f"{prefix}{number}", str(count).encode())
            seen = [watch.wait(DEADLINE_S) for _ in range(3)]
            proxy.heal()
            assert [change and change.writes for change in seen] == [
                {f"{prefix}{number}": str(count).encode()} for number in range(3)
            ]
            versions = [change.version for change in seen if change is not None]
            assert versions == sorted(set(versions))
            assert version is not None
            assert version < versions[0]
            assert watch.version == versions[-1]
        db.close()


@pytest.mark.parametrize("direction", ["request", "reply"])
def test_a_lock_has_one_holder_at_a_time_wherever_a_connection_is_cut(
    open_client: Connect, connect: Connect, proxy: Proxy, shared_daemon: "Daemon", direction: str
) -> None:
    uncut = connect(shared_daemon.address, timeout=DEADLINE_S)
    name = f"cut-{os.urandom(4).hex()}"
    tokens = []
    for count in range(1, 400, 3):
        db = open_client(proxy.address, timeout=DEADLINE_S)
        db.ping()
        proxy.cut_after(direction, count)
        try:
            with db.lock(name, timeout=DEADLINE_S) as token:
                tokens.append(token)
        except (kv.LockLost, kv.CommitUnknown, kv.ConnectionLost):
            pass
        proxy.heal()
        db.close()
        with uncut.lock(name, timeout=DEADLINE_S) as token:  # no contender that was cut is still ahead
            tokens.append(token)
    assert tokens == sorted(set(tokens))
