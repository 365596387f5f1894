"""A real daemon with small limits, watched from outside, and raw connections that say whatever a hostile peer could."""

import os
import pathlib
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import msgspec
import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCALE = int(os.environ.get("KVD_TEST_SCALE", "1"))
DEADLINE_S = 30
KIB = 1024
MIB = 1024 * KIB
TOKEN = "a-token-that-nobody-would-guess"  # noqa: S105 - of no real daemon

encode = msgspec.msgpack.encode
Configuration = str
Start = Callable[..., "Daemon"]


def packed(payload: bytes) -> bytes:
    """A frame with these bytes in it."""
    return len(payload).to_bytes(4, "big") + payload


def frame(*elements: object) -> bytes:
    """A frame of requests, or of replies: both are arrays."""
    return packed(encode(elements))


PING, PONG = frame(["ping"]), frame(True)


def eventually(condition: Callable[[], object], what: str = "") -> None:
    """Wait until ``condition`` holds; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain {what}"
        time.sleep(0.01)


class Peer:
    """A connection without any manners of its own."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(DEADLINE_S)
        self._early = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, *requests: object) -> Any:  # noqa: ANN401 - whatever the server says
        """One frame of requests; the payload of the next frame that comes."""
        self.send(frame(*requests))
        return self.receive()

    def receive(self) -> Any:  # noqa: ANN401 - whatever the server says
        """The next frame's payload; EOFError at the end of the stream."""
        return msgspec.msgpack.decode(self.read(int.from_bytes(self.read(4), "big")))

    def read(self, size: int) -> bytes:
        """Exactly so many bytes; EOFError if there are fewer."""
        parts, missing = [self._early[:size]], size - len(self._early)
        self._early = self._early[size:]
        while missing > 0:
            data = self._recv()
            if not data:
                raise EOFError
            parts.append(data[:missing])
            self._early = data[missing:]
            missing -= len(data)
        return b"".join(parts)

    def rest(self) -> bytes:
        """Everything up to the end of the stream."""
        data, self._early = self._early, b""
        while more := self._recv():
            data += more
        return data

    def says_nothing_more(self) -> bool:
        """Whether the stream ends here; waits for the end."""
        return self.rest() == b""

    def is_answered(self) -> bool:
        """Whether anything has arrived."""
        return bool(self._early or select.select([self.socket], [], [], 0)[0])

    def _recv(self) -> bytes:
        try:
            return self.socket.recv(MIB)
        except ConnectionResetError:
            return b""


