"""Daemons, correct or with a planted bug, each of which replaces the previous one at once; and reader processes."""

import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import msgspec
import pytest

import kv
from kvd.protocol.near_cache import LEASE_MS
from tests.harness.daemon import Daemon, new_folders
from tests.harness.processes import Process, spawn_module
from tests.harness.waiting import DEADLINE_S

SLOTS = 1 << 10


class ReplaceableDaemon(Daemon):
    """A daemon whose successor has loaded everything already and waits to begin. ``bug``: see `special_daemon.py`."""

    def __init__(
        self,
        folder: pathlib.Path,
        configuration: str = "",
        *,
        slots: int = SLOTS,
        bug: str = "",
        lease_ms: int = LEASE_MS,
    ) -> None:
        special = [sys.executable, "-m", "tests.near.special_daemon", str(slots), str(lease_ms), bug]
        self._successors: list[Process] = []
        super().__init__(folder, configuration, command=special)

    def start(self, *flags: str, **options: object) -> Process:
        """Let the successor begin at once, and load the next one."""
        successor = self._successors.pop() if self._successors else self._load(*flags, **options)
        assert successor.stdout is not None
        assert successor.stdout.readline() == b"loaded\n", self.log()
        assert successor.stdin is not None
        successor.stdin.write(b"\n")
        successor.stdin.flush()
        self._successors.append(self._load(*flags, **options))
        return successor

    def _load(self, *flags: str, **options: object) -> Process:
        return super().start(*flags, stdin=subprocess.PIPE, **options)

    def begin(self) -> None:
        """Let the successor begin, without waiting until it serves."""
        self.process = self.start()

    def near(self, limits: kv.NearCacheLimits | None = None) -> kv.NearClient:
        """A client with a near cache."""
        return kv.connect(self.address, timeout=DEADLINE_S, near_cache=limits or True)


def play(plan: msgspec.Struct) -> Process:
    """Start a process that reads and writes (``worker.py``), and reports on its stdout."""
    return spawn_module("tests.near.worker", msgspec.json.encode(plan), stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.fixture
def start() -> Iterator[Callable[..., ReplaceableDaemon]]:
    """Starts daemons for one test, in memory or (``durable``) with a data directory of small files."""
    with new_folders() as new_folder, ExitStack() as daemons:

        def begin(
            *, durable: bool = False, sync: str = "always", slots: int = SLOTS, bug: str = "", lease_ms: int = LEASE_MS
        ) -> ReplaceableDaemon:
            folder = new_folder()
            # A daemon with smaller files starts sooner.
            data = f'[data]\ndir = "{folder / "data"}"\nsegment_bytes = 1048576\nsync = "{sync}"\n'
            return daemons.enter_context(
                ReplaceableDaemon(folder, data if durable else "", slots=slots, bug=bug, lease_ms=lease_ms)
            )

        yield begin


@pytest.fixture(scope="module")
def shared() -> Iterator[ReplaceableDaemon]:
    """One daemon for all tests of a module."""
    with new_folders() as new_folder, ReplaceableDaemon(new_folder()) as daemon:
        yield daemon


@pytest.fixture
def near(shared: ReplaceableDaemon) -> Iterator[kv.NearClient]:
    """A client with a near cache, of an empty daemon."""
    with shared.client() as client:
        client.delete(*[item.key for item in client.scan(keys_only=True)])
    with shared.near() as client:
        yield client


@pytest.fixture
def other(shared: ReplaceableDaemon) -> Iterator[kv.Client]:
    """Another client, without a near cache."""
    with shared.client() as client:
        yield client
