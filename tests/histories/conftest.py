"""A real daemon, and client processes that record what they do with it."""

import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from tests.histories.list_append import Txn

ROOT = pathlib.Path(__file__).parents[2]
SCALE = int(os.environ.get("KVD_TEST_SCALE", "1"))
DEADLINE_S = 300


class Daemon:
    """`kv serve` in a folder of its own."""

    def __init__(self, folder: str, *flags: str) -> None:
        self.folder = folder
        self.path = f"{folder}/s"
        self._flags = flags
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(  # noqa: S603 - the daemon under test
            [sys.executable, "-m", "kv", "serve", "--socket", self.path, *self._flags],
            cwd=ROOT, env=self._environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"Kvd started")
        return process

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("KVD_", "XDG_"))}
        return {**kept, "HOME": self.folder}

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def restart(self) -> None:
        """kill -9, and a new one in its place."""
        self._process.kill()
        self._process.wait(30)
        self._process = self._start()

    def connect(self) -> "Connection":
        """A raw connection."""
        return Connection(self.path)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)

    def run(self, module: str, *arguments: object) -> "subprocess.Popen[bytes]":
        """A client process."""
        words = [sys.executable, "-m", module, self.path, *map(str, arguments)]
        return subprocess.Popen(words, cwd=ROOT, env=self._environment())  # noqa: S603 - our own module

    def record(
        self, processes: int, transactions: int, keys: int, reads: float, fault: str = "none"
    ) -> "list[subprocess.Popen[bytes]]":
        """Start so many clients, each to play its share; ``history`` collects what they saw."""
        share = transactions // processes
        files = [f"{self.folder}/history-{number}" for number in range(processes)]
        return [
            self.run("tests.histories.worker", file, number + 1, share, keys, reads, fault)
            for number, file in enumerate(files)
        ]

    def history(self, clients: "Sequence[subprocess.Popen[bytes]]") -> list[Txn]:
        """What all clients recorded, once they have ended."""
        deadline = time.monotonic() + DEADLINE_S
        for client in clients:
            assert client.wait(max(1, deadline - time.monotonic())) == 0
        recorded: list[Any] = []
        for number in range(len(clients)):
            file = pathlib.Path(self.folder, f"history-{number}")
            recorded += msgspec.msgpack.decode(file.read_bytes())
            file.unlink()
        return [Txn(*each) for each in recorded]


class Connection:
    """Frames out, frames in."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(path)
        self._stream = self._socket.makefile("rb")

    def ask(self, *requests: object) -> Any:  # noqa: ANN401 - whatever the daemon says
        """The replies to one frame; the only one, if it was one request."""
        payload = msgspec.msgpack.encode(requests)
        self._socket.sendall(len(payload).to_bytes(4, "big") + payload)
        length = int.from_bytes(self._stream.read(4), "big")
        replies = msgspec.msgpack.decode(self._stream.read(length))
        return replies[0] if len(requests) == 1 else replies

    def close(self) -> None:
        """End of the session."""
        self._stream.close()
        self._socket.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon of this test's own."""
    with tempfile.TemporaryDirectory(prefix="kvd-") as folder:
        running = Daemon(folder)
        yield running
        running.stop()
