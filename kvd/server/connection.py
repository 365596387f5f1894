"""What the server asks of a connection, whatever protocol it speaks; and the connections that are open."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Protocol

from kvd.requests.peer import Peer

# About what a connection takes that holds nothing.
CONNECTION_BYTES = 1024
# How old the sum of what the connections hold may be.
MAX_AGE_S = 0.1


class Connection(Protocol):
    """The server's end of one connection. ``active``: whether input has come since the server's last sweep."""

    active: bool
    peer: Peer
    transport: asyncio.Transport

    @property
    def buffer_bytes(self) -> int:
        """The bytes of its peer's that it holds, input and replies."""

    @property
    def is_feed(self) -> bool:
        """Whether it only sends events."""

    @property
    def is_closing(self) -> bool:
        """Whether its last bytes are on their way."""

    def drain(self) -> None:
        """Answer everything that has arrived whole, then close."""

    def close_with_error(self, error: dict[str, object]) -> None:
        """Close after everything that waits for the disk; the peer's last message is this error."""

    def abort(self) -> None:
        """Close at once."""


class Connections:
    """The open connections, and the memory that they take. ``now`` returns seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._open: set[Connection] = set()
        self._buffer_bytes = 0
        self._measure_at = 0.0

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._open))

    def add(self, connection: Connection) -> None:
        """Take a new connection in."""
        self._open.add(connection)

    def discard(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self._open.discard(connection)

    def buffer_bytes(self) -> int:
        """The bytes that the connections hold: themselves, input that has not run, replies. At most MAX_AGE_S old."""
        now = self._now()
        if now >= self._measure_at:
            self._measure_at = now + MAX_AGE_S
            held_bytes = sum(connection.buffer_bytes for connection in self._open)
            self._buffer_bytes = held_bytes + CONNECTION_BYTES * len(self._open)
        return self._buffer_bytes
