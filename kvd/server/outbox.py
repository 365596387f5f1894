"""The outgoing replies of one connection: in order, and none before the disk has what it shows.

        send ──nothing waits, and the log has reached the position──▶ transport
          └──▶ pending ──on_durable──▶ transport ──▶ the final reply, if there is one ──▶ closed

Both protocols share it: the frames of ``session.py``, and HTTP. After the final reply a TCP connection is half-closed:
closing it with unread input would reset it, and the peer could lose that reply.
"""

import asyncio
import os
from collections import deque
from typing import Protocol

from kvd.engine.durability import NO_WAIT, Durability, LogPosition
from kvd.requests.peer import Peer
from kvd.server.peers import send_with_descriptor

__all__ = ["HIGH_WATER_BYTES", "NO_WAIT", "LogPosition", "Outbox"]

# While more bytes than this wait to be sent to a peer, nothing is read from it.
HIGH_WATER_BYTES = 256 * 1024


class Owner(Protocol):
    """The connection that an outbox belongs to: it is complete once it has a transport."""

    peer: Peer
    transport: asyncio.Transport

    def on_sent(self, *, was_full: bool) -> None:
        """Called when nothing is pending any more. ``was_full``: reading had paused, because too much was pending."""

    def on_full(self) -> None:
        """Called when much is pending, in the middle of ``send``."""

    def on_closed(self) -> None:
        """Called once the final reply is on its way and nothing more can be sent."""


class Outbox:
    """What one connection sends. ``is_stalled``: the peer does not read its replies.

    ``pending``: the replies that wait for the disk. ``has_final``: whether the final reply is pending or has been
    written. ``is_closed``: whether it has been written, so that nothing more can be sent.
    """

    __slots__ = ("_durability", "_owner", "has_final", "is_closed", "is_stalled", "pending", "pending_bytes")

    def __init__(self, owner: Owner, durability: Durability) -> None:
        self._owner = owner
        self._durability = durability
        self.pending: deque[tuple[LogPosition, bytes]] = deque()
        self.pending_bytes = 0
        self.is_stalled = False
        self.has_final = False
        self.is_closed = False

    @property
    def is_full(self) -> bool:
        """Whether too much waits to be sent, so that nothing should be read from the peer."""
        return self.is_stalled or self.pending_bytes > HIGH_WATER_BYTES

    def send(self, data: bytes, position: LogPosition) -> None:
        """Write a reply, or keep it until the log has reached ``position``; never before one that waits already."""
        if self.has_final:
            return
        if not self.pending and (position is NO_WAIT or self._durability.has_reached(position)):
            if self._owner.peer.descriptor is None:
                self._owner.transport.write(data)
            else:
                self._write_with_descriptor(data)
            return
        self.pending.append((position, data))
        self.pending_bytes += len(data)
        if position is not NO_WAIT:
            self._durability.wait(self, position)
        if self.pending_bytes > HIGH_WATER_BYTES:
            self._owner.transport.pause_reading()
            self._owner.on_full()

    def send_pieces(self, pieces: list[bytes], position: LogPosition) -> None:
        """As ``send``, for a reply in pieces; large ones are not copied."""
        if sum(map(len, pieces)) <= HIGH_WATER_BYTES or self._owner.peer.descriptor is not None:
            self.send(b"".join(pieces), position)
            return
        for piece in pieces:
            self.send(piece, position)

    def send_final(self, data: bytes, position: LogPosition = NO_WAIT) -> None:
        """Send ``data`` after all pending replies, then close. Further calls do nothing."""
        if self.has_final:
            return
        self.has_final = True
        if not self.pending and (position is NO_WAIT or self._durability.has_reached(position)):
            self._close(data)
            return
        self.pending.append((position, data))
        self.pending_bytes += len(data)
        if position is not NO_WAIT:
            self._durability.wait(self, position)
        self._owner.transport.pause_reading()

    def on_durable(self) -> None:
        """Write the pending replies whose log position has been reached."""
        pending = self.pending
        if self.is_closed or not pending:
            return
        was_full = self.pending_bytes > HIGH_WATER_BYTES
        ready: list[bytes] = []
        while pending and self._durability.has_reached(pending[0][0]):
            ready.append(pending.popleft()[1])
        self.pending_bytes -= sum(map(len, ready))
        final = ready.pop() if self.has_final and not pending else None
        if ready and self._owner.peer.descriptor is not None:
            self._write_with_descriptor(ready.pop(0))
        self._owner.transport.writelines(ready)
        if pending:
            self._durability.wait(self, pending[0][0])
        elif final is not None:
            self._close(final)
        else:
            self._owner.on_sent(was_full=was_full)

    def clear(self) -> None:
        """Drop everything: the connection has ended."""
        self.has_final = self.is_closed = True
        self.pending.clear()
        self.pending_bytes = 0
        self._close_descriptor()

    def close(self) -> None:
        """End the connection after what has been written, without a final reply."""
        self._close(b"")

    def _close(self, final: bytes) -> None:
        self.has_final = self.is_closed = True
        transport = self._owner.transport
        if final:
            transport.write(final)
        self._owner.on_closed()
        if self._owner.peer.uid is not None or not transport.can_write_eof():
            # A Unix socket delivers this reply whatever the peer has sent meanwhile. (TLS cannot be half-closed.)
            transport.close()
        else:
            # Half-close, and discard input until the peer has closed too.
            transport.write_eof()
            transport.resume_reading()

    def _write_with_descriptor(self, data: bytes) -> None:
        """Send a descriptor with the reply. It is the connection's first reply, so no bytes are queued before it."""
        transport, descriptor = self._owner.transport, self._owner.peer.descriptor
        assert descriptor is not None
        try:
            sent_bytes = send_with_descriptor(transport.get_extra_info("socket").fileno(), data, descriptor)
        except OSError:  # the peer has gone
            self.has_final = self.is_closed = True
            transport.abort()
            return
        finally:
            self._close_descriptor()
        if sent_bytes < len(data):
            transport.write(data[sent_bytes:])

    def _close_descriptor(self) -> None:
        peer = self._owner.peer
        descriptor, peer.descriptor = peer.descriptor, None
        if descriptor is not None:
            os.close(descriptor)
