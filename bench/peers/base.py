"""What the benchmarks must know about a server: how it starts, and how it encodes each request."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from bench.data import Items
from bench.errors import BenchError
from bench.exchange import Exchange


class Peer(ABC):
    """A kind of server. It holds no state: `servers.Server` is a running server.

    A method that returns None instead of an exchange says that this server has no such request. A benchmark that needs
    the request leaves the peer out.
    """

    name: str
    program: str
    package: str

    def missing(self) -> str | None:
        """Return why it cannot be measured here and what to do about it, or None if it can."""
        if shutil.which(self.program):
            return None
        return f"{self.program} is not installed: apt-get install {self.package}"

    @abstractmethod
    def version(self) -> str:
        """The version that the program reports."""

    @abstractmethod
    def command(self, socket: Path) -> Sequence[str]:
        """The command line that serves in the foreground on this Unix socket, and writes nothing to disk."""

    @abstractmethod
    def ping(self) -> Exchange:
        """The smallest request."""

    @abstractmethod
    def gets(self, items: Items) -> Exchange:
        """One get for each key, sent together: a frame, or a pipeline."""

    @abstractmethod
    def get_many(self, items: Items) -> Exchange | None:
        """All keys in one request."""

    @abstractmethod
    def sets(self, items: Items) -> Exchange:
        """One set for each key, sent together."""

    @abstractmethod
    def set_many(self, items: Items) -> Exchange | None:
        """All keys in one request."""

    def check(self, reply: bytes) -> None:
        """Raise BenchError if the reply to one of the exchanges above is an error.

        Each exchange is tried and checked before it is timed, because errors are quick and would look good.
        """
        if not self._is_good(reply):
            raise BenchError(f"{self.name} answered {reply[:300]!r}")

    @abstractmethod
    def _is_good(self, reply: bytes) -> bool: ...

    def load_batch(self, items: Items) -> Exchange:
        """The quickest way to store many keys: one request, if the server has such a request."""
        return self.set_many(items) or self.sets(items)
