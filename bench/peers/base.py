"""What the benchmarks must know of a server: how it starts, and how it spells each piece of work."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from bench.data import Items
from bench.errors import BenchError
from bench.exchange import Exchange


class Peer(ABC):
    """A kind of server. It holds no state: `servers.Server` is a running one.

    A method that returns None instead of an exchange says: this server has no such request. What is measured over
    it then leaves the peer out.
    """

    name: str
    program: str
    package: str

    def missing(self) -> str | None:
        """Why it cannot be measured here, and what to do about it; None if it can."""
        if shutil.which(self.program):
            return None
        return f"{self.program} is not installed: apt-get install {self.package}"

    @abstractmethod
    def version(self) -> str:
        """What the program says its version is."""

    @abstractmethod
    def command(self, socket: Path) -> Sequence[str]:
        """The command line that serves in the foreground on this Unix socket and writes nothing to disk."""

    @abstractmethod
    def ping(self) -> Exchange:
        """The least that it answers."""

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
        """Raise BenchError if the answer to one of the exchanges above is an error.

        Every exchange is tried and checked once before it is timed: errors are quick, and would look good.
        """
        if not self._is_good(reply):
            raise BenchError(f"{self.name} answered {reply[:300]!r}")

    @abstractmethod
    def _is_good(self, reply: bytes) -> bool: ...

    def load_batch(self, items: Items) -> Exchange:
        """The best way to put many keys in: one request if there is one."""
        return self.set_many(items) or self.sets(items)
