"""One connection: bytes in, frames out, in order, and nobody else disturbed.

The way of a frame: read into one buffer shared by all sessions → decode → run → encode → one write. Only what is
left over (a frame still incomplete, or input beyond this connection's share of the turn) is copied into the session.

        reading ──frame large or costly──▶ working on it in slices ──▶ reading
           ├── peer takes no replies ──▶ stalled ──▶ reading
           ├── a watch or a backup answered ──▶ feeding: events go out whenever there are any; input ends it
           └── last frame sent ──▶ leaving: input is discarded until the peer closes, or LINGER_S is over

While it works or is stalled a session does not read. So a peer costs at most its leftover and its replies.
"""

import asyncio
import logging
import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, cast

from kvd.engine.durability import NO_WAIT, LogPosition
from kvd.protocol.frames import HEADER_BYTES, frame
from kvd.protocol.messages import DECODE_ERRORS, AnyRequest, Set, decode_batch, encode_replies
from kvd.requests.errors import error_reply, fault
from kvd.requests.sliced import replies_in_slices, run_in_slices
from kvd.server.feed_writer import FeedWriter
from kvd.server.peers import Peer, send_with_descriptor

if TYPE_CHECKING:
    from kvd.engine.feeds import Event, EventSource
    from kvd.server.server import Server

logger = logging.getLogger(__name__)

# One turn of the loop takes at most so much from one connection.
READ_BYTES = 256 * 1024
TURN_FRAMES = 64
# A larger frame is run in slices.
SLICE_BYTES = 64 * 1024
# Before hello a TCP peer has no business with more.
GREETING_BYTES = 4 * 1024
WRITE_HIGH_WATER_BYTES = 256 * 1024

_read_view = memoryview(bytearray(READ_BYTES))
_header = struct.Struct(">I").unpack_from


