"""`kv serve` under a service manager: a socket in the manager's place, descriptors passed as it passes them."""

import asyncio
import os
import pathlib
import select
import signal
import socket
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from kvd.service.config.sections import Config
from kvd.service.http import HttpSockets
from kvd.service.tcp_socket import bind_tcp_socket
from tests.harness.http_peer import HttpPeer, HttpResponse, http_request
from tests.harness.in_memory import build
from tests.harness.waiting import DEADLINE_S

if TYPE_CHECKING:
    from tests.harness.processes import Process
    from tests.harness.real_daemon import RealDaemon

WATCHDOG_US = 100_000
# Puts the descriptors named by the first argument at 3 and up, and becomes the command, as systemd does.
ACTIVATE = """
import fcntl, os, sys
copies = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1].split(",")]
for place, copy in enumerate(copies, 3):
    os.dup2(copy, place)
    os.close(copy)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(copies)), LISTEN_FDNAMES=sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
"""


class Manager:
    """A service manager's socket for messages."""

    def __init__(self, listening: socket.socket, address: str) -> None:
        self.listening = listening
        self.address = address

    def receive(self) -> list[str]:
        """The lines of the next message."""
        return self.listening.recv(4096).decode().split("\n")

    def receive_until(self, line: str) -> list[str]:
        """Return the next message that contains this line, and drop those before it."""
        while line not in (lines := self.receive()):
            pass
        return lines

    def has_message(self) -> bool:
        """Return whether a message has arrived."""
        return bool(select.select([self.listening], [], [], 0)[0])

    def is_silent_for(self, seconds: float) -> bool:
        """Return whether no message arrives for this long, after those that have arrived already."""
        while self.has_message():
            self.receive()
        return not select.select([self.listening], [], [], seconds)[0]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, kvd: "RealDaemon") -> Iterator[Manager]:
    with kvd.elsewhere() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(DEADLINE_S)
        is_abstract = request.param == "abstract"
        listening.bind(("\0" if is_abstract else "") + f"{folder}/notify")
        yield Manager(listening, ("@" if is_abstract else "") + f"{folder}/notify")


def start(kvd: "RealDaemon", manager: Manager, *flags: str, **more: str) -> "Process":
    """Start a daemon, and wait until the manager knows that it serves."""
    process = kvd.start(*flags, env=kvd.environment(NOTIFY_SOCKET=manager.address, **more))
    assert manager.receive_until("READY=1")
    return process


# ---------------------------------------------------------------------- readiness, stop and reload


def test_ready_is_sent_once_connections_are_answered_and_not_before(kvd: "RealDaemon", manager: Manager) -> None:
    os.mkfifo(f"{kvd.folder}/fifo")
    environment = kvd.at_bind(f"wait {kvd.folder}/fifo") | {"NOTIFY_SOCKET": manager.address}
    kvd.start(env=environment)
    writing = kvd.wait_at_fifo(f"{kvd.folder}/fifo")
    assert not manager.has_message()
    os.close(writing)
    assert manager.receive() == ["READY=1", f"STATUS=serving on {kvd.path}"]
    assert kvd.ask(["ping"]) == [True]


def test_a_start_that_fails_never_sends_ready(kvd: "RealDaemon", manager: Manager) -> None:
    pathlib.Path(kvd.path).touch()
    kvd.refused(78, env=kvd.environment(NOTIFY_SOCKET=manager.address))
    assert not manager.has_message()


def test_stopping_is_sent_before_the_socket_is_removed(kvd: "RealDaemon", manager: Manager) -> None:
    process = start(kvd, manager, "--config", kvd.configure("limits.drain_timeout_ms = 60000\n"))
    with kvd.connect() as peer:
        peer.ask(["set", {"big": bytes(1 << 20)}])
        peer.request(*[["get", "big"]] * 20)
        assert kvd.ask(["ping"]) == [True]
        process.terminate()
        assert manager.receive() == ["STOPPING=1", "STATUS=draining"]
        assert kvd.files() == ["s", "s.lock"]
        list(peer.frames())
    assert process.wait(30) == 0
    assert not manager.has_message()


def test_the_start_and_the_end_of_a_reload_are_sent(kvd: "RealDaemon", manager: Manager) -> None:
    process = start(kvd, manager, "--config", kvd.configure(""))
    kvd.configure("limits.max_key_bytes = 10\n")
    process.send_signal(signal.SIGHUP)
    reloading, since = manager.receive()
    assert reloading == "RELOADING=1"
    assert since.removeprefix("MONOTONIC_USEC=").isdigit()
    assert manager.receive() == ["READY=1", f"STATUS=serving on {kvd.path}"]


