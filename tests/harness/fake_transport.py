"""A connection without a socket: bytes that a test brings to a session, and the frames that the session writes."""

from collections import deque
from typing import Any

import msgspec

from kvd.requests.peer import Peer
from kvd.server import session as session_module
from kvd.server.server import Server
from kvd.server.session import Session


class FakeTransport:
    """A connection's transport: it keeps what the session writes, and brings nothing while reading is paused."""

    def __init__(self, server: Server, peer: Peer) -> None:
        self.sent = bytearray()
        self.is_closed = False
        self._loop = server.loop
        self._is_paused = False
        self._arrived: deque[bytes] = deque()
        self.session = Session(server)
        self.session.transport = self  # type: ignore[assignment] # it is all that a session uses of one
        self.session.peer = self.peer = peer
        server.connections.add(self.session)

    def receive(self, data: bytes) -> None:
        """Some bytes arrive from the client, in pieces as large as the session's buffer."""
        size = len(session_module._read_view)
        self._arrived.extend(data[at : at + size] for at in range(0, len(data), size))
        self._deliver()

    def _deliver(self) -> None:
        while self._arrived and not self._is_paused:
            data = self._arrived.popleft()
            session_module._read_view[: len(data)] = data
            self.session.buffer_updated(len(data))

    def replies(self) -> list[Any]:
        """The frames that the session has written, decoded."""
        frames, at = [], 0
        while at < len(self.sent):
            end = at + 4 + int.from_bytes(self.sent[at : at + 4], "big")
            frames.append(msgspec.msgpack.decode(self.sent[at + 4 : end]))
            at = end
        return frames

    # ------------------------------------------------------------------ called by the session

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.sent += data

    def writelines(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self.write(piece)

    def close(self) -> None:
        self.is_closed = True

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> None:
        """There is no socket."""

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        self._loop.call_soon(self._deliver)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.is_closed = True
