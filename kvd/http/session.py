"""One HTTP connection: requests in, answers out in order, and nobody else disturbed.

        reading ──request whole──▶ answered at once, or held until the disk has what it shows ──▶ reading
           ├── 64 requests in this turn ──▶ the others first ──▶ reading
           ├── peer takes no answers, or too much is held ──▶ not read from ──▶ reading
           ├── watch ──▶ feeding: events go out whenever there are any; further input is thrown away
           └── refused, or its last request ──▶ leaving

Here is what is answered, in which order, and when; what is read, and how much of it may come, says ``reading.py``.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from kvd.engine.durability import NO_WAIT, LogPosition
from kvd.engine.feeds import Event, EventSource
from kvd.http.events import HEARTBEAT, HEARTBEAT_S, LAST_CHUNK, chunk, encoded
from kvd.http.parser import Reader, short_key
from kvd.http.problems import Problem, problem_of
from kvd.http.request_context import RetryLater
from kvd.http.requests import Request
from kvd.http.responses import VALUE_HEAD, Response, error_response, head, stream_head
from kvd.protocol.messages import Get
from kvd.server.feed_writer import FeedWriter
from kvd.server.peers import Peer

if TYPE_CHECKING:
    from kvd.http.listener import Listener

TURN_REQUESTS = 64
WRITE_HIGH_WATER_BYTES = 256 * 1024
_CLOSE, _KEEP = b"Connection: close\r\n", b"Connection: keep-alive\r\n"


class HttpSession(asyncio.Protocol):
    """The server's end of one HTTP connection."""

    __slots__ = (
        "_connected",
        "_go_on_due",
        "_heartbeat",
        "_held",
        "_held_bytes",
        "_is_chunked",
        "_is_local",
        "_leaving",
        "_listener",
        "_pump",
        "_reader",
        "_server",
        "_short",
        "_stalled",
        "_watched",
        "active",
        "finishing",
        "peer",
        "transport",
    )

    peer: Peer
    transport: asyncio.Transport

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener
        self._server = listener.server
        self._reader = Reader(listener.max_body_bytes, self._admit)
        self._short: bytes | None = None  # what a GET has to end with to go the short way, while that is free
        self._stalled = self._leaving = self.finishing = self._watched = self._go_on_due = False
        self._held: deque[tuple[LogPosition, bytes, bool]] = deque()  # whether it is the last
        self._held_bytes = 0
        self._pump: FeedWriter | None = None  # once it only tells
        self._is_chunked = True  # what it tells
        self._heartbeat: asyncio.TimerHandle | None = None
        self._is_local = False
        self.active = False

    # ------------------------------------------------------------------ called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=WRITE_HIGH_WATER_BYTES)
        self._server.admit(self, is_open=self._listener.is_open)
        self._connected = self.peer
        self._is_local = self.peer.uid is not None
        self._watched = not self.peer.greeted

    def connection_lost(self, exc: Exception | None) -> None:
        self._leaving = True
        self._short = None
        self._pump = None
        self._reader.drop()
        self._held.clear()
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        self._server.forget(self)

    def data_received(self, data: bytes) -> None:
        self.active = True
        if self._short is not None and (key := short_key(data, self._short)):
            self._get(key)
        elif not self._reader.is_dropping:
            self._short = None
            self._reader.feed(data)
            self._go_on()

    def pause_writing(self) -> None:
        self._stalled = True
        self._short = None
        self.transport.pause_reading()
        self._server.arm_write_deadline(self)

    def resume_writing(self) -> None:
        self._stalled = False
        self._server.disarm(self)
        if not self._leaving:
            self._go_on_soon()

    def eof_received(self) -> bool:
        """Answer what has come whole, also to a peer that has closed its side."""
        if self._leaving or self._pump is not None or not (self._reader.waiting or self._held):
            return False
        self._reader.drop()
        self.finishing = True
        return True

    # ------------------------------------------------------------------ called by the server

    @property
    def busy(self) -> bool:
        """Whether nothing is answered now."""
        return self._stalled or self._leaving or self._held_bytes > WRITE_HIGH_WATER_BYTES or self._holds_last

    @property
    def _holds_last(self) -> bool:
        return bool(self._held) and self._held[-1][2]

    @property
    def _is_idle(self) -> bool:
        """Whether something was asked, and all is answered."""
        reader = self._reader
        return reader.request is not None and not (reader.is_reading or reader.waiting or self._held)

    @property
    def buffer_bytes(self) -> int:
        """What it holds of its peer's."""
        return self._reader.buffer_bytes + self._held_bytes + self.transport.get_write_buffer_size()

    @property
    def feeding(self) -> bool:
        """Whether it only tells its peer what that asked for."""
        return self._pump is not None

    @property
    def leaving(self) -> bool:
        """Whether it was sent its last answer."""
        return self._leaving

    def finish(self) -> None:
        """Answer what has come whole, then close; what has not is told that it did not run."""
        self.finishing = True
        self._short = None
        if self._reader.is_reading and not self._reader.is_dropping:
            self._reader.refuse(Problem(503, "shutting_down", "the server is stopping; this request did not run"))
        self._go_on()

    def leave(self, last: dict[str, object]) -> None:
        """Close, telling a peer that waits for an answer, or has never asked, why."""
        if self._leaving or self._holds_last:
            return
        if self._pump is not None:
            # Without a last chunk, which would say that this is all.
            self._end_feed(b"" if last["error"] == "internal" or not self._is_chunked else LAST_CHUNK)
        elif self._is_idle:
            self._close()  # the next request, perhaps somebody else's, must not take this for its answer
        else:
            self._reader.refuse(problem_of(last))
            self._go_on()

    def abort(self) -> None:
        """Close at once; but who was slow in sending a request is told so."""
        is_waiting = self._reader.is_reading and not self._leaving and not self._held
        if is_waiting and not self.transport.get_write_buffer_size():
            request, problem = self._reader.request, Problem(408, "timeout", "the request did not come whole in time")
            self._write_last(self._encoded(request, error_response(request, problem), _CLOSE))
            return
        self._leaving = True
        self._short = None
        self.transport.abort()

    def on_durable(self) -> None:
        """More has reached the disk: write what may leave now."""
        durability = self._server.durability
        if self._leaving or durability is None or not self._held:
            return
        while self._held and durability.has_reached(self._held[0][0]):
            _, data, is_last = self._held.popleft()
            self._held_bytes -= len(data)
            if is_last:
                self._write_last(data)
                return
            self.transport.write(data)
        if self._held:
            durability.wait(self, self._held[0][0])
        else:
            self._go_on_soon()

    # ------------------------------------------------------------------ called by its reader

    def _admit(self, request: Request) -> None:
        """The head of a request has come: find out who asks. Raises Problem."""
        request.peer = self._listener.check(request, self._connected, is_local=self._is_local)
        if self._watched and not self._connected.greeted:
            self._server.disarm(self)  # it has said who it is in time
            self._watched = False
        if b"expect" in request.headers and not self._reader.waiting and not self._held:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # ------------------------------------------------------------------ answering

    def _get(self, key: str) -> None:
        """The short way: one plain GET of the original's route."""
        commands, peer = self._listener.commands, self.peer
        replies: Any = commands.run((Get(key),), peer, 0)
        value = replies[0]
        if self._leaving:  # for a fault in what was put aside before
            return
        if type(value) is not bytes:
            problem = Problem(404, "not_found", "key not found") if value is None else problem_of(value)
            request = Request("GET", b"/v1/", {})
            self._respond(request, error_response(request, problem), commands.needs)
            self._settle()
            return
        reply = b"%s%sContent-Length: %d\r\n\r\n%s" % (VALUE_HEAD, self._listener.dates.now(), len(value), value)
        if commands.durability is None:
            self.transport.write(reply)
        else:
            self._send(reply, commands.needs)

    def _go_on_soon(self) -> None:
        if not self._go_on_due:
            self._go_on_due = True
            self._server.loop.call_soon(self._go_on_again)

    def _go_on_again(self) -> None:
        self._go_on_due = False
        self._go_on()

    def _go_on(self) -> None:
        """Answer what has come, as much as one turn of the loop may take; then decide what comes next."""
        if self._pump is not None:
            self._pump.wake()
            return
        count = 0
        while self._reader.waiting and not self.busy:
            if count == TURN_REQUESTS:
                self._go_on_soon()
                break
            count += 1
            request = self._reader.waiting[0]
            if request.peer is not None and request.peer is not self.peer:
                self._become(request.peer)
            try:
                answer, needs = self._listener.answer(request, self.peer)
            except RetryLater:
                self._listener.commands.database.expire_step()
                self._go_on_soon()
                break
            self._reader.waiting.popleft()
            self._respond(request, answer, needs)
        self._settle()

    def _become(self, peer: Peer) -> None:
        """Another token is shown on the same connection."""
        peer.allow(self._listener.commands.access)
        self.peer = peer

    def _respond(self, request: Request, answer: Response | EventSource, needs: LogPosition) -> None:
        if not isinstance(answer, Response):
            self._begin_feed(request, answer)
            return
        is_last = request.closes or (self.finishing and not self._reader.waiting)
        connection = _CLOSE if is_last else _KEEP if request.is_http10 else b""
        self._send(self._encoded(request, answer, connection), needs, is_last=is_last)

    def _encoded(self, request: Request | None, answer: Response, connection: bytes) -> bytes:
        first = head(answer, self._listener.dates.now(), connection=connection)
        return first if request is not None and request.is_head else first + answer.body

    def _send(self, data: bytes, needs: LogPosition, *, is_last: bool = False) -> None:
        """Write an answer, or hold it until what it shows is on the disk: never before one that is held already."""
        durability = self._server.durability
        if durability is None or (not self._held and durability.has_reached(needs)):
            if is_last:
                self._write_last(data)
            else:
                self.transport.write(data)
            return
        self._held.append((needs, data, is_last))
        self._held_bytes += len(data)
        durability.wait(self, needs)

    def _settle(self) -> None:
        """Decide what comes next."""
        if self._leaving or self._pump is not None:
            return
        if self.finishing and not self._reader.waiting and not self._held:
            self._close()
        elif self._reader.waiting or self.busy or self._reader.is_dropping or self.finishing:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
            self._watch()
            self._short = self._reader.tail if not self._reader.is_reading else None

    def _watch(self) -> None:
        """A request that has begun has to come whole in time."""
        if self._reader.is_reading:
            self._server.arm_read_deadline(self, self._reader.promised_bytes)
            self._watched = True
        elif self._watched and self.peer.greeted:
            self._server.disarm(self)
            self._watched = False

    # ------------------------------------------------------------------ the end

    def _write_last(self, data: bytes) -> None:
        self._leaving = True
        self._reader.waiting.clear()
        self.transport.write(data)
        self._close()

    def _close(self) -> None:
        self._leaving = True
        self._short = None
        self._reader.drop()
        self._server.arm_linger(self)
        if self._is_local or not self.transport.can_write_eof():
            self.transport.close()
        else:
            # Closing TCP with unread input resets the connection, and the answer may be lost. So: half-close, and
            # throw input away until the peer has closed too.
            self.transport.write_eof()
            self.transport.resume_reading()

    # ------------------------------------------------------------------ feeds

    def _begin_feed(self, request: Request, feed: EventSource) -> None:
        """From now on this connection only tells its peer what that asked for."""
        self._short = None
        self._reader.drop()
        self._reader.waiting.clear()
        self._is_chunked = not request.is_http10
        self._send(stream_head(self._listener.dates.now(), is_chunked=self._is_chunked), NO_WAIT)
        self._server.disarm(self)
        self.transport.resume_reading()  # to see the peer close
        self._pump = FeedWriter(feed, self, self._server.loop, self._listener.commands.feeds)
        self._heartbeat = self._server.loop.call_later(HEARTBEAT_S, self._beat)

    def tell(self, events: list[Event]) -> None:
        """Send events of the feed."""
        self._send_piece(b"".join(map(encoded, events)))

    def _beat(self) -> None:
        if self._pump is not None:
            self._heartbeat = self._server.loop.call_later(HEARTBEAT_S, self._beat)
            if not self.busy:
                self._send_piece(HEARTBEAT)

    def _send_piece(self, data: bytes) -> None:
        self._send(chunk(data) if self._is_chunked else data, NO_WAIT)

    def _end_feed(self, last: bytes) -> None:
        self._pump = None
        self._send(last, NO_WAIT, is_last=True)
