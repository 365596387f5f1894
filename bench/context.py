"""What every benchmark is given: the peers, the size of the run, and servers that are already loaded."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.build import compile_c
from bench.errors import BenchError
from bench.peers.base import Peer
from bench.peers.kvd import Kvd
from bench.servers import Server

THROUGHPUT_KEYS = 100_000


class Context:
    """One run. Its servers live until `close`, so that the workloads of a run meet the same ones."""

    def __init__(self, kvd: Kvd, peers: Sequence[Peer], rounds: int, quick: bool, directory: Path) -> None:
        self.kvd = kvd
        self.peers = list(peers)
        self.rounds = rounds
        self.quick = quick
        self.many_keys = 100_000 if quick else 1_000_000
        self._directory = directory
        self._loaded: dict[str, Server] = {}
        self._stack = ExitStack()

    def work(self, amount: int) -> int:
        """An amount of work, less of it in a quick run."""
        return max(1, amount // 5) if self.quick else amount

    def program(self, name: str, flags: Sequence[str] = ()) -> Path:
        """A C program of this folder, compiled."""
        return compile_c(name, self._directory, flags)

    def new_directory(self) -> Path:
        """An empty directory that goes when the run ends."""
        return Path(tempfile.mkdtemp(dir=self._directory))

    def fresh(self, peer: Peer) -> Server:
        """A new, empty server; the caller stops it."""
        return Server(peer, self.new_directory())

    def loaded(self, peer: Peer) -> Server:
        """The run's server of this kind, holding the keys of the throughput workloads."""
        if peer.name not in self._loaded:
            server = self._stack.enter_context(self.fresh(peer))
            server.load(THROUGHPUT_KEYS)
            self._loaded[peer.name] = server
        return self._loaded[peer.name]

    def peer(self, name: str) -> Peer:
        """The peer of this name. Raises BenchError if it is not there to be measured."""
        for peer in self.peers:
            if peer.name == name:
                return peer
        raise BenchError(f"needs {name}, which is not here")

    def close(self) -> None:
        """Stop the servers."""
        self._stack.close()
