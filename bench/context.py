"""The input of every benchmark: the peers, the size of the run, and servers that are loaded already."""

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
    """One run. Its servers live until `close`, so that all workloads of a run use the same servers."""

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
        """Scale an amount of work: a quick run does less."""
        return max(1, amount // 5) if self.quick else amount

    def program(self, name: str, flags: Sequence[str] = ()) -> Path:
        """Compile a C program of this folder and return its path."""
        return compile_c(name, self._directory, flags)

    def new_directory(self) -> Path:
        """Create an empty directory, which is removed when the run ends."""
        return Path(tempfile.mkdtemp(dir=self._directory))

    def fresh(self, peer: Peer) -> Server:
        """Start an empty server; the caller stops it."""
        return Server(peer, self.new_directory())

    def loaded(self, peer: Peer) -> Server:
        """The server of this kind that the run shares; it holds the keys of the throughput workloads."""
        if peer.name not in self._loaded:
            server = self._stack.enter_context(self.fresh(peer))
            server.load(THROUGHPUT_KEYS)
            self._loaded[peer.name] = server
        return self._loaded[peer.name]

    def peer(self, name: str) -> Peer:
        """The peer of this name. Raises BenchError if it is not installed."""
        for peer in self.peers:
            if peer.name == name:
                return peer
        raise BenchError(f"needs {name}, which is not installed")

    def close(self) -> None:
        """Stop the servers."""
        self._stack.close()