def test_the_end_of_a_refused_reload_is_sent_too(kvd: "RealDaemon", manager: Manager) -> None:
    process = start(kvd, manager, "--config", kvd.configure(""))
    kvd.configure("limits.max_key_bytes = 'ten'\n")
    process.send_signal(signal.SIGHUP)
    assert manager.receive()[0] == "RELOADING=1"
    assert manager.receive()[0] == "READY=1"


def test_a_reload_during_a_stop_does_not_send_ready_again(kvd: "RealDaemon", manager: Manager) -> None:
    process = start(kvd, manager)
    with kvd.connect() as peer:
        peer.ask(["set", {"big": bytes(1 << 20)}])
        peer.request(*[["get", "big"]] * 20)
        assert kvd.ask(["ping"]) == [True]
        process.terminate()
        assert manager.receive()[0] == "STOPPING=1"
        process.send_signal(signal.SIGHUP)
        list(peer.frames())
    assert process.wait(30) == 0
    assert not manager.has_message()


def test_a_missing_manager_does_no_harm(kvd: "RealDaemon", manager: Manager) -> None:
    manager.listening.close()
    assert kvd.stop(kvd.serve(env=kvd.environment(NOTIFY_SOCKET=manager.address))) == 0


# ---------------------------------------------------------------------- watchdog


def test_the_watchdog_is_fed_until_the_process_hangs(kvd: "RealDaemon", manager: Manager) -> None:
    process = start(kvd, manager, WATCHDOG_USEC=str(WATCHDOG_US))
    for _ in range(5):
        assert manager.receive() == ["WATCHDOG=1"]
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert manager.is_silent_for(5 * WATCHDOG_US / 1e6)
    process.send_signal(signal.SIGCONT)
    assert manager.receive() == ["WATCHDOG=1"]


def test_the_watchdog_is_fed_during_a_drain(kvd: "RealDaemon", manager: Manager) -> None:
    process = start(kvd, manager, WATCHDOG_USEC=str(WATCHDOG_US))
    with kvd.connect() as peer:
        peer.ask(["set", {"big": bytes(1 << 20)}])
        peer.request(*[["get", "big"]] * 20)
        assert kvd.ask(["ping"]) == [True]
        process.terminate()
        manager.receive_until("STOPPING=1")
        for _ in range(3):
            assert manager.receive() == ["WATCHDOG=1"]
        list(peer.frames())
    assert process.wait(30) == 0


def test_without_a_watchdog_nothing_is_fed(kvd: "RealDaemon", manager: Manager) -> None:
    process = start(kvd, manager, WATCHDOG_USEC=str(WATCHDOG_US), WATCHDOG_PID="1")
    assert manager.is_silent_for(3 * WATCHDOG_US / 1e6)
    assert kvd.stop(process) == 0


# ---------------------------------------------------------------------- socket activation


