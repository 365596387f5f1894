"""What the server asks of a connection, whatever is spoken on it."""

import asyncio
from typing import Protocol

from kvd.server.peers import Peer


class Connection(Protocol):
    """The server's end of one connection. ``active``: whether anything came since the server's last sweep."""

    active: bool
    peer: Peer
    transport: asyncio.Transport

    @property
    def buffer_bytes(self) -> int:
        """What it holds of its peer's."""

    @property
    def feeding(self) -> bool:
        """Whether it only tells its peer what that asked for."""

    @property
    def leaving(self) -> bool:
        """Whether it was sent its last words."""

    def finish(self) -> None:
        """Answer all that has come whole, then close."""

    def leave(self, last: dict[str, object]) -> None:
        """Close, with this error as the last word."""

    def abort(self) -> None:
        """Close at once."""

    def on_durable(self) -> None:
        """More has reached the disk."""
