"""What the server needs of a connection, whatever protocol it speaks; and the set of open connections."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Protocol

from kvd.requests.peer import Peer

# About the memory of a connection without buffered data.
CONNECTION_BYTES = 1024
# The maximum age of the sum of all connections' buffers.
MAX_AGE_S = 0.1


class Connection(Protocol):
    """The server's end of one connection. ``active``: whether input has arrived since the server's last sweep."""

    active: bool
    peer: Peer
    transport: asyncio.Transport

    @property
    def buffer_bytes(self) -> int:
        """The bytes that it buffers for its peer, input and replies."""

    @property
    def is_feed(self) -> bool:
        """Whether it only sends events."""

    @property
    def is_closing(self) -> bool:
        """Whether its last bytes are on their way."""

    def drain(self) -> None:
        """Answer every request that has arrived completely, then close."""

    def close_with_error(self, error: dict[str, object]) -> None:
        """Close after the replies that wait for the disk; this error is the last message to the peer."""

    def revoke(self, error: dict[str, object]) -> None:
        """As close_with_error, for a client that is no longer authenticated; requests that ran are answered first."""

    def abort(self) -> None:
        """Close at once."""


class Connections:
    """The open connections, and the memory that they use. ``now`` returns seconds."""

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
        """Add a new connection."""
        self._open.add(connection)

    def discard(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self._open.discard(connection)

    def buffer_bytes(self) -> int:
        """The bytes that connections use: themselves, unprocessed input, replies. The sum is at most MAX_AGE_S old."""
        now = self._now()
        if now >= self._measure_at:
            self._measure_at = now + MAX_AGE_S
            held_bytes = sum(connection.buffer_bytes for connection in self._open)
            self._buffer_bytes = held_bytes + CONNECTION_BYTES * len(self._open)
        return self._buffer_bytes