@pytest.fixture
def unix(kvd: "RealDaemon") -> Iterator[socket.socket]:
    """The socket of the socket unit."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(kvd.path)
        listening.listen(100)
        yield listening


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def activate(kvd: "RealDaemon", *passed: socket.socket, names: str = "", flags: tuple[str, ...] = ()) -> "Process":
    """Start a daemon with these sockets, in this order."""
    numbers = [each.fileno() for each in passed]
    # Moves the sockets to the descriptors from 3 up and becomes the command, as systemd does.
    kvd.wrapper = [sys.executable, "-c", ACTIVATE, ",".join(map(str, numbers)), names]
    return kvd.start(*flags, pass_fds=numbers, cwd=kvd.folder)


def test_a_passed_socket_is_served(kvd: "RealDaemon", unix: socket.socket) -> None:
    process = activate(kvd, unix, names="kvd", flags=("--socket", f"{kvd.folder}/unused"))
    status = kvd.status()
    assert (status["pid"], status["listening"], status["activated"]) == (process.pid, kvd.path, 1)
    assert kvd.files() == ["s", "s.lock"]


def test_several_passed_sockets_are_served(kvd: "RealDaemon", unix: socket.socket) -> None:
    with kvd.elsewhere() as folder, socket.socket(socket.AF_UNIX) as second:
        second.bind(f"{folder}/second")
        second.listen()
        activate(kvd, unix, second, names="one:two")
        kvd.ask(["set", {"a": b"1"}])
        assert kvd.status()["listening"] == f"{kvd.path} {folder}/second"
        kvd.path = f"{folder}/second"
        assert kvd.ask(["get", "a"]) == [b"1"]


def test_a_passed_socket_stays_after_the_stop(kvd: "RealDaemon", unix: socket.socket) -> None:
    process = activate(kvd, unix)
    inode = os.stat(kvd.path).st_ino
    assert kvd.ask(["ping"]) == [True]
    assert kvd.stop(process) == 0
    assert kvd.files() == ["s"]
    assert os.stat(kvd.path).st_ino == inode


def test_clients_that_connect_while_no_daemon_runs_are_answered_by_the_next(
    kvd: "RealDaemon", unix: socket.socket
) -> None:
    for _ in range(2):
        waiting = [kvd.connect() for _ in range(10)]
        for peer in waiting:
            peer.request(["ping"])
        process = activate(kvd, unix)
        for peer in waiting:
            with peer:
                assert peer.receive() == [True]
        assert kvd.stop(process) == 0


def test_the_queue_of_a_passed_socket_is_left_to_the_next_daemon(kvd: "RealDaemon", unix: socket.socket) -> None:
    """A client that is not accepted when the stop begins waits, and gets no error."""
    process = activate(kvd, unix)
    with kvd.connect() as busy:
        busy.ask(["set", {"big": bytes(1 << 20)}])
        busy.request(*[["get", "big"]] * 20)
        assert kvd.ask(["ping"]) == [True]
        process.terminate()
        kvd.eventually(lambda: kvd.log_lines()[-1] == "INFO stopping: SIGTERM")
        list(busy.frames())
    assert process.wait(30) == 0
    with kvd.connect() as peer:
        peer.request(["ping"])
        activate(kvd, unix)
        assert peer.receive() == [True]


def test_child_processes_do_not_inherit_passed_sockets(kvd: "RealDaemon", unix: socket.socket) -> None:
    """test_systemd.py shows that the variables are removed, too."""
    process = activate(kvd, unix)
    assert kvd.ask(["ping"]) == [True]
    facts = pathlib.Path(f"/proc/{process.pid}/fdinfo/3").read_text(encoding="ascii")
    (flags,) = [int(line.split()[1], 8) for line in facts.splitlines() if line.startswith("flags:")]
    assert flags & os.O_CLOEXEC


def test_a_second_daemon_of_a_passed_socket_is_refused(kvd: "RealDaemon", unix: socket.socket) -> None:
    first = activate(kvd, unix)
    assert kvd.ask(["ping"]) == [True]
    second = activate(kvd, unix)
    _, error = second.communicate(timeout=30)
    assert second.returncode == 75
    assert f"already running: pid {first.pid} " in error.decode()


def refusal(process: "Process") -> tuple[int, str]:
    """The exit code and the only line of a start that fails."""
    output, error = process.communicate(timeout=30)
    assert (output, error.count(b"\n")) == (b"", 1), error
    return process.returncode, error.decode().removeprefix("kv: error: ").rstrip("\n")


def test_a_passed_tcp_socket_needs_a_token(kvd: "RealDaemon", tcp: socket.socket) -> None:
    assert refusal(activate(kvd, tcp)) == (78, "listening on tcp 127.0.0.1 needs listen.token_file")
    assert kvd.files() == []


def test_a_passed_tcp_socket_beyond_loopback_is_refused(kvd: "RealDaemon", unix: socket.socket) -> None:
    token = kvd.write_token()
    with socket.create_server(("0.0.0.0", 0)) as everywhere:  # noqa: S104 - what the test is about
        exit_code, error = refusal(activate(kvd, unix, everywhere, flags=("--token-file", token)))
    assert (exit_code, error) == (
        78,
        "listening on tcp 0.0.0.0: beyond loopback only with TLS: set listen.tls_certificate",
    )
    assert kvd.files() == ["s"]


def test_unix_and_tcp_sockets_are_served_together(kvd: "RealDaemon", unix: socket.socket, tcp: socket.socket) -> None:
    activate(kvd, tcp, unix, names="tcp:unix", flags=("--token-file", kvd.write_token()))
    kvd.ask(["set", {"a": b"1"}])
    with kvd.connect_tcp(tcp.getsockname()[1]) as peer:
        assert peer.ask(["hello", 1, "test", kvd.token], ["get", "a"])[1] == b"1"


def test_an_abstract_socket_is_refused(kvd: "RealDaemon") -> None:
    """An abstract socket has no file permissions: every user of the host could connect."""
    with kvd.elsewhere() as folder, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{folder}")
        abstract.listen()
        exit_code, error = refusal(activate(kvd, abstract))
    assert exit_code == 78
    assert "is open to every user of this host; ListenStream= needs an absolute path" in error


def test_a_passed_socket_that_does_not_listen_is_refused_with_its_name(kvd: "RealDaemon") -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        exit_code, error = refusal(activate(kvd, silent, names="web"))
    assert exit_code == 78
    assert "descriptor 3 (web)" in error


# ---------------------------------------------------------------------- sockets for HTTP


@pytest.fixture
def web(kvd: "RealDaemon") -> Iterator[socket.socket]:
    """A Unix socket for HTTP."""
    with kvd.elsewhere() as folder, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/h")
        listening.listen(100)
        yield listening


def connect(listening: socket.socket) -> HttpPeer:
    connecting = socket.socket(listening.family)
    connecting.connect(listening.getsockname())
    return HttpPeer(connecting)


def ask(listening: socket.socket, method: str, target: str, body: bytes | None = None, **headers: str) -> HttpResponse:
    """One request over HTTP on a connection of its own."""
    with connect(listening) as client:
        return client.ask(method, target, body, **headers)


def test_passed_sockets_named_http_speak_http(
    kvd: "RealDaemon", unix: socket.socket, web: socket.socket, tcp: socket.socket
) -> None:
    activate(kvd, unix, web, tcp, names="kvd:http:http", flags=("--token-file", kvd.write_token()))
    assert ask(web, "PUT", "/v1/a", b"1").status == 201
    assert kvd.ask(["get", "a"]) == [b"1"]
    assert ask(tcp, "GET", "/v1/a").status == 401
    assert ask(tcp, "GET", "/v1/a", Authorization=f"Bearer {kvd.token}").body == b"1"
    where = f"http+unix://{web.getsockname()} http://127.0.0.1:{tcp.getsockname()[1]}"
    assert kvd.status()["listening"] == f"{kvd.path} {where}"


def test_a_detached_daemon_keeps_its_passed_sockets(kvd: "RealDaemon", unix: socket.socket, web: socket.socket) -> None:
    process = activate(kvd, unix, web, names="kvd:http", flags=("--daemon", "--http", f"{kvd.folder}/own"))
    assert process.wait(30) == 0
    assert ask(web, "PUT", "/v1/a", b"1").status == 201
    kvd.end(kvd.status()["pid"])
    assert kvd.files() == ["s"], "its own socket is removed"


def test_an_http_client_that_one_daemon_does_not_accept_is_answered_by_the_next(
    kvd: "RealDaemon", unix: socket.socket, web: socket.socket
) -> None:
    """A stop leaves the passed socket in place."""
    for _ in range(2):
        with connect(web) as early:
            early.send(http_request("GET", "/v1/none"))
            process = activate(kvd, unix, web, names="kvd:http")
            assert early.response().status == 404
            assert kvd.stop(process) == 0
            assert early.is_over()


def test_a_stop_leaves_the_queue_of_a_passed_socket_for_http_alone(web: socket.socket) -> None:
    """With a server in this process, for a connection between the last iteration of the loop and the stop."""

    async def stop_with_one_waiting() -> None:
        server = build(loop=asyncio.get_running_loop()).server
        sockets = HttpSockets(Config(), [web.dup()])
        sockets.bind(bind_tcp_socket)
        await sockets.serve(server, None)
        with connect(web) as waiting:
            await server.stop()
            web.setblocking(False)
            accepted, _ = web.accept()
            accepted.close()
            assert waiting.is_over(), "the server sent nothing"

    asyncio.run(stop_with_one_waiting())


def test_a_passed_tcp_socket_for_http_needs_authentication(
    kvd: "RealDaemon", unix: socket.socket, tcp: socket.socket
) -> None:
    error = "listening on tcp 127.0.0.1 needs listen.token_file"
    assert refusal(activate(kvd, unix, tcp, names="kvd:http")) == (78, error)
    process = activate(kvd, unix, tcp, names="kvd:http", flags=("--http-open",))
    assert ask(tcp, "PUT", "/v1/a", b"1").status == 201, "without it only if http.open says so"
    assert kvd.stop(process) == 0


@pytest.mark.parametrize(
    ("is_open", "problem"),
    [(True, "http.open is for loopback alone"), (False, "beyond loopback only with TLS: set listen.tls_certificate")],
)
def test_a_passed_tcp_socket_for_http_beyond_loopback_is_refused(
    kvd: "RealDaemon", unix: socket.socket, is_open: bool, problem: str
) -> None:
    flags = ("--http-open",) if is_open else ("--token-file", kvd.write_token())
    with socket.create_server(("0.0.0.0", 0)) as everywhere:  # noqa: S104 - what the test is about
        outcome = refusal(activate(kvd, unix, everywhere, names="kvd:http", flags=flags))
    assert outcome == (78, f"listening on tcp 0.0.0.0: {problem}")
    assert kvd.files() == ["s"]


def test_open_http_without_a_socket_is_refused(kvd: "RealDaemon", unix: socket.socket) -> None:
    exit_code, error = refusal(activate(kvd, unix, names="kvd", flags=("--http-open",)))
    assert exit_code == 78
    assert error == "http.open: it has no effect without http.listen or a passed socket called http"
