"""A real daemon, sound or with a planted bug, and processes that use and watch it and record what they see."""

import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from tests.isolation.records import Identity, Recorded, identity_of, marker

ROOT = pathlib.Path(__file__).parents[2]
SCALE = int(os.environ.get("KVD_TEST_SCALE", "1"))
DEADLINE_S = 60
# For processes that play until they have done their share.
PLAYING_S = 120 * SCALE

Process = subprocess.Popen[bytes]


class Peer:
    """A raw connection."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE_S)
        self._socket.connect(path)
        self._stream = self._socket.makefile("rb")

    def ask(self, *requests: object) -> Any:  # noqa: ANN401 - whatever the daemon says
        """The replies to one frame."""
        self.send(*requests)
        return self.receive()

    def send(self, *requests: object) -> None:
        """One frame, whose reply is for later."""
        payload = msgspec.msgpack.encode(requests)
        self._socket.sendall(len(payload).to_bytes(4, "big") + payload)

    def receive(self) -> Any:  # noqa: ANN401 - whatever the daemon says
        """The next frame."""
        length = int.from_bytes(self._stream.read(4), "big")
        return msgspec.msgpack.decode(self._stream.read(length))

    def close(self) -> None:
        """The end."""
        self._stream.close()
        self._socket.close()


class Daemon:
    """`kv serve` in a folder of its own; with a ``bug``, one that has it (``broken_daemon.py``)."""

    def __init__(self, folder: pathlib.Path, configuration: str = "", bug: str | None = None) -> None:
        self.folder = folder
        self.path = str(folder / "s")
        self.log = folder / "log"
        config = folder / "kvd.toml"
        config.write_text(configuration)
        config.chmod(0o600)
        module = ["kv"] if bug is None else ["tests.isolation.broken_daemon", bug]
        self._command = [*module, "serve", "--socket", self.path, "--config", str(config)]
        self.start()

    def start(self) -> None:
        """Begin to serve; returns when it does."""
        with self.log.open("ab") as log:
            self.process = _python(*self._command, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith(b"Kvd started"), self.log.read_text()

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def stop(self) -> None:
        """Whatever state it is in."""
        self.process.kill()
        self.process.wait(DEADLINE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def ask(self, *requests: object) -> Any:  # noqa: ANN401 - whatever the daemon says
        """The replies to one frame on a connection of its own."""
        peer = Peer(self.path)
        try:
            return peer.ask(*requests)
        finally:
            peer.close()

    @property
    def version(self) -> int:
        """The version it is at."""
        [[_, _, _, version, _]] = self.ask(["hello", 1, "test"])
        return int(version)

    def run(self, module: str, name: str, plan: msgspec.Struct) -> Process:
        """A process of ours, which records into a file of that name."""
        return _python(f"tests.isolation.{module}", self.path, str(self.folder / name), msgspec.json.encode(plan))

    def recorded(self, name: str, process: Process) -> Recorded:
        """What it recorded, once it has ended."""
        assert process.wait(PLAYING_S) == 0, name
        file = self.folder / name
        recorded = msgspec.msgpack.decode(file.read_bytes(), type=Recorded)
        file.unlink()
        return recorded

    def told(self, processes: int) -> dict[Identity, list[int]]:
        """The versions of all transactions that committed, as the history of the processes' markers tells them."""
        found: dict[Identity, list[int]] = {}
        peer = Peer(self.path)
        for process in range(1, processes + 1):
            before = None
            while page := peer.ask(["history", marker(process), 10_000, before])[0]:
                for version, value, _, _ in page:
                    found.setdefault(identity_of(value), []).append(version)
                before = page[-1][0]
        assert peer.ask(["log", 1, 1])[0][0][0] >= 1, "the whole history is there"
        peer.close()
        return found


def _python(*words: str | bytes, stdout: int | None = None, stderr: Any = None) -> Process:  # noqa: ANN401 - a file
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KVD_", "XDG_"))}
    return subprocess.Popen([sys.executable, "-m", *words], cwd=ROOT, env=kept, stdout=stdout, stderr=stderr)  # noqa: S603 - ourselves


def eventually(condition: Callable[[], object]) -> None:
    """Wait until it holds; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


@pytest.fixture
def start() -> Iterator[Callable[..., Daemon]]:
    """Start daemons, with a configuration or a bug; all end with the test."""
    daemons: list[Daemon] = []
    with tempfile.TemporaryDirectory(prefix="kvd-", ignore_cleanup_errors=True) as folder:

        def begin(configuration: str = "", bug: str | None = None) -> Daemon:
            place = pathlib.Path(folder, str(len(daemons)))
            place.mkdir()
            daemons.append(Daemon(place, configuration.replace("DATA", str(place / "data")), bug))
            return daemons[-1]

        yield begin
        for daemon in daemons:
            daemon.stop()
