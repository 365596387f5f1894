"""One round of work with a server: the bytes to send, and how to know the end of its answer.

The same exchange is used by the load generator (which repeats it) and by the plain client here, for loading,
checking and pinging.
"""

import socket
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError

PATIENCE_S = 30.0


@dataclass(frozen=True)
class Exchange:
    """What is sent and what comes back.

    `reply_bytes` is the whole answer's length, or None if it is one frame with its length in front;
    `operations` is how many gets or sets the round is worth.
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
        """Send the request and return the whole answer (a frame's without its length). Raises OSError, BenchError."""
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
                raise BenchError(f"the server closed the connection after {bytes(parts[:200])!r}")
            parts += data
        return bytes(parts)
