"""Hostile peers over plain TCP and over TLS: they get errors, and have no effect on other clients."""

import contextlib
import pathlib
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.harness.raw_peer import RawPeer, frame, packed
from tests.harness.scale import TIMES
from tests.harness.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon

MIB = 1024 * 1024
LIMIT = 16 * MIB
TOKEN = "a-token-of-some-length"  # noqa: S105
QUICK = "limits.frame_timeout_ms = 300\nlimits.hello_timeout_ms = 300\nlimits.stalled_peer_timeout_ms = 300\n"
MAX_CONNECTIONS = 40


class Remote:
    """A daemon that listens on TCP, plain or with TLS."""

    def __init__(self, start: "Callable[..., Daemon]", folder: pathlib.Path, *, tls: bool, more: str = "") -> None:
        config = f'{more}[listen]\ntcp = ["127.0.0.1:0"]\ntoken_file = "{folder}/token"\n'
        if tls:
            config += f'tls_certificate = "{folder}/own.pem"\ntls_key = "{folder}/own.key"\n'
        self.daemon = start(config)
        self.is_tls = tls
        listening = str(self.daemon.status()["listening"])
        self.port = int(listening.rpartition(":")[2])

    def raw(self) -> socket.socket:
        """A TCP connection that has sent nothing."""
        return socket.create_connection(("127.0.0.1", self.port), DEADLINE_S)

    def connect(self) -> RawPeer:
        """A connection that must say hello first."""
        connected = self.raw()
        if self.is_tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connected = context.wrap_socket(connected)
        return self.daemon.keep(RawPeer(connected))

    def greeted(self) -> RawPeer:
        """A connection that has said hello."""
        peer = self.connect()
        assert peer.ask(["hello", 1, "test", TOKEN])[0][0] == 1
        return peer


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A token and a certificate."""
    folder = tmp_path_factory.mktemp("credentials")
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", "/CN=test", "-keyout", "own.key", "-out", "own.pem"]  # fmt: skip
    subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)  # noqa: S603, S607
    return folder


@pytest.fixture(params=[False, True], ids=["tcp", "tls"])
def remote(
    request: pytest.FixtureRequest, start: "Callable[..., Daemon]", credentials: pathlib.Path
) -> Iterator[Remote]:
    """A daemon with short deadlines. After the test it must be the same process and have logged no error."""
    one = Remote(start, credentials, tls=request.param, more=QUICK)
    yield one
    assert one.daemon.status()["pid"] == one.daemon.process.pid
    assert "ERROR" not in one.daemon.log()
    assert "Traceback" not in one.daemon.log()


@pytest.fixture
def tls_remote(start: "Callable[..., Daemon]", credentials: pathlib.Path) -> Remote:
    return Remote(start, credentials, tls=True, more=QUICK + f"limits.max_connections = {MAX_CONNECTIONS}\n")


def is_closed(connected: socket.socket) -> bool:
    """Whether the daemon closes the connection, after any last bytes."""
    connected.settimeout(DEADLINE_S)
    try:
        while connected.recv(65_536):
            pass
    except (ConnectionError, ssl.SSLError):
        pass
    return True


# ---------------------------------------------------------------------- frames


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", bytes(range(256))])
def test_garbage_in_a_frame_is_an_error_and_the_connection_stays_open(remote: Remote, payload: bytes) -> None:
    peer = remote.greeted()
    peer.send(packed(payload))
    assert peer.receive()["error"] == "bad_request"
    assert peer.ask(["ping"]) == [True]


@pytest.mark.parametrize("length", [LIMIT + 1, 2**32 - 1])
def test_a_huge_length_gets_an_error_and_closes_the_connection(remote: Remote, length: int) -> None:
    peer = remote.greeted()
    peer.send(frame(["ping"]) + length.to_bytes(4, "big") + b"rest")
    assert peer.receive() == [True]
    assert peer.receive()["error"] == "too_large"
    assert is_closed(peer.socket)


def test_a_large_frame_before_hello_is_an_error_from_its_length_on(remote: Remote) -> None:
    peer = remote.connect()
    peer.send((LIMIT // 2).to_bytes(4, "big") + b"x")
    assert peer.receive()["error"] == "too_large"
    assert is_closed(peer.socket)


def test_a_frame_may_come_byte_by_byte(remote: Remote) -> None:
    peer = remote.greeted()
    for byte in frame(["set", {"a": b"1"}], ["get", "a"]):
        peer.send(bytes([byte]))
    assert peer.receive()[1] == b"1"


def test_large_requests_and_large_replies_work(remote: Remote) -> None:
    peer = remote.greeted()
    value = bytes(range(256)) * (8 * MIB // 256)
    assert isinstance(peer.ask(["set", {"a": value}])[0], int)
    assert peer.ask(["get", "a"]) == [value]


# ---------------------------------------------------------------------- deadlines


def test_a_peer_that_does_not_say_hello_is_closed(remote: Remote) -> None:
    assert is_closed(remote.connect().socket)


def test_a_frame_that_has_begun_must_end_in_time(remote: Remote) -> None:
    idle, slow = remote.greeted(), remote.greeted()
    slow.send(frame(["ping"])[:-1])
    assert is_closed(slow.socket)
    assert idle.ask(["ping"]) == [True], "a peer without an incomplete frame has no deadline"


def test_a_peer_that_never_reads_takes_little_memory_delays_no_client_and_is_closed(remote: Remote) -> None:
    greedy, other = remote.greeted(), remote.daemon.connect()
    other.ask(["set", {"big": bytes(MIB)}])
    before = remote.daemon.status()["memory_rss_bytes"]
    greedy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    greedy.send(frame(["get", "big"]) * 200)
    assert other.ask(["ping"]) == [True]
    assert remote.daemon.status()["memory_rss_bytes"] - before < 32 * MIB
    eventually(lambda: "it kept the server waiting" in remote.daemon.log())


# ---------------------------------------------------------------------- the handshake


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n", frame(["ping"]), bytes(1_000)])
def test_a_peer_that_never_ends_the_handshake_is_closed(tls_remote: Remote, sent: bytes) -> None:
    descriptors = tls_remote.daemon.descriptors()
    for _ in range(5):
        silent = tls_remote.raw()
        silent.sendall(sent)
        assert is_closed(silent)
        silent.close()
    eventually(lambda: tls_remote.daemon.descriptors() <= descriptors + 1)
    assert tls_remote.greeted().ask(["ping"]) == [True]


def test_a_flood_of_handshakes_stays_within_the_connection_limit(
    start: "Callable[..., Daemon]", credentials: pathlib.Path
) -> None:
    remote = Remote(
        start,
        credentials,
        tls=True,
        more=f"limits.max_connections = {MAX_CONNECTIONS}\nlimits.hello_timeout_ms = 2000\n",
    )
    before = remote.daemon.descriptors()
    own = remote.greeted()
    with contextlib.ExitStack() as sockets:
        flood = [sockets.enter_context(remote.raw()) for _ in range(5 * MAX_CONNECTIONS * TIMES)]
        with contextlib.suppress(OSError):
            for silent in flood:
                silent.sendall(b"\x16")
        assert own.ask(["ping"]) == [True], "a connected client is still served"
        assert remote.daemon.descriptors() <= before + MAX_CONNECTIONS + 2
        assert all(is_closed(silent) for silent in flood), "rejected at once, or closed at their deadline"
    with remote.greeted().socket, remote.daemon.connect().socket:
        pass  # connections are free again


def test_failed_handshakes_do_not_flood_the_log(tls_remote: Remote) -> None:
    for _ in range(200):
        with tls_remote.raw() as silent:
            silent.sendall(b"no TLS at all")
            is_closed(silent)
    log = tls_remote.daemon.log()
    assert "no TLS" in log
    assert log.count("no TLS") < 50
    assert "Traceback" not in log


def test_a_stop_ends_unfinished_handshakes(tls_remote: Remote) -> None:
    with tls_remote.raw() as silent:
        assert tls_remote.daemon.terminate() == 0
        assert is_closed(silent)


# ---------------------------------------------------------------------- places


@pytest.mark.parametrize("tls", [False, True], ids=["tcp", "tls"])
def test_strangers_that_fill_the_places_lock_nobody_out(
    start: "Callable[..., Daemon]", credentials: pathlib.Path, *, tls: bool
) -> None:
    """Their share is a quarter, and the oldest of them goes for the newest."""
    more = "limits.max_connections = 40\nlimits.hello_timeout_ms = 600000\n"
    remote = Remote(start, credentials, tls=tls, more=more)
    with contextlib.ExitStack() as silent:
        for _ in range(200):
            silent.enter_context(contextlib.closing(remote.raw()))
        own = [remote.daemon.connect() for _ in range(20)]
        assert [peer.ask(["ping"]) for peer in own] == [[True]] * 20
        assert remote.greeted().ask(["ping"]) == [True], "so is a client with a token"
        assert remote.daemon.status()["connections"] <= 20 + 1 + 10 + 1
    assert "Traceback" not in remote.daemon.log()


def test_the_last_places_are_for_root_and_the_daemons_user(
    start: "Callable[..., Daemon]", credentials: pathlib.Path
) -> None:
    remote = Remote(start, credentials, tls=False, more="limits.max_connections = 16\n")
    named = [remote.greeted() for _ in range(14)]
    assert named[0].ask(["ping"]) == [True]
    refused = remote.connect()
    assert refused.receive()["error"] == "busy"
    assert [remote.daemon.connect().ask(["ping"]) for _ in range(2)] == [[True]] * 2


def test_wrong_tokens_fill_no_log(start: "Callable[..., Daemon]", credentials: pathlib.Path) -> None:
    remote = Remote(start, credentials, tls=False)
    began = time.monotonic()
    for _ in range(300):
        with remote.connect() as peer:
            assert peer.ask(["hello", 1, "test", "wrong"])[0]["error"] == "unauthenticated"
    seconds = int(time.monotonic() - began) + 2
    assert remote.daemon.log().count("wrong or missing token") <= 10 * seconds
