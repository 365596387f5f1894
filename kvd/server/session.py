"""One connection: it answers frames in order, and does not delay other connections.

The path of a frame: read into one buffer shared by all sessions → decode → run and encode → one write. Only the rest of
the input (an incomplete frame, or input beyond this connection's share of the turn) is copied into the session.

        READING ──a frame is large or costly──▶ SLICING ──▶ READING
           ├── a watch or a backup was answered ──▶ FEED: events go out as they happen; any input ends it
           └── the final reply was sent, or waits for the disk ──▶ CLOSING: input is discarded

While it is SLICING, or its outbox is full, a session does not read. So a peer's memory is bounded by its unprocessed
input and its replies. What it does later, it does as a step of ``Turns``, which bounds a turn of the loop for all
sessions together; and when a turn is over, new input that is not small waits for the next one.
"""

import asyncio
import enum
import logging
from typing import cast

from kvd.protocol import HEADER_BYTES, frame
from kvd.protocol.messages import DECODE_ERRORS, AnyRequest, Set, decode_batch, encode_replies
from kvd.requests.errors import error_reply, internal_error
from kvd.requests.peer import Peer
from kvd.requests.sliced import SLICE_BYTES, Result
from kvd.requests.streams import may_go_on
from kvd.requests.turns import LIGHT_BYTES, Steps
from kvd.server.feed_writer import Event, EventSource, FeedWriter
from kvd.server.framing import FrameTooLarge, Replies, frame_end, length_at
from kvd.server.outbox import HIGH_WATER_BYTES, NO_WAIT, LogPosition, Outbox
from kvd.server.peers import has_hung_up
from kvd.server.server import Server

logger = logging.getLogger(__name__)

# One turn of the loop takes at most this much from one connection.
READ_BYTES = 256 * 1024
FRAMES_PER_TURN = 64
# The largest frame of a TCP peer before hello.
HELLO_BYTES = 4 * 1024
# The message to connections that are never served, because the server stops.
GOODBYE = frame(encode_replies(error_reply("shutting_down", "the server is stopping; nothing ran")))

_read_view = memoryview(bytearray(READ_BYTES))


class State(enum.Enum):
    """What a session is doing."""

    READING = enum.auto()
    SLICING = enum.auto()
    FEED = enum.auto()
    CLOSING = enum.auto()


# Globals, because looking up a member in its class takes several times as long.
_READING, _SLICING, _FEED, _CLOSING = State


