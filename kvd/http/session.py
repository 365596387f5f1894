"""One HTTP connection: it answers requests in order, and does not delay other connections.

        READING ──request complete──▶ answered at once, or held until the disk has what it shows ──▶ READING
           ├── 64 requests in this turn ──▶ other connections first ──▶ READING
           ├── the outbox is full ──▶ reading pauses ──▶ READING
           ├── watch ──▶ FEED: events go out as they happen; further input is discarded
           └── the last answer was sent, or waits for the disk ──▶ CLOSING

This module decides what is answered, in which order, and when. ``parser.py`` decides what is read, and how much.
"""

import asyncio
import enum
from typing import cast

from kvd.http.events import HEARTBEAT, HEARTBEAT_S, LAST_CHUNK, chunk, encoded
from kvd.http.listener import Answer, Listener
from kvd.http.parser import Reader, short_key
from kvd.http.problems import Problem, problem_of
from kvd.http.requests import Request
from kvd.http.responses import VALUE_HEAD, Response, error_response, head, stream_head
from kvd.requests.peer import Peer
from kvd.requests.turns import Steps
from kvd.server.feed_writer import Event, EventSource, FeedWriter
from kvd.server.outbox import HIGH_WATER_BYTES, NO_WAIT, LogPosition, Outbox

REQUESTS_PER_TURN = 64
_CLOSE, _KEEP = b"Connection: close\r\n", b"Connection: keep-alive\r\n"


class State(enum.Enum):
    """What a session is doing."""

    READING = enum.auto()
    FEED = enum.auto()
    CLOSING = enum.auto()


