"""Cuts frames out of a connection's input, and joins the replies to consecutive frames."""

import struct

from kvd.protocol import HEADER_BYTES
from kvd.server.outbox import HIGH_WATER_BYTES, NO_WAIT, LogPosition, Outbox

# Reads the length that a header declares, at an offset.
length_at = struct.Struct(">I").unpack_from


class FrameTooLarge(Exception):
    """The header declares a frame that is larger than the limit."""


def frame_end(data: memoryview, at: int, size: int, max_frame_bytes: int) -> int:
    """Return where the frame at ``at`` ends; beyond ``size`` if that is not known yet. Raises FrameTooLarge."""
    if size - at < HEADER_BYTES:
        return size + 1
    (length,) = length_at(data, at)
    if length > max_frame_bytes:
        raise FrameTooLarge(f"a frame has at most {max_frame_bytes} bytes, this one says {length}")
    return at + HEADER_BYTES + int(length)


class Replies:
    """Replies to consecutive frames, written together; they wait for the latest position of all."""

    __slots__ = ("_data", "_outbox", "_position")

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._data = b""
        self._position = NO_WAIT

    def add(self, data: bytes, position: LogPosition) -> None:
        """Add the reply to one frame."""
        self._data = self._data + data if self._data else data
        if position is not NO_WAIT:
            self._position = self._position.add(position)

    @property
    def are_large(self) -> bool:
        """Whether the replies must be sent before more of them pile up in memory: the peer may not take them."""
        return len(self._data) > HIGH_WATER_BYTES

    def flush(self) -> None:
        """Send the replies that were added."""
        if self._data:
            data, position = self._data, self._position
            self._data, self._position = b"", NO_WAIT
            self._outbox.send(data, position)
