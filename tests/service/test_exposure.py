"""Nobody gets in whom the socket's mode keeps out, not even while it comes to be; and nothing else listens."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvd.service.unix_socket import bind_unix_socket
from tests.harness.real_daemon import STARTED, RealDaemon
from tests.harness.scale import TIMES
from tests.harness.waiting import DEADLINE_S

RACERS = 4
# A whole start takes a tenth of a second at least; most are of what a start does with the socket, as it does it.
STARTS = 200 * TIMES
WHOLE_STARTS = 8 * TIMES
LISTENING = "0A"  # of /proc/net/tcp

# Becomes somebody else, and connects as fast as it can to each of the paths until its stdin ends. Says how often it
# got in, and how often it was kept out by the socket's mode: then it was there, and the race was one.
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
            if result == 0:
                print("in", flush=True)
print(count[0], count[errno.EACCES], flush=True)
"""


class Racers:
    """Processes of another user who want to get in."""

    def __init__(self, path: str) -> None:
        command = [sys.executable, "-c", RACER, path, f"{path}.new"]
        self.processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 - our own code
            for _ in range(RACERS)
        ]
        for process in self.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"

    def end(self) -> tuple[int, int]:
        """How often they got in, and how often they were kept out, all together."""
        said = [process.communicate(timeout=DEADLINE_S)[0].split() for process in self.processes]
        return sum(int(words[-2]) for words in said), sum(int(words[-1]) for words in said)


@pytest.fixture
def path() -> Iterator[str]:
    """A socket's path that everybody can get to."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o711)  # noqa: S103
        yield f"{folder}/s"


@contextmanager
def everything_open() -> Iterator[None]:
    """As if the socket's own mode were all that keeps others out."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def once(path: str, mode: int) -> None:
    bind_unix_socket(path, mode, "").close()
    os.unlink(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_nobody_connects_before_the_mode_is_set(path: str, mode: int) -> None:
    racers = Racers(path)
    with everything_open():
        for _ in range(STARTS):
            once(path, mode)
    got_in, kept_out = racers.end()
    assert got_in == 0
    assert kept_out > 0, "they were there in time"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
def test_the_racers_get_in_where_the_mode_lets_them(path: str) -> None:
    racers = Racers(path)
    with everything_open(), bind_unix_socket(path, 0o666, ""):
        for process in racers.processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"in\n"
    assert racers.end()[0] >= 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
def test_nobody_connects_while_a_daemon_starts(kvd: RealDaemon) -> None:
    pathlib.Path(kvd.folder).chmod(0o711)
    racers = Racers(kvd.path)
    with everything_open():
        for _ in range(WHOLE_STARTS):
            process = kvd.start()
            assert process.stdout is not None
            assert process.stdout.readline() == STARTED
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=DEADLINE_S)
    got_in, kept_out = racers.end()
    assert got_in == 0
    assert kept_out > 0


def listening(pid: int) -> list[str]:
    """What a process listens on or receives at, by the kernel's tables: local addresses, in hexadecimal."""
    own = {os.readlink(entry) for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir()}
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        try:
            lines = pathlib.Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:  # no such protocol here
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


def test_with_tcp_only_that_address_does(kvd: RealDaemon) -> None:
    kvd.serve("--tcp", "127.0.0.1:0", "--token-file", kvd.write_token())
    [address] = listening(pid_of(kvd))
    assert address.startswith("0100007F:"), "loopback, in the order of the machine's bytes"


@pytest.mark.parametrize("flags", [("--tcp", "0.0.0.0:0"), ("--tcp", "127.0.0.1:0"), ("--tcp", "[::]:0")])
def test_tcp_without_a_token_or_tls_does_not_start(kvd: RealDaemon, flags: tuple[str, ...]) -> None:
    process = kvd.start(*flags)
    _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 78
    assert b"token" in said
