"""A daemon, and client processes that record what they do with it."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pytest

from tests.harness.daemon import Daemon, new_folders
from tests.harness.processes import Process, spawn_module
from tests.histories.list_append import Txn

# For all clients together, which play until they have done their share.
PLAYING_S = 900


class HistoryDaemon(Daemon):
    """A daemon whose clients leave their histories in its folder."""

    def play(self, module: str, *arguments: object) -> Process:
        """Start a client process."""
        return spawn_module(module, self.path, *map(str, arguments), env=self.environment())

    def record(self, processes: int, transactions: int, keys: int, reads: float, fault: str = "none") -> list[Process]:
        """Start this number of clients, each to play its share; ``history`` collects what they saw."""
        share = transactions // processes
        files = [f"{self.folder}/history-{number}" for number in range(processes)]
        return [
            self.play("tests.histories.worker", file, number + 1, share, keys, reads, fault)
            for number, file in enumerate(files)
        ]

    def history(self, clients: Sequence[Process]) -> list[Txn]:
        """What all clients recorded, once they have ended."""
        deadline = time.monotonic() + PLAYING_S
        for client in clients:
            assert client.wait(max(1, deadline - time.monotonic())) == 0
        recorded: list[Any] = []
        for number in range(len(clients)):
            file = self.folder / f"history-{number}"
            recorded += msgspec.msgpack.decode(file.read_bytes())
            file.unlink()
        return [Txn(*each) for each in recorded]


@pytest.fixture
def daemon() -> Iterator[HistoryDaemon]:
    """A daemon of this test's own."""
    with new_folders() as new_folder, HistoryDaemon(new_folder()) as running:
        yield running
        running.terminate()
