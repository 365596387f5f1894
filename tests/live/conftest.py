"""A real daemon, and raw connections to it that say whatever a hostile peer could say."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

ROOT = pathlib.Path(__file__).parents[2]
DEADLINE_S = 20
SCALE = int(os.environ.get("KVD_TEST_SCALE", "1"))


def frame(value: object) -> bytes:
    """A frame with ``value`` in it."""
    return packed(msgspec.msgpack.encode(value))


def packed(payload: bytes) -> bytes:
    """A frame with these bytes in it."""
    return len(payload).to_bytes(4, "big") + payload


class Peer:
    """A connection without any manners of its own."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)  # waits while the queue is full, which it would not do with a time-out
        self.socket.settimeout(DEADLINE_S)
        self._early = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, *requests: object) -> Any:  # noqa: ANN401 - whatever the server says
        """One frame of requests; the payload of the next reply."""
        self.send(frame(list(requests)))
        return self.receive()

    def receive(self) -> Any:  # noqa: ANN401 - whatever the server says
        """The next frame's payload; EOFError at the end of the stream."""
        length = int.from_bytes(self._read(4), "big")
        return msgspec.msgpack.decode(self._read(length))

    def _read(self, size: int) -> bytes:
        while len(self._early) < size:
            data = self.socket.recv(1 << 20)
            if not data:
                raise EOFError
            self._early += data
        data, self._early = self._early[:size], self._early[size:]
        return data

    def is_closed(self) -> bool:
        """Whether the server closes, with nothing more to say."""
        try:
            return not self._early and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


class Daemon:
    """A daemon in the foreground, with its own configuration."""

    def __init__(self, folder: pathlib.Path, configuration: str) -> None:
        self.path = str(folder / "s")
        self.log = folder / "log"
        config = folder / "kvd.toml"
        config.write_text(configuration, encoding="utf-8")
        config.chmod(0o600)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("KVD_")}
        self.process = subprocess.Popen(  # noqa: S603 - the daemon under test
            [sys.executable, "-m", "kv", "serve", "--socket", self.path, "--config", str(config)],
            stdout=subprocess.PIPE, stderr=self.log.open("wb"), env={**clean, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"Kvd started. Press ctrl-c to stop.\n", self.log.read_text()

    def connect(self) -> Peer:
        return Peer(self.path)

    def status(self) -> dict[str, Any]:
        peer = self.connect()
        status = dict(peer.ask(["status"])[0])
        peer.socket.close()
        return status

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def start() -> "Iterator[Callable[..., Daemon]]":
    """Start daemons; each gets a configuration as text, and is ended after the test."""
    daemons: list[Daemon] = []
    with tempfile.TemporaryDirectory(prefix="kvd-", ignore_cleanup_errors=True) as folder:

        def begin(configuration: str = "") -> Daemon:
            place = pathlib.Path(folder, str(len(daemons)))
            place.mkdir()
            daemons.append(Daemon(place, configuration))
            return daemons[-1]

        yield begin
        for daemon in daemons:
            if daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.wait(DEADLINE_S)


@pytest.fixture
def daemon(start: "Callable[..., Daemon]") -> "Iterator[Daemon]":
    """A daemon as it comes. It must be the same, and have logged no error, when the test is over."""
    one = start()
    yield one
    if one.process.poll() is None:
        assert one.status()["pid"] == one.process.pid
    assert "ERROR" not in one.log.read_text(encoding="utf-8")
