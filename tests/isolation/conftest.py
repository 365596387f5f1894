"""Daemons, sound or with a planted bug, and processes that use and watch them and record what they see."""

import pathlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import msgspec
import pytest

from tests.harness.daemon import Daemon, new_folders
from tests.harness.processes import KV, Process, spawn_module
from tests.harness.scale import TIMES
from tests.isolation.records import Identity, Recorded, identity_of, marker

# For processes that play until they have done their share.
PLAYING_S = 600 * TIMES


class RecordedDaemon(Daemon):
    """A daemon whose clients leave in its folder what they recorded. With a ``bug``: see ``broken_daemon.py``."""

    def __init__(self, folder: pathlib.Path, configuration: str = "", bug: str | None = None) -> None:
        broken = [sys.executable, "-m", "tests.isolation.broken_daemon", str(bug)]
        super().__init__(folder, configuration, command=KV if bug is None else broken)

    def play(self, module: str, name: str, plan: msgspec.Struct) -> Process:
        """Start a client process, which records into a file of that name."""
        words = self.path, str(self.folder / name), msgspec.json.encode(plan)
        return spawn_module(f"tests.isolation.{module}", *words, env=self.environment())

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
        with self.connect() as peer:
            for process in range(1, processes + 1):
                before = None
                while page := peer.ask(["history", marker(process), 10_000, before])[0]:
                    for version, value, _, _ in page:
                        found.setdefault(identity_of(value), []).append(version)
                    before = page[-1][0]
            assert peer.ask(["log", 1, 1])[0][0][0] >= 1, "the whole history is there"
        return found


@pytest.fixture
def start() -> Iterator[Callable[..., RecordedDaemon]]:
    """Starts daemons, with a configuration or a bug; all end with the test. DATA stands for a directory of its own."""
    with new_folders() as new_folder, ExitStack() as daemons:

        def begin(configuration: str = "", bug: str | None = None) -> RecordedDaemon:
            folder = new_folder()
            configuration = configuration.replace("DATA", str(folder / "data"))
            return daemons.enter_context(RecordedDaemon(folder, configuration, bug))

        yield begin