class Session(asyncio.BufferedProtocol):
    """The server's end of one connection."""

    __slots__ = (
        "_busy_poll",
        "_commands",
        "_held",
        "_held_bytes",
        "_last",
        "_leaving",
        "_left",
        "_pump",
        "_server",
        "_slices",
        "_stalled",
        "_turn",
        "_wanted",
        "active",
        "finishing",
        "peer",
        "transport",
    )

    peer: Peer
    transport: asyncio.Transport

    def __init__(self, server: "Server") -> None:
        self._server = server
        self._commands = server.commands
        self._turn = server.turn
        self._busy_poll = server.busy_poll
        self._left = bytearray()  # input not taken yet
        self._wanted = HEADER_BYTES  # how much of it there has to be before it is worth another look
        self._slices: Iterator[list[bytes] | None] | None = None  # the large frame in work
        self._stalled = False
        self._pump: FeedWriter | None = None  # once it only tells
        # Replies that wait for the disk, in order, and the last frame behind them.
        self._held: deque[tuple[LogPosition, bytes]] = deque()
        self._held_bytes = 0
        self._last: dict[str, object] | None = None
        self.finishing = False
        self._leaving = False
        self.active = False  # whether anything came since the server's last sweep

    # ------------------------------------------------------------------ called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        self._server.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leaving = True
        self._slices = None
        self._pump = None
        self._left = bytearray()
        self._held.clear()
        self._close_descriptor()
        self._server.forget(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _read_view

    def buffer_updated(self, nbytes: int) -> None:
        self.active = True
        if self._busy_poll is not None:
            self._busy_poll.note_input()
        if self._leaving:
            return
        if self._pump is not None:
            self._refuse_input()
        elif not self._left and nbytes == HEADER_BYTES + _header(_read_view)[0] <= SLICE_BYTES and self.peer.greeted:
            self._take_whole(nbytes)
        elif self._left:
            self._left += _read_view[:nbytes]
            if len(self._left) >= self._wanted:
                self._continue()
        else:
            taken = self._take(_read_view, nbytes)
            if taken < nbytes and not self._leaving:
                self._left += _read_view[taken:nbytes]
                self._settle()
        if nbytes == READ_BYTES and not self.busy and len(self._left) < self._wanted:
            # The transport would read on at once: the others' turn first. (With a frame left over it is paused.)
            self.transport.pause_reading()
            self._server.loop.call_soon(self._read_on)

    def pause_writing(self) -> None:
        self._stalled = True
        self.transport.pause_reading()
        self._server.arm_write_deadline(self)

    def resume_writing(self) -> None:
        self._stalled = False
        self._server.disarm(self)
        if not self._leaving:
            self._server.loop.call_soon(self._continue)

    # ------------------------------------------------------------------ called by the server

    @property
    def busy(self) -> bool:
        """Whether it takes no input now."""
        return (
            self._stalled
            or self._leaving
            or self._slices is not None
            or self._last is not None
            or self._held_bytes > WRITE_HIGH_WATER_BYTES
        )

    @property
    def buffer_bytes(self) -> int:
        """What it holds of its peer's."""
        return len(self._left) + self._held_bytes + self.transport.get_write_buffer_size()

    def finish(self) -> None:
        """Answer every frame already read, then say goodbye."""
        self.finishing = True
        if self._pump is not None:
            self._pump.wake()
        elif not self.busy:
            self._continue()

    @property
    def feeding(self) -> bool:
        """Whether it only tells its peer what that asked for."""
        return self._pump is not None

    @property
    def leaving(self) -> bool:
        """Whether it was sent its last frame."""
        return self._leaving

    def leave(self, last: dict[str, object]) -> None:
        """Send ``last`` as the last frame, behind all that still waits for the disk, and close."""
        self._commands.before_others()
        if self._leaving:
            return
        self._slices = None  # what has not run of the frame in work does not run
        if self._held:
            self._last = last
            self._left = bytearray()
            self.transport.pause_reading()
            return
        self._leaving = True
        self._left = bytearray()
        self.transport.write(frame(encode_replies(last)))
        self._server.arm_linger(self)
        if self.peer.uid is not None or not self.transport.can_write_eof():
            # What the peer has sent meanwhile cannot make it lose this frame: a Unix socket delivers it first. (TLS
            # cannot be closed by halves.)
            self.transport.close()
        else:
            # Closing TCP with unread input resets the connection, and the frame may be lost. So: half-close, and
            # discard input until the peer has closed too.
            self.transport.write_eof()
            self.transport.resume_reading()

    def abort(self) -> None:
        """Close at once."""
        self._leaving = True
        self.transport.abort()

    # ------------------------------------------------------------------ replies

    def _send(self, data: bytes, needs: LogPosition) -> None:
        """Write a reply, or hold it until what it shows is on the disk: never before one that is held already."""
        durability = self._commands.durability
        if durability is None or (not self._held and durability.has_reached(needs)):
            if self.peer.descriptor is not None:
                self._write_with_descriptor(data)
            else:
                self.transport.write(data)
            return
        self._held.append((needs, data))
        self._held_bytes += len(data)
        if self._held_bytes > WRITE_HIGH_WATER_BYTES:
            self.transport.pause_reading()
        durability.wait(self, needs)

    def on_durable(self) -> None:
        """More has reached the disk: write what may leave now."""
        durability = self._server.durability
        if self._leaving or durability is None or not self._held:
            return
        before = self._held_bytes
        ready: list[bytes] = []
        while self._held and durability.has_reached(self._held[0][0]):
            ready.append(self._held.popleft()[1])
        self._held_bytes -= sum(map(len, ready))
        if self.peer.descriptor is not None and ready:
            self._write_with_descriptor(ready.pop(0))
        self.transport.writelines(ready)
        if self._held:
            durability.wait(self, self._held[0][0])
        elif self._last is not None:
            last, self._last = self._last, None
            self.leave(last)
        elif before > WRITE_HIGH_WATER_BYTES or self.finishing:
            self._server.loop.call_soon(self._continue)

    def _write_with_descriptor(self, data: bytes) -> None:
        """Send a descriptor with the reply: the connection's first, so nothing can be on its way before it."""
        descriptor = self.peer.descriptor
        assert descriptor is not None
        try:
            connection: int = self.transport.get_extra_info("socket").fileno()
            sent = send_with_descriptor(connection, data, descriptor)
        except OSError:
            self.abort()  # it has gone
            return
        finally:
            self._close_descriptor()
        if sent < len(data):
            self.transport.write(data[sent:])

    def _close_descriptor(self) -> None:
        descriptor, self.peer.descriptor = self.peer.descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    # ------------------------------------------------------------------ called for what was put aside

    def run(self, requests: Sequence[AnyRequest], frame_bytes: int) -> None:
        """Run a small frame's requests, and answer."""
        try:
            reply = self._answer(requests, frame_bytes)
        except Exception:
            self.fail_internal()
            return
        if reply is not None:
            self.reply(reply, self._commands.needs)

    def reply(self, data: bytes, needs: LogPosition) -> None:
        """Send the answer to a frame that was put aside; nobody may be there any more."""
        if not self._leaving:
            self._send(data, needs)

    # ------------------------------------------------------------------ frames

    def _take_whole(self, size: int) -> None:
        """As ``_take``, the short way, for what comes most often: one frame, and nothing before or behind it."""
        try:
            requests = decode_batch(_read_view[HEADER_BYTES:size])
        except DECODE_ERRORS as error:
            self._send(self._refuse(str(error)), NO_WAIT)
            return
        commands = self._commands
        if type(requests[0]) is not Set or not self._turn.takes(requests):
            try:
                reply = self._answer(requests, size - HEADER_BYTES)
            except Exception:
                self.fail_internal()
                return
            self.peer.fresh = False
            if reply is None or self._leaving:  # for a fault in what was put aside before
                return
            if commands.durability is None and self.peer.descriptor is None:
                self.transport.write(reply)
            else:
                self._send(reply, commands.needs)
            if self.peer.feed is not None:
                self._begin_feed(self.peer.feed)
        else:
            self.peer.fresh = False
            self._turn.enqueue(self, requests, size - HEADER_BYTES)

    def _take(self, data: memoryview, size: int) -> int:
        """Answer whole frames from ``data``, as many as this turn allows; how many bytes were taken."""
        at = frames = 0
        replies = b""
        needs = NO_WAIT
        limit = self._max_frame_bytes()
        while size - at >= HEADER_BYTES and frames < TURN_FRAMES:
            (length,) = _header(data, at)
            end = at + HEADER_BYTES + length
            if length > limit:
                self._send(replies, needs)
                self.leave(error_reply("too_large", f"a frame has at most {limit} bytes, this one says {length}"))
                return size
            if end > size:
                break
            payload = data[at + HEADER_BYTES : end]
            at = end
            if length > SLICE_BYTES:
                self.peer.fresh = False
                self._begin_work(replies_in_slices(self._commands, memoryview(bytes(payload)), self.peer))
                break
            greeted = self.peer.greeted
            try:
                requests = decode_batch(payload)
            except DECODE_ERRORS as error:
                reply: bytes | None = self._refuse(str(error))
            else:
                if greeted and type(requests[0]) is Set and self._turn.takes(requests):
                    if replies:
                        self._send(replies, needs)
                        replies, needs = b"", NO_WAIT
                    self.peer.fresh = False
                    self._turn.enqueue(self, requests, length)
                    if self._leaving:  # a fault of ours
                        return size
                    frames += 1
                    continue
                try:
                    reply = self._answer(requests, length)
                except Exception:
                    self._send(replies, needs)
                    self.fail_internal()
                    return size
            self.peer.fresh = False
            if self._leaving:  # for a fault in what was put aside before
                return size
            if reply is None:
                break
            replies = replies + reply if replies else reply
            frames += 1
            if not greeted:
                if not self.peer.greeted:
                    break  # nothing behind a failed greeting is looked at
                self._server.disarm(self)
                limit = self._max_frame_bytes()
            if self._commands.needs is not NO_WAIT:
                needs = needs.add(self._commands.needs)
            if self.peer.feed is not None:
                break
            if len(replies) > WRITE_HIGH_WATER_BYTES:
                # Not more of it in memory before it is known whether the peer takes it.
                self._send(replies, needs)
                replies, needs = b"", NO_WAIT
                if self.busy:
                    break
        if replies:
            self._send(replies, needs)
        if self.peer.feed is not None and self._slices is None:
            self._begin_feed(self.peer.feed)
        if at and not self.peer.greeted:
            self.leave(error_reply("unauthenticated", "the first frame must say hello with a valid token"))
        return at

    def _max_frame_bytes(self) -> int:
        return self._commands.limits.max_frame_bytes if self.peer.greeted else GREETING_BYTES

    def _refuse(self, why: str) -> bytes:
        """The reply to a frame that is none, behind those before it."""
        self._commands.before_others()
        self._commands.needs = NO_WAIT
        return frame(encode_replies(error_reply("bad_request", why)))

    def _answer(self, requests: Sequence[AnyRequest], frame_bytes: int) -> bytes | None:
        """The reply to one frame: one run, one encode. None if it is done in slices."""
        replies = self._commands.run(requests, self.peer, frame_bytes)
        if replies is None:
            self._begin_work(run_in_slices(self._commands, [requests], len(requests), self.peer))
            return None
        encoded = encode_replies(replies)
        commands = self._commands
        if commands.began_ns:
            took_ns = perf_counter_ns() - commands.began_ns
            if took_ns >= commands.slow_log.threshold_ns:
                commands.note_slow(requests, self.peer, took_ns)
        return len(encoded).to_bytes(HEADER_BYTES, "big") + encoded

    def _take_large(self) -> bool:
        """Begin with the frame that ``_left`` starts with, if that is a large one; whether it was.

        Where it is: to copy 16 MiB would keep everybody waiting for some milliseconds.
        """
        size = HEADER_BYTES + (_header(self._left)[0] if len(self._left) >= HEADER_BYTES else 0)
        if not HEADER_BYTES + SLICE_BYTES < size <= min(len(self._left), HEADER_BYTES + self._max_frame_bytes()):
            return False
        input_, self._left = self._left, self._left[size:]
        self._server.disarm(self)
        self.peer.fresh = False
        self._begin_work(replies_in_slices(self._commands, memoryview(input_)[HEADER_BYTES:size], self.peer))
        return True

    def _begin_work(self, slices: Iterator[list[bytes] | None]) -> None:
        self._slices = slices
        self.transport.pause_reading()
        self._server.loop.call_soon(self._work)

    def _work(self) -> None:
        """Do one slice of the frame in work, then let the others have their turn."""
        if self._slices is None:
            return
        try:
            pieces = next(self._slices)
        except Exception:
            self._slices = None
            self.fail_internal()
            return
        if self._leaving:  # by what it asked for itself
            return
        if pieces is None:
            self._server.loop.call_soon(self._work)
            return
        self._slices = None
        self._send(b"".join(pieces), self._commands.needs)
        if self.peer.feed is not None:
            self._begin_feed(self.peer.feed)
        self._continue()

    def fail_internal(self) -> None:
        """A fault of ours: what has run of the frame is not known, so nothing more can be answered."""
        logger.exception("internal error in a frame of %s", self.peer.name)
        self.leave(fault())

    def _continue(self) -> None:
        """Take what is left over, then decide what comes next."""
        if self.busy:
            return
        if self._left and self._pump is None and not self._take_large():
            with memoryview(self._left) as view:
                taken = self._take(view, len(view))
            del self._left[:taken]
            if taken and not self._leaving:  # who leaves has a new deadline
                self._server.disarm(self)
        self._settle()

    def _settle(self) -> None:
        """Decide what comes next, with less than a turn's frames taken or the turn over."""
        if self.busy:
            return
        if self._pump is not None:
            self._go_on_feeding(self._pump)
            return
        self._wanted = HEADER_BYTES
        if len(self._left) >= HEADER_BYTES:
            (length,) = _header(self._left)
            self._wanted = HEADER_BYTES + min(length, self._commands.limits.max_frame_bytes)
        if len(self._left) >= self._wanted:
            self.transport.pause_reading()
            self._server.loop.call_soon(self._continue)
        elif self.finishing and self._held:
            self.transport.pause_reading()
        elif self.finishing:
            self.leave(error_reply("shutting_down", "the server is stopping; what is not answered did not run"))
        elif self._left:
            self._server.arm_read_deadline(self, self._wanted)
            self.transport.resume_reading()
        else:
            self._server.disarm(self)
            self.transport.resume_reading()

    def _read_on(self) -> None:
        if not self.busy and len(self._left) < self._wanted:
            self.transport.resume_reading()

    # ------------------------------------------------------------------ feeds

    def _begin_feed(self, feed: "EventSource") -> None:
        """From now on this connection only tells its peer what that asked for."""
        if not self._commands.may_go_on(self.peer):
            self.leave(error_reply("forbidden", "the rules have changed: no right to what was to be told"))
            return
        self._pump = FeedWriter(feed, self, self._server.loop, self._commands.feeds)

    def _go_on_feeding(self, pump: FeedWriter) -> None:
        if self._left:
            self._refuse_input()
        else:
            self.transport.resume_reading()  # to see the peer close
            pump.wake()

    def _refuse_input(self) -> None:
        self.leave(error_reply("bad_request", "a connection that watches takes no more requests"))

    def tell(self, events: "list[Event]") -> None:
        """Send events of the feed."""
        self._send(frame(encode_replies(events)), NO_WAIT)
