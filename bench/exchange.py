"""One round of work with a server: the bytes to send, and how to find the end of the reply.

The load generator repeats an exchange; the plain client in this module uses it to load, check and ping a server.
"""

import socket
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError

PATIENCE_S = 30.0


@dataclass(frozen=True)
class Exchange:
    """A request and the shape of its reply.

    `reply_bytes` is the length of the whole reply, or None for one frame that begins with its length. `operations` is
    the number of gets or sets in the request.
    """

    request: bytes
    reply_bytes: int | None
    operations: int


class Connection:
    """A blocking connection to a server's Unix socket, one exchange at a time."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(PATIENCE_S)
        try:
            self._socket.connect(str(path))
        except OSError:
            self._socket.close()
            raise

    def call(self, exchange: Exchange) -> bytes:
        """Send the request and return the reply (a frame without its length). Raises OSError and BenchError."""
        self._socket.sendall(exchange.request)
        if exchange.reply_bytes is not None:
            return self._read(exchange.reply_bytes)
        return self._read(int.from_bytes(self._read(4), "big"))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, count: int) -> bytes:
        data = self._socket.recv(count)
        if len(data) == count:
            return data
        parts = bytearray(data)
        while len(parts) < count:
            data = self._socket.recv(count - len(parts))
            if not data:
                raise BenchError(f"the server closed the connection; it had sent {bytes(parts[:200])!r}")
            parts += data
        return bytes(parts)
