"""Daemons, correct or with a planted bug, and client processes that use or watch them and record what they see."""

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

# The deadline for a process to do its share.
RUN_S = 600 * TIMES


class RecordedDaemon(Daemon):
    """A daemon whose clients write their records into its folder. For a ``bug`` see ``broken_daemon.py``."""

    def __init__(self, folder: pathlib.Path, configuration: str = "", bug: str | None = None) -> None:
        broken_command = [sys.executable, "-m", "tests.isolation.broken_daemon", str(bug)]
        super().__init__(folder, configuration, command=KV if bug is None else broken_command)

    def spawn(self, module: str, name: str, plan: msgspec.Struct) -> Process:
        """Start a client process, which records into the file ``name``."""
        arguments = self.path, str(self.folder / name), msgspec.json.encode(plan)
        return spawn_module(f"tests.isolation.{module}", *arguments, env=self.environment())

    def recorded(self, name: str, process: Process) -> Recorded:
        """Wait for ``process`` to end; return what it recorded."""
        assert process.wait(RUN_S) == 0, name
        file = self.folder / name
        records = msgspec.msgpack.decode(file.read_bytes(), type=Recorded)
        file.unlink()
        return records

    def committed_versions(self, processes: int) -> dict[Identity, list[int]]:
        """Return the versions of all committed transactions, from the history of the processes' markers."""
        versions: dict[Identity, list[int]] = {}
        with self.connect() as peer:
            for process in range(1, processes + 1):
                before = None
                while page := peer.ask(["history", marker(process), 10_000, before])[0]:
                    for version, value, _, _ in page:
                        versions.setdefault(identity_of(value), []).append(version)
                    before = page[-1][0]
            assert peer.ask(["log", 1, 1])[0][0][0] >= 1, "the history must be complete"
        return versions


@pytest.fixture
def start() -> Iterator[Callable[..., RecordedDaemon]]:
    """A function that starts a daemon, with a configuration or a bug. DATA stands for a new directory."""
    with new_folders() as new_folder, ExitStack() as daemons:

        def begin(configuration: str = "", bug: str | None = None) -> RecordedDaemon:
            folder = new_folder()
            configuration = configuration.replace("DATA", str(folder / "data"))
            return daemons.enter_context(RecordedDaemon(folder, configuration, bug))

        yield begin
