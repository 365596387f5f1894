"""Running servers, each on a Unix socket of its own: start, load, use and stop them."""

import time
from pathlib import Path

from bench.data import batches, key, value
from bench.errors import BenchError
from bench.exchange import Connection, Exchange
from bench.peers.base import Peer
from bench.process import Child, clean_environment

START_S = 20.0
_CHECKOUT = Path(__file__).parent.parent


class Server:
    """One running server. Use as a context manager."""

    def __init__(self, peer: Peer, directory: Path, checkout: Path = _CHECKOUT) -> None:
        self.peer = peer
        self.socket = directory / "server.sock"
        env = clean_environment() | {"XDG_CONFIG_HOME": str(directory), "XDG_RUNTIME_DIR": str(directory)}
        self._child = Child(peer.command(self.socket), directory / "server.log", env, cwd=checkout)
        self.pid = self._child.pid
        try:
            self._wait_until_it_answers()
        except BaseException:
            self._child.stop()
            raise

    def connect(self) -> Connection:
        """Open a connection to the server."""
        return Connection(self.socket)

    def try_once(self, exchange: Exchange) -> bytes:
        """Make one exchange on a connection of its own, and check the reply."""
        with self.connect() as connection:
            reply = connection.call(exchange)
        self.peer.check(reply)
        return reply

    def load(self, count: int, one_key_a_commit: bool = False) -> None:
        """Set the first `count` keys, 100 a round trip; then read the last key and compare its value."""
        spell = self.peer.sets if one_key_a_commit else self.peer.load_batch
        with self.connect() as connection:
            for items in batches(count):
                self.peer.check(connection.call(spell(items)))
        last = count - 1
        reply = self.try_once(self.peer.gets({key(last): value(last)}))
        if value(last) not in reply:
            raise BenchError(f"{self.peer.name} was loaded but does not hold the last key: {reply[:200]!r}")

    def rss_bytes(self) -> int:
        """Its resident memory."""
        return self._child.rss_bytes()

    def stop(self) -> None:
        """Stop it with SIGTERM."""
        self._child.stop()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.try_once(self.peer.ping())
                return
            except OSError as error:
                if self._child.ended() or time.monotonic() > deadline:
                    printed = self._child.output()[-800:].strip() or "nothing"
                    raise BenchError(f"{self.peer.name} did not start ({error}); it wrote: {printed}") from None
            time.sleep(0.02)
