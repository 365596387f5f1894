"""A daemon, and client processes that record their transactions."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from tests.harness.daemon import Daemon, new_folders
from tests.harness.processes import Process, spawn_module
from tests.histories.list_append import Txn

# The deadline for all clients together; each runs until it has done its share.
RUN_S = 900


class HistoryDaemon(Daemon):
    """A daemon whose clients write their histories into its folder."""

    def spawn(self, module: str, *arguments: object) -> Process:
        """Start a client process."""
        return spawn_module(module, self.path, *map(str, arguments), env=self.environment())

    def record(self, processes: int, transactions: int, keys: int, reads: float, fault: str = "none") -> list[Process]:
        """Start ``processes`` clients, each of which runs its share; ``history`` collects what they saw."""
        share = transactions // processes
        files = [f"{self.folder}/history-{number}" for number in range(processes)]
        return [
            self.spawn("tests.histories.worker", file, number + 1, share, keys, reads, fault)
            for number, file in enumerate(files)
        ]

    def history(self, clients: Sequence[Process]) -> list[Txn]:
        """Wait for all clients to end; return what they recorded."""
        deadline = time.monotonic() + RUN_S
        for client in clients:
            assert client.wait(max(1, deadline - time.monotonic())) == 0
        records: list[Any] = []
        for number in range(len(clients)):
            file = self.folder / f"history-{number}"
            records += msgspec.msgpack.decode(file.read_bytes())
            file.unlink()
        return [Txn(*each) for each in records]


@pytest.fixture
def daemon() -> Iterator[HistoryDaemon]:
    """A daemon for this test alone."""
    with new_folders() as new_folder, HistoryDaemon(new_folder()) as running:
        yield running
        running.terminate()