class Daemon:
    """``kv serve`` in the foreground, with a configuration of its own."""

    def __init__(self, folder: pathlib.Path, configuration: Configuration, *, tcp: bool) -> None:
        self.path = str(folder / "s")
        self.log_path = folder / "log"
        if tcp:
            token = folder / "token"
            token.write_text(TOKEN)
            token.chmod(0o600)
            configuration += f'\nlisten.tcp = ["127.0.0.1:0"]\nlisten.token_file = "{token}"\n'
        config = folder / "kvd.toml"
        config.write_text(configuration)
        config.chmod(0o600)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KVD_")}
        self.process = subprocess.Popen(  # noqa: S603 - the daemon under test
            [sys.executable, "-m", "kv", "serve", "--socket", self.path, "--config", str(config)],
            stdout=subprocess.PIPE, stderr=self.log_path.open("wb"), env={**clean, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"Kvd started. Press ctrl-c to stop.\n", self.log()
        self.canary = self.connect()
        assert self.canary.ask(["ping"]) == [True]
        self.tcp_port = self._tcp_port() if tcp else 0

    def _tcp_port(self) -> int:
        return int(str(self.status()["listening"]).rpartition(":")[2])

    # ------------------------------------------------------------------ connections

    def connect(self) -> Peer:
        """Over the Unix socket."""
        connecting = socket.socket(socket.AF_UNIX)
        connecting.connect(self.path)  # waits while the queue is full, which it would not do with a time-out
        return Peer(connecting)

    def connect_tcp(self, *, greet: bool = True) -> Peer:
        """Over TCP, with or without hello."""
        peer = Peer(socket.create_connection(("127.0.0.1", self.tcp_port)))
        if greet:
            assert peer.ask(["hello", 1, "test", TOKEN])[0][0] == 1
        return peer

    # ------------------------------------------------------------------ what it is like, over the canary's connection

    def ask(self, *requests: object) -> Any:  # noqa: ANN401 - whatever the server says
        """One frame over the connection that every daemon has from its start to its end."""
        return self.canary.ask(*requests)

    def status(self) -> dict[str, Any]:
        return dict(self.ask(["status"])[0])

    def metrics(self) -> dict[str, int]:
        return dict(self.ask(["metrics"])[0])

    def connections(self) -> int:
        """How many there are besides the canary's."""
        return int(self.status()["connections"]) - 1

    def counts(self, connections: int) -> None:
        """Wait until there are so many connections besides the canary's."""
        eventually(lambda: self.connections() == connections, f"for {connections} connections")

    def has_read(self) -> None:
        """Return once it has read all that had been sent to it before, over any connection it reads from."""
        for _ in range(2):  # the first may be answered in the same turn of its loop, before the others
            assert self.ask(["ping"]) == [True]

    # ------------------------------------------------------------------ what it is like, seen by the kernel

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def rss(self) -> int:
        return self._memory("VmRSS")

    def peak_from_here(self) -> Callable[[], int]:
        """Begin to measure; returns what says by how much the resident memory has grown at its highest."""
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        before = self.rss()
        return lambda: self._memory("VmHWM") - before

    def _memory(self, name: str) -> int:
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)
        assert found is not None
        return int(found[1]) * KIB

    def log(self) -> str:
        return self.log_path.read_text()

    # ------------------------------------------------------------------ its end

    @contextmanager
    def held_still(self) -> Iterator[None]:
        """The process does nothing meanwhile."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def end(self) -> None:
        """See that it has served to the end without an error, and that it stops as it should."""
        try:
            if self.process.poll() is None:
                assert self.status()["pid"] == self.process.pid
                self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(DEADLINE_S) == 0
            assert "ERROR" not in self.log()
            assert "Traceback" not in self.log()
        finally:
            self.process.kill()
            self.process.wait()
            self.canary.close()


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start daemons, each with a configuration as text. All have to be in order when the module's tests are over."""
    daemons: list[Daemon] = []
    with tempfile.TemporaryDirectory(prefix="kvd-", ignore_cleanup_errors=True) as folder:

        def begin(configuration: Configuration = "", *, tcp: bool = False) -> Daemon:
            place = pathlib.Path(folder, str(len(daemons)))
            place.mkdir()
            daemons.append(Daemon(place, configuration, tcp=tcp))
            return daemons[-1]

        yield begin
        errors = []
        for daemon in daemons:
            try:
                daemon.end()
            except (AssertionError, OSError, EOFError, subprocess.TimeoutExpired) as error:
                errors.append(f"{error!r}\n{daemon.log()}")
        assert not errors, "\n".join(errors)


@pytest.fixture(scope="module")
def shared_daemon(start: Start) -> Daemon:
    """One for a whole module."""
    return start()


@pytest.fixture
def daemon(shared_daemon: Daemon) -> Daemon:
    """A daemon with default limits, empty, and with nobody connected but the canary."""
    shared_daemon.counts(0)
    while (page := shared_daemon.ask(["scan", "", None, 10_000, None, True])[0])[0]:
        shared_daemon.ask(["delete", [key for key, _, _ in page[0]]])
    return shared_daemon


@pytest.fixture
def peer(daemon: Daemon) -> Iterator[Peer]:
    """A connection to it."""
    with daemon.connect() as one:
        yield one


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Enough of them for this process's ends of 10,000 connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 11_000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"only {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
