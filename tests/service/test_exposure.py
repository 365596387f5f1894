"""The socket's mode keeps other users out even while the socket is being made, and nothing else listens."""

import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvd.service.unix_socket import bind_unix_socket
from tests.harness.real_daemon import STARTED, RealDaemon
from tests.harness.scale import TIMES
from tests.harness.waiting import DEADLINE_S

RACERS = 4
# A whole start takes at least a tenth of a second, so most rounds only do what a start does with the socket.
STARTS = 200 * TIMES
WHOLE_STARTS = 8 * TIMES
LISTENING = "0A"  # of /proc/net/tcp

# Becomes another user, and connects to each of the paths as fast as it can until its stdin ends. Prints how often it
# connected and how often the socket's mode denied it. A denial shows that it tried while the socket was there.
RACER = """
import errno, os, select, socket, sys
os.setgroups([]); os.setgid(65533); os.setuid(65533)
print("ready", flush=True)
count = {0: 0, errno.EACCES: 0}
while not select.select([sys.stdin], [], [], 0)[0]:
    for path in 10 * sys.argv[1:]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as racing:
            result = racing.connect_ex(path)
        if result in count:
            count[result] += 1
            if count[result] == 1:
                print("connected" if result == 0 else "denied", flush=True)
print(count[0], count[errno.EACCES], flush=True)
"""


class Racers:
    """Processes of another user that try to connect."""

    def __init__(self, path: str) -> None:
        command = [sys.executable, "-c", RACER, path, f"{path}.new"]
        self.processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - our own code
            for _ in range(RACERS)
        ]
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"

    def has_output(self) -> bool:
        """Return whether any of them has connected or was denied."""
        return bool(select.select([process.stdout for process in self.processes], [], [], 0)[0])

    def end(self) -> tuple[int, int]:
        """End them; return how often they connected and how often they were denied, all together."""
        outputs = [process.communicate(timeout=DEADLINE_S)[0].split() for process in self.processes]
        return sum(int(words[-2]) for words in outputs), sum(int(words[-1]) for words in outputs)


@pytest.fixture
def path() -> Iterator[str]:
    """A path for a socket that every user can reach."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o711)  # noqa: S103
        yield f"{folder}/s"


@contextmanager
def everything_open() -> Iterator[None]:
    """Set a umask that denies nothing, so that only the socket's own mode keeps other users out."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def enough_rounds(count: int, racers: Racers) -> Iterator[None]:
    """Yield ``count`` times, and then until a racer has tried in time, which on a busy machine may take longer."""
    deadline = time.monotonic() + DEADLINE_S
    while count > 0 or (not racers.has_output() and time.monotonic() < deadline):
        yield
        count -= 1


def bind_once(path: str, mode: int) -> None:
    bind_unix_socket(path, mode, "").close()
    os.unlink(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_no_other_user_connects_before_the_mode_is_set(path: str, mode: int) -> None:
    racers = Racers(path)
    with everything_open():
        for _ in enough_rounds(STARTS, racers):
            bind_once(path, mode)
    connected, denied = racers.end()
    assert connected == 0
    assert denied > 0, "no racer tried while the socket was there"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
def test_the_racers_connect_if_the_mode_lets_them(path: str) -> None:
    racers = Racers(path)
    with everything_open(), bind_unix_socket(path, 0o666, ""):
        for process in racers.processes:
            assert process.stdout is not None
            assert b"connected\n" in iter(process.stdout.readline, b"")
    assert racers.end()[0] >= 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
def test_no_other_user_connects_while_a_daemon_starts(kvd: RealDaemon) -> None:
    pathlib.Path(kvd.folder).chmod(0o711)
    racers = Racers(kvd.path)
    with everything_open():
        for _ in enough_rounds(WHOLE_STARTS, racers):
            process = kvd.start()
            assert process.stdout is not None
            assert process.stdout.readline() == STARTED
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=DEADLINE_S)
    connected, denied = racers.end()
    assert connected == 0
    assert denied > 0


def listening(pid: int) -> list[str]:
    """The local addresses where a process listens or receives, in hexadecimal, from the kernel's tables."""
    own = {os.readlink(entry) for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir()}
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        try:
            lines = pathlib.Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:  # this machine does not have the protocol
            continue
        for line in lines:
            words = line.split()
            if f"socket:[{words[9]}]" in own and (words[3] == LISTENING or not table.startswith("tcp")):
                found.append(words[1])
    return found


def pid_of(kvd: RealDaemon) -> int:
    return int(dict(kvd.ask(["status"])[0])["pid"])


def test_without_tcp_nothing_listens_on_the_network(kvd: RealDaemon) -> None:
    kvd.serve()
    assert listening(pid_of(kvd)) == []


def test_with_tcp_only_that_address_listens(kvd: RealDaemon) -> None:
    kvd.serve("--tcp", "127.0.0.1:0", "--token-file", kvd.write_token())
    [address] = listening(pid_of(kvd))
    assert address.startswith("0100007F:"), "loopback, in the machine's byte order"


@pytest.mark.parametrize("flags", [("--tcp", "0.0.0.0:0"), ("--tcp", "127.0.0.1:0"), ("--tcp", "[::]:0")])
def test_tcp_without_a_token_or_tls_does_not_start(kvd: RealDaemon, flags: tuple[str, ...]) -> None:
    process = kvd.start(*flags)
    _, error = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 78
    assert b"token" in error