class Session(asyncio.BufferedProtocol):
    """The server's end of one connection."""

    __slots__ = (
        "_buffer",
        "_busy_poll",
        "_executor",
        "_farewell",
        "_feed_writer",
        "_needed",
        "_outbox",
        "_server",
        "_set_batch",
        "_sliced_bytes",
        "_sliced_run",
        "_state",
        "_turns",
        "active",
        "is_draining",
        "peer",
        "transport",
    )

    peer: Peer
    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self._server = server
        self._executor = server.executor
        self._set_batch = server.set_batch
        self._busy_poll = server.busy_poll
        self._outbox = Outbox(self, server.durability)
        self._state = State.READING
        self._buffer = bytearray()  # input that is not processed yet
        self._needed = HEADER_BYTES  # how many bytes _buffer must have before the next frame can be complete
        self._turns = server.turns
        self._sliced_run: Steps[Result] | None = None  # in the state SLICING
        self._sliced_bytes = 0  # what the frame in work holds
        self._feed_writer: FeedWriter | None = None  # in the state FEED
        self._farewell: dict[str, object] | None = None  # the last frame, after the reply to the frame that is SLICING
        self.is_draining = False
        self.active = False  # whether input has arrived since the server's last sweep

    # ------------------------------------------------------------------ called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._server.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._begin_closing()
        self._outbox.clear()
        self._server.forget(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _read_view

    def buffer_updated(self, nbytes: int) -> None:
        self.active = True
        if self._busy_poll is not None:
            self._busy_poll.note_input()
        if self._state is not _READING:
            self._take_unexpected(nbytes)
        elif self._turns.is_over and (nbytes > LIGHT_BYTES or self._buffer):
            self._take_later(nbytes)
        elif (
            not self._buffer
            and nbytes == HEADER_BYTES + length_at(_read_view)[0] <= SLICE_BYTES
            and self.peer.is_authenticated
        ):
            self._take_single(nbytes)
            if self._server.is_crowded:
                self._server.budget.report_soon(self)
            return
        elif self._buffer:
            self._buffer += _read_view[:nbytes]
            if len(self._buffer) >= self._needed:
                self._continue()
        else:
            taken = self._take(_read_view, nbytes)
            if taken < nbytes and self._state is not _CLOSING:
                self._buffer += _read_view[taken:nbytes]
                self._update_state()
        if nbytes == READ_BYTES and not self.is_busy and len(self._buffer) < self._needed:
            # The transport would read on at once, but other connections go first. (With a frame left it is paused.)
            self.transport.pause_reading()
            self._server.loop.call_soon(self._read_on)
        if self._buffer or self._server.is_crowded:
            self._server.budget.report(self)

    def pause_writing(self) -> None:
        self._outbox.is_stalled = True
        self.transport.pause_reading()
        self._server.arm_write_deadline(self)
        self._server.budget.report_soon(self)

    def resume_writing(self) -> None:
        self._outbox.is_stalled = False
        self._server.disarm(self)
        self._server.budget.report_soon(self)
        if not self._outbox.is_closed:
            self._turns.add(self._continue)

    # ------------------------------------------------------------------ called by the server and the outbox

    @property
    def is_busy(self) -> bool:
        """Whether it cannot take input now."""
        return self._state is _SLICING or self._state is _CLOSING or self._outbox.is_full

    @property
    def buffer_bytes(self) -> int:
        """The bytes that it buffers for its peer."""
        input_bytes = len(self._buffer) + self._sliced_bytes
        return input_bytes + self._outbox.pending_bytes + self.transport.get_write_buffer_size()

    @property
    def is_feed(self) -> bool:
        """Whether it only sends events."""
        return self._state is _FEED

    @property
    def is_closing(self) -> bool:
        """Whether its last bytes are on their way."""
        return self._outbox.is_closed

    def drain(self) -> None:
        """Answer every frame that has been read, then close."""
        self.is_draining = True
        if self._feed_writer is not None:
            self._feed_writer.wake()
        else:
            self._continue()

    def close_with_error(self, error: dict[str, object]) -> None:
        """Close after the replies that wait for the disk, with ``error`` as the last frame."""
        if self._set_batch.is_pending:
            self._set_batch.flush()
        if not self._outbox.has_final:
            self._begin_closing()
            self._outbox.send_final(frame(encode_replies(error)))

    def revoke(self, error: dict[str, object]) -> None:
        """Close with ``error``: the client is no longer authenticated. The rest of a frame in work does not run.

        That frame is answered first, because some of its requests may have run.
        """
        self.peer.is_authenticated = False
        if self._state is _SLICING:
            self._farewell = error
        else:
            self.close_with_error(error)

    def abort(self) -> None:
        """Close at once."""
        self._begin_closing()
        self._outbox.clear()
        self.transport.abort()

    def on_sent(self, *, was_full: bool) -> None:
        """Read on if reading was paused because of the disk."""
        if was_full or self.is_draining:
            self._turns.add(self._continue)

    def on_full(self) -> None:
        """Charge what waits for the disk."""
        self._server.budget.report_soon(self)

    def on_closed(self) -> None:
        """Give the peer some time to read the last frame."""
        self._begin_closing()
        self._server.arm_linger(self)

    def _begin_closing(self) -> None:
        self._state = _CLOSING
        self._sliced_run = None  # the rest of a sliced frame does not run
        self._sliced_bytes = 0
        self._feed_writer = None
        self._buffer = bytearray()

    # ------------------------------------------------------------------ called by the set batcher

    def run_frame(self, requests: list[Set], frame_bytes: int) -> None:
        """Run the sets of a small frame, and reply."""
        if self._turns.is_over:
            self._run_sliced(self._server.sliced_runs.run_requests(requests, self.peer))
            return
        try:
            result = self._run(requests, frame_bytes)
        except Exception:
            self.fail_internal()
            return
        if result is not None:
            self.reply(*result)

    def reply(self, data: bytes, position: LogPosition) -> None:
        """Send the reply to a queued frame, unless the connection has closed."""
        if not self._outbox.is_closed:
            self._outbox.send(data, position)

    def fail_internal(self) -> None:
        """Close after a fault in the server: how much of the frame ran is not known, so no more frames are answered."""
        logger.exception("internal error in a frame of %s", self.peer.name)
        self.close_with_error(internal_error())

    # ------------------------------------------------------------------ frames

    def _take_single(self, size: int) -> None:
        """The fast path of ``_take``, for the most common input: one frame and nothing else."""
        peer, outbox = self.peer, self._outbox
        try:
            requests = decode_batch(_read_view[HEADER_BYTES:size])
        except DECODE_ERRORS as error:
            outbox.send(*self._reject(str(error)))
            return
        if type(requests[0]) is Set and self._set_batch.accepts(requests):
            peer.is_first_frame = False
            self._set_batch.enqueue(self, requests, size - HEADER_BYTES)
            return
        try:
            if self._set_batch.is_pending:
                self._set_batch.flush()
            result = self._executor.run(requests, peer, size - HEADER_BYTES)
        except Exception:
            self.fail_internal()
            return
        peer.is_first_frame = False
        if result is None:
            self._run_sliced(self._server.sliced_runs.run_requests(requests, peer), at_once=not self._turns.is_over)
            return
        if self._state is _CLOSING:  # because of a fault in the queued sets
            return
        reply, position = result
        if position is NO_WAIT and not outbox.pending and peer.descriptor is None:
            self.transport.write(reply)
        else:
            outbox.send(reply, position)
        if peer.feed is not None:
            self._begin_feed(peer.feed)

    def _take(self, data: memoryview, size: int) -> int:
        """Answer complete frames of ``data``, as many as this turn allows. Return how many bytes were used."""
        at = 0
        replies, turns = Replies(self._outbox), self._turns
        try:
            for _ in range(FRAMES_PER_TURN):
                end = frame_end(data, at, size, self._max_frame_bytes())
                if end > size:
                    break
                payload, at = data[at + HEADER_BYTES : end], end
                if not self._take_frame(payload, replies) or turns.is_over:
                    break
        except FrameTooLarge as error:
            replies.flush()
            self.close_with_error(error_reply("too_large", str(error)))
        except Exception:
            replies.flush()
            self.fail_internal()
        if self._state is _CLOSING:
            return size
        replies.flush()
        if self.peer.feed is not None and self._state is _READING:
            self._begin_feed(self.peer.feed)
        if at and self._state is _READING and not self.peer.is_authenticated:
            self._refuse_stranger()
        return at

    def _take_frame(self, payload: memoryview, replies: Replies) -> bool:
        """Answer one frame; return whether the next one may be taken in this turn."""
        peer, was_authenticated = self.peer, self.peer.is_authenticated
        if len(payload) > SLICE_BYTES:
            peer.is_first_frame = False
            self._run_sliced(self._server.sliced_runs.run_payload(memoryview(bytes(payload)), peer))
            return False
        try:
            requests = decode_batch(payload)
        except DECODE_ERRORS as error:
            result: tuple[bytes, LogPosition] | None = self._reject(str(error))
        else:
            if was_authenticated and type(requests[0]) is Set and self._set_batch.accepts(requests):
                replies.flush()
                peer.is_first_frame = False
                self._set_batch.enqueue(self, requests, len(payload))
                return self._state is _READING  # false after a fault
            result = self._run(requests, len(payload))
        peer.is_first_frame = False
        if result is None or self._state is _CLOSING:  # because of a fault in the queued sets
            return False
        replies.add(*result)
        if not was_authenticated:
            if not peer.is_authenticated:
                return False  # frames after a failed hello are ignored
            self._server.welcome(self)
        if replies.are_large:
            replies.flush()
        return peer.feed is None and not self.is_busy

    def _refuse_stranger(self) -> None:
        self.close_with_error(error_reply("unauthenticated", "the first frame must say hello with a valid token"))

    def _take_later(self, nbytes: int) -> None:
        """Keep input for a later turn of the loop."""
        self._buffer += _read_view[:nbytes]
        self.transport.pause_reading()
        self._turns.add(self._continue)

    def _max_frame_bytes(self) -> int:
        return self._executor.limits.max_frame_bytes if self.peer.is_authenticated else HELLO_BYTES

    def _reject(self, reason: str) -> tuple[bytes, LogPosition]:
        """Return the error reply to an undecodable frame, in order after earlier replies."""
        if self._set_batch.is_pending:
            self._set_batch.flush()
        return frame(encode_replies(error_reply("bad_request", reason))), NO_WAIT

    def _run(self, requests: "list[AnyRequest] | list[Set]", frame_bytes: int) -> tuple[bytes, LogPosition] | None:
        """Run one frame, after the queued sets; return None if it runs in slices."""
        if self._set_batch.is_pending:
            self._set_batch.flush()
        result = self._executor.run(requests, self.peer, frame_bytes)
        if result is None:
            self._run_sliced(self._server.sliced_runs.run_requests(requests, self.peer))
        return result

    # ------------------------------------------------------------------ frames in slices

    def _take_large(self) -> bool:
        """Start the frame at the head of the buffer if it is a large one; return whether it was.

        The frame is not copied: copying 16 MiB would delay every client by some milliseconds.
        """
        size = HEADER_BYTES + (length_at(self._buffer)[0] if len(self._buffer) >= HEADER_BYTES else 0)
        if not HEADER_BYTES + SLICE_BYTES < size <= min(len(self._buffer), HEADER_BYTES + self._max_frame_bytes()):
            return False
        input_, self._buffer = self._buffer, self._buffer[size:]
        self._server.disarm(self)
        self.peer.is_first_frame = False
        payload = memoryview(input_)[HEADER_BYTES:size]
        self._run_sliced(self._server.sliced_runs.run_payload(payload, self.peer))
        return True

    def _run_sliced(self, run: Steps[Result], *, at_once: bool = False) -> None:
        """Run a frame in steps; ``at_once``: its first slice in this step of the loop."""
        self._state = _SLICING
        self._sliced_run = run
        self.transport.pause_reading()
        if at_once:
            self._run_slice()
        else:
            self._turns.add(self._run_slice)

    def _run_slice(self) -> None:
        """Run one slice of the current frame, then let other connections have their turn."""
        run = self._sliced_run
        if self._state is not _SLICING or run is None:
            return
        if self._set_batch.is_pending:
            self._set_batch.flush()
        try:
            held, before_bytes = self._server.sliced_runs.held, self._server.sliced_runs.held.total
            is_finished, result = self._turns.advance(run)
        except Exception:
            self.fail_internal()
            return
        self._sliced_bytes += held.total - before_bytes
        if self._state is not _SLICING:  # the frame itself caused the close
            return
        if not is_finished or result is None:
            if self._peer_has_gone():
                self.abort()
                return
            self._turns.add(self._run_slice)
            self._server.budget.report(self)
            return
        self._state = _READING
        self._sliced_run = None
        self._sliced_bytes = 0
        self._finish_sliced(*result)
        if self._server.budget.holds(self):
            self._server.budget.report(self)

    def _peer_has_gone(self) -> bool:
        """Whether the peer has closed its socket, which a connection that is not read from does not notice.

        A peer that has only half-closed the connection waits for its reply. On TCP that looks the same.
        """
        connection = self.transport.get_extra_info("socket")
        return connection is not None and has_hung_up(connection.fileno())

    def _finish_sliced(self, pieces: list[bytes], position: LogPosition) -> None:
        """Send the reply to a frame that ran in steps, and go on with what follows it."""
        self._outbox.send_pieces(pieces, position)
        if self._farewell is not None:
            self.close_with_error(self._farewell)
            return
        if not self.peer.is_authenticated:
            self._refuse_stranger()
            return
        self._server.places.note_authenticated(self)
        if self.peer.feed is not None:
            self._begin_feed(self.peer.feed)
        if self._buffer:
            self._turns.add(self._continue)
        else:
            self._update_state()

    # ------------------------------------------------------------------ what comes next

    def _continue(self) -> None:
        """Process the rest of the buffer, then decide what comes next."""
        if self.is_busy:
            return
        if self._buffer and self._state is _READING and not self._take_large():
            with memoryview(self._buffer) as view:
                taken = self._take(view, len(view))
            del self._buffer[:taken]
            if taken and not self._outbox.is_closed:  # a closing session has a new deadline, which must stay
                self._server.disarm(self)
        self._update_state()

    def _update_state(self) -> None:
        """Decide what comes next, after the last complete frame, or at the end of this connection's turn."""
        if self.is_busy:
            return
        if self._feed_writer is not None:
            self._continue_feed(self._feed_writer)
            return
        self._needed = HEADER_BYTES
        if len(self._buffer) >= HEADER_BYTES:
            (length,) = length_at(self._buffer)
            self._needed = HEADER_BYTES + min(length, self._executor.limits.max_frame_bytes)
        if len(self._buffer) >= self._needed:
            self.transport.pause_reading()
            self._turns.add(self._continue)
        elif self.is_draining and self._outbox.pending:
            self.transport.pause_reading()
        elif self.is_draining:
            self.close_with_error(
                error_reply("shutting_down", "the server is stopping; requests without a reply did not run")
            )
        elif self._buffer:
            self._server.arm_read_deadline(self, self._needed)
            self.transport.resume_reading()
        else:
            self._server.disarm(self)
            self.transport.resume_reading()
            if self._server.budget.holds(self):
                self._server.budget.report_soon(self)

    def _read_on(self) -> None:
        if not self.is_busy and len(self._buffer) < self._needed:
            self.transport.resume_reading()

    def _take_unexpected(self, nbytes: int) -> None:
        """Handle input in a state other than READING."""
        if self._state is _FEED:
            self._refuse_input()
        elif self._state is _SLICING:
            self._buffer += _read_view[:nbytes]

    # ------------------------------------------------------------------ feeds

    def _begin_feed(self, feed: EventSource) -> None:
        """Turn the connection into a feed: it only sends events from now on."""
        if not may_go_on(self.peer):
            self.close_with_error(error_reply("forbidden", "the rules have changed: no right to this feed"))
            return
        self._state = _FEED
        self._feed_writer = FeedWriter(feed, self._server.feeds, self, self._turns)

    def _continue_feed(self, writer: FeedWriter) -> None:
        if self._buffer:
            self._refuse_input()
        else:
            self.transport.resume_reading()  # to notice when the peer closes
            writer.wake()

    def _refuse_input(self) -> None:
        self.close_with_error(error_reply("bad_request", "a connection that watches takes no more requests"))

    def send_events(self, events: list[Event]) -> None:
        """Send events of the feed."""
        self._outbox.send(frame(encode_replies(events)), NO_WAIT)
