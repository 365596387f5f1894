"""Real daemons, sound or with a planted bug, that take each other's place at once; and processes that play."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

import kv

ROOT = pathlib.Path(__file__).parents[2]
SCALE = int(os.environ.get("KVD_TEST_SCALE", "1"))
DEADLINE_S = 60
SLOTS = 1 << 10

Process = subprocess.Popen[bytes]


class Daemon:
    """`kv serve` in a folder of its own, which outlives it."""

    def __init__(self, folder: pathlib.Path, *flags: str, slots: int = SLOTS, bug: str = "") -> None:
        self.folder = folder
        self.address = str(folder / "s")
        self.logging = folder / "log"
        self._command = ["tests.near.special_daemon", str(slots), bug, "serve", "--socket", self.address, *flags]
        self._spare = self.process = self.load()
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    def load(self) -> Process:
        """The next one, up to where it would begin."""
        with self.logging.open("ab") as log:
            return run(*self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)

    def begin(self) -> None:
        """Let the next one begin, at once; and load the one after it."""
        assert self._spare.stdout is not None
        assert self._spare.stdout.readline() == b"loaded\n", self.logging.read_text()
        assert self._spare.stdin is not None
        self._spare.stdin.write(b"\n")
        self._spare.stdin.flush()
        self.process, self._spare = self._spare, self.load()

    def start(self) -> None:
        """The same; returns when it serves."""
        self.begin()
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith(b"Kvd started"), self.logging.read_text()

    def kill(self) -> None:
        """kill -9."""
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """A signal that ends it; returns when it has ended."""
        self.process.send_signal(number)
        self.process.wait(DEADLINE_S)
        self._close(self.process)

    def stop(self) -> None:
        """Whatever state it is in."""
        for process in (self.process, self._spare):
            process.kill()
            process.wait(DEADLINE_S)
            self._close(process)

    @staticmethod
    def _close(process: Process) -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def connect(self) -> kv.Client:
        """A client that keeps nothing."""
        return kv.connect(self.address, timeout=DEADLINE_S)

    def near(self, limits: kv.NearCacheLimits | None = None) -> kv.NearClient:
        """A client with a near cache."""
        return kv.connect(self.address, timeout=DEADLINE_S, near_cache=limits or True)


def run(module: str, *words: str | bytes, **pipes: object) -> Process:
    """A Python process of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("KVD_", "XDG_"))}
    return subprocess.Popen([sys.executable, "-m", module, *words], cwd=ROOT, env=kept, **pipes)  # type: ignore[call-overload, no-any-return]  # noqa: S603 - ourselves


def play(plan: msgspec.Struct) -> Process:
    """A process that reads and writes (``worker.py``), and tells on its stdout."""
    return run("tests.near.worker", msgspec.json.encode(plan), stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def eventually(condition: Callable[[], object]) -> None:
    """Wait until it holds; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


@pytest.fixture
def start() -> Iterator[Callable[..., Daemon]]:
    """Starts daemons of the test's own, in memory or (``durable``) with a data directory of small files."""
    daemons: list[Daemon] = []
    with tempfile.TemporaryDirectory() as folder:

        def begin(*, durable: bool = False, sync: str = "always", slots: int = SLOTS, bug: str = "") -> Daemon:
            place = pathlib.Path(folder, str(len(daemons)))
            place.mkdir()
            config = place / "kvd.toml"
            # The smaller its files, the sooner a daemon is there again.
            config.write_text(
                f'[data]\ndir = "{place / "data"}"\nsegment_bytes = 1048576\nsync = "{sync}"\n' if durable else ""
            )
            config.chmod(0o600)
            daemons.append(Daemon(place, "--config", str(config), slots=slots, bug=bug))
            return daemons[-1]

        yield begin
        for daemon in daemons:
            daemon.stop()


@pytest.fixture(scope="module")
def shared() -> Iterator[Daemon]:
    """One daemon for all tests of a module."""
    with tempfile.TemporaryDirectory() as folder:
        daemon = Daemon(pathlib.Path(folder))
        yield daemon
        daemon.stop()


@pytest.fixture
def near(shared: Daemon) -> Iterator[kv.NearClient]:
    """A client with a near cache, of an empty daemon."""
    with shared.connect() as client:
        client.delete(*[item.key for item in client.scan(keys_only=True)])
    with shared.near() as client:
        yield client


@pytest.fixture
def other(shared: Daemon) -> Iterator[kv.Client]:
    """Another client, which keeps nothing."""
    with shared.connect() as client:
        yield client
