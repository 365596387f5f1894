"""systemd's protocols, with a socket in the manager's place and descriptors passed as the manager passes them."""

import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvd.service import systemd

Python = Callable[..., "subprocess.CompletedProcess[bytes]"]
NAMES = (
    "NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


# ---------------------------------------------------------------------- sd_notify


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket that a service manager listens on."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        address = f"{folder}/notify"
        if request.param == "abstract":
            listening.bind("\0" + address)
            monkeypatch.setenv("NOTIFY_SOCKET", "@" + address)
        else:
            listening.bind(address)
            monkeypatch.setenv("NOTIFY_SOCKET", address)
        listening.setblocking(False)
        yield listening


def test_the_manager_gets_all_lines_in_one_message(manager: socket.socket) -> None:
    assert systemd.notify("READY=1", "STATUS=serving")
    assert manager.recv(1000) == b"READY=1\nSTATUS=serving"


def test_bytes_that_are_not_utf_8_are_escaped(manager: socket.socket) -> None:
    assert systemd.notify(os.fsdecode(b"STATUS=/run/\xff"))
    assert manager.recv(1000) == b"STATUS=/run/\\udcff"


@pytest.mark.parametrize(
    "address", [None, "", "@", "relative", "vsock:2:1234", "/no/such/socket", "@no such", "/" * 200]
)
def test_without_a_manager_notify_returns_false_and_raises_nothing(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.notify("READY=1")


def test_notify_does_not_wait_for_ever_for_a_manager_that_does_not_read(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "_SEND_TIMEOUT_S", 0.01)
    sent = 0
    while systemd.notify("STATUS=" + "x" * 1000):
        sent += 1
        assert sent < 100_000
    assert sent


# ---------------------------------------------------------------------- socket activation

# Moves the descriptors in the arguments to 3 and up, in this order, and prints what listen_fds() returns for them.
ACTIVATED = """
import fcntl, json, os, sys
from kvd.service import systemd
from kvd.service.errors import StartError
passed, pid, count, names = [int(fd) for fd in sys.argv[1].split(",")], *sys.argv[2:5]
copies = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in passed]
os.closerange(3, 100)
for number, fd in enumerate(copies):
    os.dup2(fd, 3 + number)
os.environ.update(LISTEN_PID=pid or str(os.getpid()), LISTEN_FDS=count, LISTEN_FDNAMES=names)
try:
    found = systemd.listen_fds()
except StartError as error:
    print(json.dumps([error.exit_code, error.text]))
    sys.exit()

def facts(name, found):
    return [name, found.fileno(), found.family.name, found.getblocking(), found.get_inheritable()]

print(json.dumps({
    "sockets": [facts(*each) for each in found],
    "left": [name for name in os.environ if name.startswith("LISTEN_")],
    "again": len(systemd.listen_fds()),
}))
"""


@pytest.fixture
def activated(python: Python) -> Callable[..., Any]:
    """Passes sockets to a process, and returns what its ``listen_fds`` returns."""

    def activate(*sockets: socket.socket, pid: str = "", count: str | None = None, names: str = "") -> Any:  # noqa: ANN401 - JSON
        numbers = [each.fileno() for each in sockets]
        arguments = [",".join(map(str, numbers)), pid, str(len(numbers)) if count is None else count, names]
        result = python(ACTIVATED, *arguments, pass_fds=numbers)
        assert result.stderr == b""
        return json.loads(result.stdout)

    return activate


@pytest.fixture
def unix() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("")  # an abstract address of the kernel's choice
        listening.listen()
        yield listening


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


Activated = Callable[..., Any]


def test_passed_sockets_are_returned_once_with_their_names_and_are_not_inheritable(
    activated: Activated, unix: socket.socket, tcp: socket.socket
) -> None:
    assert activated(unix, tcp, names="kvd.socket:tcp") == {
        "sockets": [["kvd.socket", 3, "AF_UNIX", False, False], ["tcp", 4, "AF_INET", False, False]],
        "left": [],
        "again": 0,
    }


def test_ipv6_is_passed_too(activated: Activated) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        assert activated(listening)["sockets"][0][2] == "AF_INET6"


def test_passed_sockets_without_a_name_are_called_unknown(
    activated: Activated, unix: socket.socket, tcp: socket.socket
) -> None:
    sockets = activated(unix, tcp, names="one")["sockets"]
    assert [name for name, *_ in sockets] == ["one", "unknown"]


@pytest.mark.parametrize(("pid", "count"), [("1", "1"), ("x", "1"), ("", ""), ("", "-1"), ("", "²"), ("", "0")])
def test_sockets_for_another_process_or_none_are_not_taken(
    activated: Activated, unix: socket.socket, pid: str, count: str
) -> None:
    assert activated(unix, pid=pid, count=count) == {"sockets": [], "left": [], "again": 0}


def test_a_passed_socket_that_accepts_no_connections_is_refused_with_its_name(
    activated: Activated, unix: socket.socket
) -> None:
    silent, (one, other) = socket.socket(socket.AF_UNIX), socket.socketpair()
    datagram, packets = (socket.socket(socket.AF_UNIX, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET))
    with silent, one, other, datagram, packets:
        packets.bind("")
        packets.listen()
        for passed in (silent, one, datagram, packets):
            refused = activated(unix, passed, names="a:b")
            assert refused[0] == 78
            assert refused[1].startswith(
                "descriptor 4 (b), passed by the service manager, is not a listening stream socket"
            )


def test_a_descriptor_that_is_closed_or_not_a_socket_is_refused(activated: Activated, unix: socket.socket) -> None:
    text = "descriptor 4 (b), passed by the service manager, cannot be used: Bad file descriptor"
    assert activated(unix, count="2", names="a:b") == [78, text]
    with open(os.devnull, "rb") as null:
        assert activated(null)[1].endswith("cannot be used: Socket operation on non-socket")


def test_without_a_manager_there_are_no_passed_sockets() -> None:
    assert systemd.listen_fds({}) == []


# ---------------------------------------------------------------------- watchdog


@pytest.mark.parametrize("pid", [None, "mine"])
def test_the_watchdog_is_fed_twice_in_its_interval(pid: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.watchdog_interval() == 1.5


@pytest.mark.parametrize("interval", [None, "", "0", "x", "-1", "²"])
def test_without_a_watchdog_there_is_no_interval(interval: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if interval is not None:
        monkeypatch.setenv("WATCHDOG_USEC", interval)
    assert systemd.watchdog_interval() is None


def test_the_watchdog_of_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    assert systemd.watchdog_interval() is None


# ---------------------------------------------------------------------- the journal's stream


def test_the_journals_stream_is_known_by_its_device_and_inode(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryFile() as stream, tempfile.TemporaryFile() as another:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert systemd.is_journal(stream.fileno())
        assert not systemd.is_journal(another.fileno())


@pytest.mark.parametrize("value", [None, "", ":", "x", "1:2:3"])
def test_without_a_stream_nothing_is_the_journal(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is not None:
        monkeypatch.setenv("JOURNAL_STREAM", value)
    assert not systemd.is_journal(2)


def test_a_closed_descriptor_is_not_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    assert not systemd.is_journal(1_000_000)
