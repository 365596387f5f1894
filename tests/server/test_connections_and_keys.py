"""What belongs to a connection: the author of its commits, its ephemeral keys, and its snapshots."""

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.waiting import eventually

if TYPE_CHECKING:
    from tests.harness.watched_daemon import WatchedDaemon
    from tests.server.conftest import Start

# A client in its own process: it sends one frame, prints the reply, and stays until its standard input ends.
CLIENT = """if True:
    import socket, sys
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(sys.argv[1])
    connection.sendall(bytes.fromhex(sys.argv[2]))
    reply = connection.recv(65536)
    print(reply.hex(), flush=True)
    sys.stdin.read()
"""
Client = subprocess.Popen[str]
Run = Callable[..., Client]


@pytest.fixture
def run(daemon: "WatchedDaemon") -> Iterator[Run]:
    """Start clients that send these requests. Return once the reply has come."""
    from tests.harness.raw_peer import frame

    clients: list[Client] = []

    def start(*requests: object, **options: Any) -> Client:  # noqa: ANN401 - of Popen
        client = subprocess.Popen(  # noqa: S603 - our own code
            [sys.executable, "-c", CLIENT, daemon.path, frame(*requests).hex()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", **options,
        )  # fmt: skip
        clients.append(client)
        assert client.stdout is not None
        assert client.stdout.readline().strip()
        return client

    yield start
    for client in clients:
        client.kill()
        client.communicate()


def ephemeral(key: str, value: bytes = b"here") -> list[object]:
    return ["set", {key: value}, {"ephemeral": True}]


def is_there(daemon: "WatchedDaemon", key: str) -> bool:
    return daemon.ask(["get", key]) != [None]


# ---------------------------------------------------------------------- ephemeral keys


def test_an_ephemeral_key_is_deleted_when_its_connection_is_closed(daemon: "WatchedDaemon") -> None:
    with daemon.connect() as peer:
        peer.ask(ephemeral("a"), ["set", {"stays": b""}])
        assert is_there(daemon, "a")
    eventually(lambda: not is_there(daemon, "a"), "for the key to be deleted")
    assert is_there(daemon, "stays")


def test_an_ephemeral_key_is_deleted_by_its_author_when_the_process_is_killed(
    daemon: "WatchedDaemon", run: Run
) -> None:
    with daemon.connect() as watching:
        watching.ask(["watch", "lock/"])
        client = run(ephemeral("lock/a"))
        client.kill()
        events: list[Any] = []
        while len(events) < 3:
            events += watching.receive()
    (live, written, deleted) = events
    assert (live[0], written[4], deleted[4]) == ("live", {"lock/a": b"here"}, {"lock/a": None})
    assert written[3] == deleted[3] == [os.getuid(), client.pid, written[3][2]]
    assert written[3][2].startswith("python")


def test_an_ephemeral_key_stays_while_its_process_is_paused(daemon: "WatchedDaemon", run: Run) -> None:
    client = run(ephemeral("a"))
    os.kill(client.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, client.pid, os.WSTOPPED | os.WNOWAIT)
    daemon.has_read()
    assert is_there(daemon, "a")
    os.kill(client.pid, signal.SIGKILL)
    eventually(lambda: not is_there(daemon, "a"), "for the key to be deleted")


def test_an_ephemeral_key_stays_while_another_descriptor_holds_the_connection_open(
    daemon: "WatchedDaemon", run: Run
) -> None:
    """A connection ends when its last descriptor is closed: the kernel decides, not the process."""
    peer = daemon.connect()
    peer.ask(ephemeral("a"))
    copy = os.dup(peer.socket.fileno())
    peer.close()
    daemon.has_read()
    assert is_there(daemon, "a")
    os.close(copy)
    eventually(lambda: not is_there(daemon, "a"), "for the key to be deleted")


@pytest.mark.parametrize(
    ("write", "survives"),
    [
        (["set", {"a": b"mine"}], True),
        (["set", {"a": b"mine"}, {"ttl": 100_000}], True),
        (["set", {"a": b"mine"}, {"keep_ttl": True}], False),
        (["commit", {"a": b"mine"}], True),
        (["touch", ["a"], 100_000], False),
    ],
)
def test_another_write_makes_it_an_ordinary_key(daemon: "WatchedDaemon", write: list[object], survives: bool) -> None:
    with daemon.connect() as peer:
        peer.ask(ephemeral("a"), ephemeral("mark"))
        daemon.ask(write)
    eventually(lambda: not is_there(daemon, "mark"), "for the connection to end")
    assert is_there(daemon, "a") == survives


def test_a_key_that_another_connection_takes_over_is_deleted_with_that_connection(daemon: "WatchedDaemon") -> None:
    with daemon.connect() as second:
        with daemon.connect() as first:
            first.ask(ephemeral("a"), ephemeral("mark"))
            second.ask(ephemeral("a", b"taken"))
        eventually(lambda: not is_there(daemon, "mark"), "for the first connection to end")
        assert is_there(daemon, "a")
    eventually(lambda: not is_there(daemon, "a"), "for the second connection to end")


def test_an_ephemeral_key_is_deleted_when_the_server_closes_the_connection(start: "Start") -> None:
    daemon = start("limits.frame_timeout_ms = 50\n", tcp=True)
    with daemon.greeted() as peer:
        peer.ask(ephemeral("a"))
        peer.send(b"\0")  # the first byte of a frame that never ends
        assert peer.says_nothing_more()
        eventually(lambda: not is_there(daemon, "a"), "for the key to be deleted")


# ---------------------------------------------------------------------- authors


def author_of(daemon: "WatchedDaemon", key: str) -> Any:  # noqa: ANN401 - [uid, pid, name]
    return daemon.ask(["history", key, 1])[0][0][3]


def test_on_a_unix_socket_the_author_comes_from_the_kernel(daemon: "WatchedDaemon", run: Run) -> None:
    client = run(["set", {"a": b""}])
    name = pathlib.Path(f"/proc/{client.pid}/comm").read_text().strip()
    assert author_of(daemon, "a") == [os.getuid(), client.pid, name]
    daemon.ask(["set", {"a": b""}])
    own_name = pathlib.Path("/proc/self/comm").read_text().strip()
    assert author_of(daemon, "a") == [os.getuid(), os.getpid(), own_name]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_another_user_is_the_author_of_its_writes(daemon: "WatchedDaemon", run: Run) -> None:
    os.chmod(daemon.path, 0o666)  # noqa: S103 - another user must be able to connect
    for folder in pathlib.Path(daemon.path).parents[:2]:
        folder.chmod(0o711)
    client = run(["set", {"a": b""}], user=65_533, group=65_533, extra_groups=[])
    assert author_of(daemon, "a")[:2] == [65_533, client.pid]


def test_over_tcp_the_author_is_the_remote_address(start: "Start") -> None:
    daemon = start(tcp=True)
    with daemon.greeted() as peer:
        peer.ask(["set", {"a": b""}])
        assert author_of(daemon, "a") == [None, None, "tcp {}:{}".format(*peer.socket.getsockname())]


# ---------------------------------------------------------------------- snapshots


def test_a_snapshot_ends_with_its_connection(start: "Start") -> None:
    daemon = start("history.max_versions = 0\nlimits.snapshot_idle_timeout_ms = 86400000\n")

    def can_be_read(snapshot: int) -> bool:
        daemon.ask(["set", {"a": b"new"}])
        return daemon.ask(["get_many", ["a"], snapshot]) == [[b"old"]]

    daemon.ask(["set", {"a": b"old"}])
    with daemon.connect() as peer:
        snapshot = peer.ask(["begin"])[0]
        assert can_be_read(snapshot)
        assert can_be_read(snapshot)
    eventually(lambda: not can_be_read(snapshot), "for the snapshot to end")


def test_an_unread_snapshot_is_released_and_one_that_is_read_is_not(start: "Start") -> None:
    daemon = start("history.max_versions = 0\nlimits.snapshot_idle_timeout_ms = 500\n")
    daemon.ask(["set", {"a": b"old"}])
    with daemon.connect() as peer, daemon.connect() as other:
        idle = peer.ask(["begin"])[0]
        daemon.ask(["set", {"a": b"used"}])
        used = other.ask(["begin"])[0]

        def is_released() -> bool:
            daemon.ask(["set", {"a": b"new"}])
            assert other.ask(["get_many", ["a"], used]) == [[b"used"]]
            return bool(daemon.ask(["get_many", ["a"], idle]) != [[b"old"]])

        eventually(is_released, "for the idle snapshot to be released")
        assert peer.ask(["end", idle]) == [False]
        assert other.ask(["end", used]) == [True]
