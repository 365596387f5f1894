"""A raw connection: it sends any bytes, also those that no client would send."""

import array
import os
import select
import socket
from collections.abc import Iterator
from typing import Any, Self

import msgspec

from tests.harness.waiting import DEADLINE_S

KIB = 1024
MIB = 1024 * KIB

encode = msgspec.msgpack.encode
decode = msgspec.msgpack.decode


def packed(payload: bytes) -> bytes:
    """A frame with these bytes in it."""
    return len(payload).to_bytes(4, "big") + payload


def frame(*elements: object) -> bytes:
    """A frame of requests, or of replies: both are arrays."""
    return packed(encode(elements))


PING, PONG = frame(["ping"]), frame(True)


class RawPeer:
    """The client's end of a connection. ``connected`` is a socket, or one with TLS around it."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(DEADLINE_S)
        self._early = b""

    @classmethod
    def unix(cls, path: str) -> Self:
        """Connect to a Unix socket."""
        connecting = socket.socket(socket.AF_UNIX)
        try:
            connecting.connect(path)  # waits while the queue is full, which it would not do with a time-out
        except OSError:
            connecting.close()
            raise
        return cls(connecting)

    @classmethod
    def tcp(cls, port: int, host: str = "127.0.0.1") -> Self:
        """Connect to a port."""
        return cls(socket.create_connection((host, port)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket, whatever is under way."""
        self.socket.close()

    # ------------------------------------------------------------------ sending

    def send(self, data: bytes) -> None:
        """Send these bytes."""
        self.socket.sendall(data)

    def request(self, *requests: object) -> None:
        """Send one frame of requests, and leave its reply for later."""
        self.send(frame(*requests))

    def ask(self, *requests: object) -> Any:  # noqa: ANN401 - whatever the daemon replies
        """Send one frame of requests; the payload of the next frame that arrives."""
        self.request(*requests)
        return self.receive()

    # ------------------------------------------------------------------ receiving

    def receive(self) -> Any:  # noqa: ANN401 - whatever the daemon replies
        """The next frame's payload; EOFError at the end of the stream, also in the middle of a frame."""
        return decode(self.read(int.from_bytes(self.read(4), "big")))

    def frames(self) -> Iterator[Any]:
        """All frames up to the end of the stream."""
        try:
            while True:
                yield self.receive()
        except EOFError:
            return

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes; EOFError if there are fewer."""
        parts, missing = [self._early[:size]], size - len(self._early)
        self._early = self._early[size:]
        while missing > 0:
            data = self._recv()
            if not data:
                raise EOFError
            parts.append(data[:missing])
            self._early = data[missing:]
            missing -= len(data)
        return b"".join(parts)

    def rest(self) -> bytes:
        """Everything up to the end of the stream."""
        data, self._early = self._early, b""
        while more := self._recv():
            data += more
        return data

    def says_nothing_more(self) -> bool:
        """Whether the stream ends here; waits for the end."""
        return self.rest() == b""

    def is_answered(self) -> bool:
        """Whether anything has arrived."""
        return bool(self._early or select.select([self.socket], [], [], 0)[0])

    def _recv(self) -> bytes:
        try:
            return self.socket.recv(MIB)
        except ConnectionResetError:
            return b""


class DescriptorPeer(RawPeer):
    """A connection over which the daemon may pass descriptors: they are in ``passed``."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__(connected)
        self.passed: list[int] = []

    def close(self) -> None:
        while self.passed:
            os.close(self.passed.pop())
        super().close()

    def _recv(self) -> bytes:
        data, ancillary, _, _ = self.socket.recvmsg(64 * KIB, socket.CMSG_SPACE(253 * 4))
        for _, _, passed in ancillary:
            self.passed += array.array("i", passed)
        return data