class HttpSession(asyncio.Protocol):
    """The server's end of one HTTP connection."""

    __slots__ = (
        "_connected",
        "_continue_is_due",
        "_feed_writer",
        "_has_deadline",
        "_heartbeat",
        "_is_chunked",
        "_is_local",
        "_listener",
        "_outbox",
        "_reader",
        "_running",
        "_server",
        "_short_tail",
        "_state",
        "_turns",
        "active",
        "is_draining",
        "peer",
        "transport",
    )

    peer: Peer
    transport: asyncio.Transport

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._server = listener.server
        self._reader = Reader(listener.max_body_bytes, self._admit)
        self._outbox = Outbox(self, listener.server.durability)
        self._state = State.READING
        self._turns = listener.server.turns
        self._running: Steps[tuple[Answer, LogPosition]] | None = None  # the request at the head of the waiting ones
        # What a GET must end with to take the fast path; None while that path is not available.
        self._short_tail: bytes | None = None
        self._has_deadline = self._continue_is_due = False
        self._feed_writer: FeedWriter | None = None  # in the state FEED
        self._is_chunked = True  # of the stream of events
        self._heartbeat: asyncio.TimerHandle | None = None
        self._is_local = False
        self.is_draining = False
        self.active = False

    # ------------------------------------------------------------------ called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        self._server.admit(self, is_open=self._listener.is_open)
        self._connected = self.peer
        self._is_local = self.peer.uid is not None
        self._has_deadline = not self.peer.is_authenticated

    def connection_lost(self, exc: Exception | None) -> None:
        self._begin_closing()
        self._outbox.clear()
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        self._server.forget(self)

    def data_received(self, data: bytes) -> None:
        self.active = True
        if self._short_tail is not None and (key := short_key(data, self._short_tail)):
            self._get(key)
        elif not self._reader.is_dropping:
            self._short_tail = None
            self._reader.feed(data)
            if self._running is None:
                self._continue()

    def pause_writing(self) -> None:
        self._outbox.is_stalled = True
        self._short_tail = None
        self.transport.pause_reading()
        self._server.arm_write_deadline(self)

    def resume_writing(self) -> None:
        self._outbox.is_stalled = False
        self._server.disarm(self)
        if not self._outbox.is_closed:
            self._continue_soon()

    def eof_received(self) -> bool:
        """Answer the complete requests, also to a peer that has half-closed the connection."""
        if self._outbox.is_closed or self.is_feed or not (self._reader.waiting or self._outbox.pending):
            return False
        self._reader.drop()
        self.is_draining = True
        return True

    # ------------------------------------------------------------------ called by the server and the outbox

    @property
    def is_busy(self) -> bool:
        """Whether no request can be answered now."""
        return self._outbox.is_full or self._outbox.has_final

    @property
    def _is_idle(self) -> bool:
        """Whether there was a request, and all are answered."""
        reader = self._reader
        return reader.request is not None and not (reader.is_reading or reader.waiting or self._outbox.pending)

    @property
    def buffer_bytes(self) -> int:
        """The bytes that it buffers for its peer."""
        return self._reader.buffer_bytes + self._outbox.pending_bytes + self.transport.get_write_buffer_size()

    @property
    def is_feed(self) -> bool:
        """Whether it only sends events."""
        return self._state is State.FEED

    @property
    def is_closing(self) -> bool:
        """Whether its last bytes are on their way."""
        return self._outbox.is_closed

    def drain(self) -> None:
        """Answer the complete requests, then close. The answer to an incomplete request says that it did not run."""
        self.is_draining = True
        self._short_tail = None
        if self._reader.is_reading and not self._reader.is_dropping:
            self._reader.refuse(Problem(503, "shutting_down", "the server is stopping; this request did not run"))
        self._continue()

    def close_with_error(self, error: dict[str, object]) -> None:
        """Close. A peer that waits for an answer, or has never sent a request, gets the reason."""
        if self._outbox.has_final:
            return
        if self.is_feed:
            # After an internal error without a last chunk, which would say that the stream is complete.
            self._end_feed(b"" if error["error"] == "internal" or not self._is_chunked else LAST_CHUNK)
        elif self._is_idle:
            # Without a reason, which the client could take for the answer to its next request, perhaps another user's.
            self._outbox.close()
        else:
            self._reader.refuse(problem_of(error))
            self._continue()

    def revoke(self, error: dict[str, object]) -> None:
        """As close_with_error: a request runs in one step, so none is in work."""
        self.close_with_error(error)

    def abort(self) -> None:
        """Close at once, but tell the reason to a peer that was too slow in sending a request."""
        is_waiting = self._reader.is_reading and not self._outbox.is_closed and not self._outbox.pending
        if is_waiting and not self.transport.get_write_buffer_size():
            request, problem = (
                self._reader.request,
                Problem(408, "timeout", "the request did not arrive completely in time"),
            )
            self._outbox.send_final(self._encode(request, error_response(request, problem), _CLOSE))
            return
        self._begin_closing()
        self._outbox.clear()
        self.transport.abort()

    def on_sent(self, *, was_full: bool) -> None:
        """Go on after the log has caught up."""
        self._continue_soon()

    def on_closed(self) -> None:
        """Give the peer some time to read the last answer."""
        self._begin_closing()
        self._server.arm_linger(self)

    def _begin_closing(self) -> None:
        self._state = State.CLOSING
        self._short_tail = None
        self._feed_writer = None
        self._running = None
        self._reader.waiting.clear()
        self._reader.drop()

    # ------------------------------------------------------------------ called by its reader

    def _admit(self, request: Request) -> None:
        """Identify the sender of a request whose head has arrived. Raises Problem."""
        request.peer = self._listener.check(request, self._connected, is_local=self._is_local)
        if self._has_deadline and not self._connected.is_authenticated:
            self._server.disarm(self)  # the peer has authenticated in time
            self._has_deadline = False
        if b"expect" in request.headers and not self._reader.waiting and not self._outbox.pending:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # ------------------------------------------------------------------ answers

    def _get(self, key: str) -> None:
        """Answer a plain GET of one key on the fast path."""
        self._flush_sets()
        value, position = self._listener.executor.get(key, self.peer)
        if self._state is State.CLOSING:  # because of a fault in the queued sets
            return
        if type(value) is not bytes:
            problem = Problem(404, "not_found", "key not found") if value is None else problem_of(value)
            request = Request("GET", b"/v1/", {})
            self._respond(request, error_response(request, problem), position)
            self._update_state()
            return
        reply = b"%s%sContent-Length: %d\r\n\r\n%s" % (VALUE_HEAD, self._listener.dates.now(), len(value), value)
        self._outbox.send(reply, position)

    def _flush_sets(self) -> None:
        """Run the sets of other connections that arrived earlier."""
        if self._server.set_batch.is_pending:
            self._server.set_batch.flush()

    def _continue_soon(self) -> None:
        if not self._continue_is_due:
            self._continue_is_due = True
            self._turns.add(self._continue_now)

    def _continue_now(self) -> None:
        self._continue_is_due = False
        self._continue()

    def _continue(self) -> None:
        """Answer waiting requests, up to the limit for one turn of the loop; then decide what comes next."""
        if self._feed_writer is not None:
            self._feed_writer.wake()
            return
        count = 0
        while self._reader.waiting and not self.is_busy:
            if count == REQUESTS_PER_TURN or ((count or self._running is None) and self._turns.is_over):
                self._continue_soon()
                break
            count += 1
            request = self._reader.waiting[0]
            if request.peer is not None and request.peer is not self.peer:
                self._become(request.peer)
            self._flush_sets()
            if self._running is None:
                self._running = self._listener.answer(request, self.peer)
            is_finished, result = self._turns.advance(self._running)
            if self._state is State.CLOSING:
                return
            if not is_finished or result is None:
                self._continue_soon()
                break
            self._running = None
            self._reader.waiting.popleft()
            self._respond(request, *result)
        self._update_state()

    def _become(self, peer: Peer) -> None:
        """Switch to the holder of another token, which this request shows."""
        peer.apply_access(self._server.authentication.access)
        self.peer = peer

    def _respond(self, request: Request, answer: Response | EventSource, position: LogPosition) -> None:
        if not isinstance(answer, Response):
            self._begin_feed(request, answer)
            return
        is_last = request.closes or (self.is_draining and not self._reader.waiting)
        connection = _CLOSE if is_last else _KEEP if request.is_http10 else b""
        data = self._encode(request, answer, connection)
        if is_last:
            self._outbox.send_final(data, position)
        else:
            self._outbox.send(data, position)

    def _encode(self, request: Request | None, answer: Response, connection: bytes) -> bytes:
        first = head(answer, self._listener.dates.now(), connection=connection)
        return first if request is not None and request.is_head else first + answer.body

    def _update_state(self) -> None:
        """Decide what comes next."""
        if self._outbox.is_closed or self._feed_writer is not None:
            return
        reader = self._reader
        if self.is_draining and not reader.waiting and not self._outbox.pending:
            self._outbox.close()
        elif reader.waiting or self.is_busy or reader.is_dropping or self.is_draining:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
            self._update_deadline()
            self._short_tail = reader.tail if not reader.is_reading else None

    def _update_deadline(self) -> None:
        """Set a deadline for a request that has begun to arrive."""
        if self._reader.is_reading:
            self._server.arm_read_deadline(self, self._reader.promised_bytes)
            self._has_deadline = True
        elif self._has_deadline and self.peer.is_authenticated:
            self._server.disarm(self)
            self._has_deadline = False

    # ------------------------------------------------------------------ feeds

    def _begin_feed(self, request: Request, feed: EventSource) -> None:
        """Turn the connection into a feed: it only sends events from now on."""
        self._short_tail = None
        self._reader.drop()
        self._reader.waiting.clear()
        self._is_chunked = not request.is_http10
        self._outbox.send(stream_head(self._listener.dates.now(), is_chunked=self._is_chunked), NO_WAIT)
        self._server.disarm(self)
        self.transport.resume_reading()  # to notice when the peer closes
        self._state = State.FEED
        self._feed_writer = FeedWriter(feed, self._server.feeds, self, self._server.turns)
        self._heartbeat = self._server.loop.call_later(HEARTBEAT_S, self._beat)

    def send_events(self, events: list[Event]) -> None:
        """Send events of the feed."""
        store_id = self._listener.executor.store_id
        self._send_piece(b"".join([encoded(event, store_id) for event in events]))

    def _beat(self) -> None:
        if self._feed_writer is not None:
            self._heartbeat = self._server.loop.call_later(HEARTBEAT_S, self._beat)
            if not self.is_busy:
                self._send_piece(HEARTBEAT)

    def _send_piece(self, data: bytes) -> None:
        self._outbox.send(chunk(data) if self._is_chunked else data, NO_WAIT)

    def _end_feed(self, last: bytes) -> None:
        self._feed_writer = None
        self._state = State.CLOSING
        self._outbox.send_final(last)
