"""One HTTP connection: bytes in, requests through the parser, answers out in order, and nobody else disturbed.

        reading ──request whole──▶ answered at once, or held until the disk has what it shows ──▶ reading
           ├── 64 requests in this turn ──▶ the others first ──▶ reading
           ├── peer takes no answers, or too much is held ──▶ not read from ──▶ reading
           ├── watch ──▶ feeding: events go out whenever there are any; further input is thrown away
           └── refused, or its last request ──▶ leaving

The parser is llhttp's (httptools), which refuses what could be read in two ways: both lengths, a length twice, folded
lines, bare line feeds. **The short way**: a client on a kept connection sends the same head again and again, but for
the path. When llhttp has found such a head to be that of one whole, plain, admitted GET, another input that is equal to
it behind the path, and whose path has only characters that stand for themselves, is one too, and is not parsed.
"""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import httptools

from kvd.http.calls import Later
from kvd.http.events import HEARTBEAT, HEARTBEAT_S, LAST_CHUNK, chunk, encoded
from kvd.http.problems import Problem, problem_of
from kvd.http.requests import Request
from kvd.http.responses import VALUE_HEAD, Response, error_response, head, stream_head
from kvd.protocol.messages import Get
from kvd.server.durability import NO_NEEDS, Needs
from kvd.server.feeds import Event, Telling
from kvd.server.peers import Peer
from kvd.server.pump import Pump

if TYPE_CHECKING:
    from kvd.http.listener import Listener

TURN_REQUESTS = 64
MOST_HEAD_BYTES = 32 * 1024
MOST_HEADERS = 100
WRITE_HIGH_WATER_BYTES = 256 * 1024
# More than this is not copied behind its head.
JOINED_BYTES = 64 * 1024
_SHORT = b"GET /v1/"
_SHORT_BYTES = len(_SHORT)
_TARGET_END = b" HTTP/1.1\r\n"
_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@/"
_CLOSE, _KEEP = b"Connection: close\r\n", b"Connection: keep-alive\r\n"
# Of these one line must be all: two would be read one way by us and another by somebody else.
_ONCE = frozenset((b"host", b"authorization", b"content-type", b"origin", b"expect"))


class HttpSession(asyncio.Protocol):
    """The server's end of one HTTP connection."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_connected",
        "_dropping",
        "_go_on_due",
        "_head_bytes",
        "_headers",
        "_heartbeat",
        "_held",
        "_held_bytes",
        "_is_chunked",
        "_is_local",
        "_leaving",
        "_listener",
        "_parser",
        "_pump",
        "_reading",
        "_request",
        "_server",
        "_short",
        "_stalled",
        "_tail",
        "_target",
        "_waiting",
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
        self._parser = httptools.HttpRequestParser(self)
        # The message being read: its target, headers and body so far.
        self._reading = False
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._request: Request | None = None  # once its head is whole
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._dropping = False  # nothing further is taken from this peer
        self._waiting: deque[Request] = deque()
        self._tail: bytes | None = None  # of a head that may go the short way, from behind the path
        self._short: bytes | None = None  # the same, while the short way is free
        self._stalled = self._leaving = self.finishing = self._watched = self._go_on_due = False
        self._held: deque[tuple[Needs, bytes, bool]] = deque()  # whether it is the last
        self._held_bytes = 0
        self._pump: Pump | None = None  # once it only tells
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
        self._drop_input()
        self._held.clear()
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        self._server.forget(self)

    def data_received(self, data: bytes) -> None:
        self.active = True
        tail = self._short
        if tail is not None and data.endswith(tail) and data.startswith(_SHORT):
            name = data[_SHORT_BYTES : -len(tail)]
            if name and not name.translate(None, _PLAIN):
                self._get(name.decode("ascii"))
                return
        if not self._dropping:
            self._parse(data)

    def pause_writing(self) -> None:
        self._stalled = True
        self._short = None
        self.transport.pause_reading()
        self._server.watch_stall(self)

    def resume_writing(self) -> None:
        self._stalled = False
        self._server.unwatch(self)
        if not self._leaving:
            self._go_on_soon()

    def eof_received(self) -> bool:
        """Answer what has come whole, also to a peer that has closed its side."""
        if self._leaving or self._pump is not None or not (self._waiting or self._held):
            return False
        self._drop_input()
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
    def buffer_bytes(self) -> int:
        """What it holds of its peer's."""
        waiting = sum(len(request.body) for request in self._waiting)
        return self._body_bytes + waiting + self._held_bytes + self.transport.get_write_buffer_size()

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
        if self._reading and not self._dropping:
            self._refuse(Problem(503, "shutting_down", "the server is stopping; this request did not run"))
        self._go_on()

    def leave(self, last: dict[str, object]) -> None:
        """Close, telling a peer that waits for an answer, or has never asked, why."""
        if self._leaving or self._holds_last:
            return
        if self._pump is not None:
            # Without a last chunk, which would say that this is all.
            self._end_feed(b"" if last["error"] == "internal" or not self._is_chunked else LAST_CHUNK)
        elif self._request is not None and not (self._reading or self._waiting or self._held):
            self._close()  # all is answered: the next request, perhaps another's, must not find this as its answer
        else:
            self._refuse(problem_of(last))
            self._go_on()

    def abort(self) -> None:
        """Close at once; but who was slow in sending a request is told so."""
        if self._reading and not self._leaving and not self._held and not self.transport.get_write_buffer_size():
            problem = Problem(408, "timeout", "the request did not come whole in time")
            self._write_last(self._encoded(self._request, error_response(self._request, problem), _CLOSE))
            return
        self._leaving = True
        self._short = None
        self.transport.abort()

    def release(self) -> None:
        """More has reached the disk: write what may leave now."""
        durability = self._server.durability
        if self._leaving or durability is None or not self._held:
            return
        while self._held and durability.covers(self._held[0][0]):
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

    # ------------------------------------------------------------------ called by the parser

    def on_message_begin(self) -> None:
        self._reading = True
        self._target = b""
        self._headers = {}
        self._head_bytes = 0
        self._request = None

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._dropping or self._request is not None:  # what stands behind the last chunk says nothing to us
            return
        name = name.lower()
        before = self._headers.get(name)
        if before is not None:
            if name in _ONCE:
                self._refuse(Problem(400, "bad_request", f"two headers of the name {name.decode()}"))
                return
            value = before + b", " + value
        self._headers[name] = value
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MOST_HEAD_BYTES or len(self._headers) > MOST_HEADERS:
            self._refuse_head()

    def on_headers_complete(self) -> None:
        if self._dropping:
            return
        parser, headers = self._parser, self._headers
        version = parser.get_http_version()
        try:
            self._request = request = Request(parser.get_method().decode("ascii"), self._target, headers)
            request.is_http10 = version == "1.0"
            self._check_head(request, version)
            request.peer = self._listener.check(request, self._connected, is_local=self._is_local)
        except Problem as problem:
            # Without its body being awaited: a peer that may not ask has nothing to send.
            self._refuse(problem, closes=self._has_body())
            return
        if self._watched and not self._connected.greeted:
            self._server.unwatch(self)  # it has said who it is in time
            self._watched = False
        request.closes = not parser.should_keep_alive() or parser.should_upgrade()
        if headers.get(b"expect") and not self._waiting and not self._held:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if self._dropping or self._request is None or self._request.refusal is not None:
            return
        self._body_bytes += len(body)
        if self._body_bytes > (most := self._listener.most_body_bytes(self._request)):
            self._refuse(_too_long(most))
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        self._reading = False
        if self._dropping or self._request is None:
            return
        request = self._request
        request.body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body, self._body_bytes = [], 0
        self._waiting.append(request)
        if request.closes:
            self._dropping = True

    # ------------------------------------------------------------------ reading

    def _parse(self, data: bytes) -> None:
        self._short = None
        may_be_plain = not self._reading and data.startswith(b"GET ") and data.find(b"\r\n\r\n") == len(data) - 4
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._dropping = True  # nobody speaks anything else here; what was asked is answered, and that was all
        except httptools.HttpParserError as error:
            if not self._dropping:
                status = 405 if isinstance(error, httptools.HttpParserInvalidMethodError) else 400
                self._refuse(Problem(status, "bad_request", f"this is no HTTP request: {error}"))
        if self._reading and self._request is None and not self._dropping:
            self._head_bytes += len(data)
            if self._head_bytes > 2 * MOST_HEAD_BYTES:
                self._refuse_head()
        self._tail = self._tail_of(data) if may_be_plain else None
        self._go_on()

    def _tail_of(self, data: bytes) -> bytes | None:
        """Of one whole plain GET, what stands behind its path: the next that ends alike goes the short way."""
        request = self._request
        if request is None or self._reading or len(self._waiting) != 1 or request.refusal or request.closes:
            return None
        if request.is_http10 or self._has_body() or b"expect" in request.headers:
            return None
        at = data.find(b"\r\n") - len(_TARGET_END) + 2
        return data[at:] if data.startswith(_TARGET_END, at) and data[at - 1 : at] != b" " else None

    def _has_body(self) -> bool:
        length = self._headers.get(b"content-length", b"0")
        return length.strip(b"0") != b"" or b"transfer-encoding" in self._headers

    def _check_head(self, request: Request, version: str) -> None:
        headers = request.headers
        if version not in ("1.0", "1.1"):
            raise Problem(505, "bad_request", "HTTP/1.1 is spoken here")
        coding = headers.get(b"transfer-encoding")
        if coding is not None and (version == "1.0" or coding.lower() != b"chunked"):
            raise Problem(
                501 if version == "1.1" else 400, "bad_request", "no transfer coding but chunked, in HTTP/1.1"
            )
        if headers.get(b"expect", b"100-continue").lower() != b"100-continue":
            raise Problem(417, "bad_request", "nothing but 100-continue can be expected")
        length, most = headers.get(b"content-length", b"0"), self._listener.most_body_bytes(request)
        if len(length) > 18 or int(length) > most:
            raise _too_long(most)

    def _refuse_head(self) -> None:
        self._refuse(Problem(431, "too_large", f"a request's head has at most {MOST_HEAD_BYTES} bytes"))

    def _refuse(self, problem: Problem, *, closes: bool = True) -> None:
        """Answer so behind all that waits. ``closes``: and take nothing further from this peer."""
        request = self._request
        if request is None or not self._reading:
            request = self._request = Request("GET", self._target or b"/v2/", {})
        request.refusal, request.closes = problem, closes or not self._parser.should_keep_alive()
        if request.closes:
            self._drop_input()
            self._waiting.append(request)

    def _drop_input(self) -> None:
        self._dropping = True
        self._body, self._body_bytes = [], 0

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
            request = Request("GET", _SHORT[4:], {})
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
        while self._waiting and not self.busy:
            if count == TURN_REQUESTS:
                self._go_on_soon()
                break
            count += 1
            request = self._waiting[0]
            if request.peer is not None and request.peer is not self.peer:
                self._become(request.peer)
            try:
                answer, needs = self._listener.answer(request, self.peer)
            except Later:
                self._listener.commands.database.expire_some()
                self._go_on_soon()
                break
            self._waiting.popleft()
            self._respond(request, answer, needs)
        self._settle()

    def _become(self, peer: Peer) -> None:
        """Another token is shown on the same connection."""
        peer.allow(self._listener.commands.access)
        self.peer = peer

    def _respond(self, request: Request, answer: Response | Telling, needs: Needs) -> None:
        if not isinstance(answer, Response):
            self._begin_feed(request, answer)
            return
        is_last = request.closes or (self.finishing and not self._waiting)
        connection = _CLOSE if is_last else _KEEP if request.is_http10 else b""
        self._send(self._encoded(request, answer, connection), needs, is_last=is_last)

    def _encoded(self, request: Request | None, answer: Response, connection: bytes) -> bytes:
        first = head(answer, self._listener.dates.now(), connection=connection)
        return first if request is not None and request.is_head else first + answer.body

    def _send(self, data: bytes, needs: Needs, *, is_last: bool = False) -> None:
        """Write an answer, or hold it until what it shows is on the disk: never before one that is held already."""
        durability = self._server.durability
        if durability is None or (not self._held and durability.covers(needs)):
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
        if self.finishing and not self._waiting and not self._held:
            self._close()
        elif self._waiting or self.busy or self._dropping or self.finishing:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
            self._watch()
            self._short = self._tail if not self._reading else None

    def _watch(self) -> None:
        """A request that has begun has to come whole in time."""
        if self._reading:
            length = self._headers.get(b"content-length", b"")
            self._server.watch_frame(self, int(length) if self._request is not None and length else 0)
            self._watched = True
        elif self._watched and self.peer.greeted:
            self._server.unwatch(self)
            self._watched = False

    # ------------------------------------------------------------------ the end

    def _write_last(self, data: bytes) -> None:
        self._leaving = True
        self._waiting.clear()
        self.transport.write(data)
        self._close()

    def _close(self) -> None:
        self._leaving = True
        self._short = None
        self._drop_input()
        self._server.watch_leaving(self)
        if self._is_local or not self.transport.can_write_eof():
            self.transport.close()
        else:
            # Closing TCP with unread input resets the connection, and the answer may be lost. So: half-close, and
            # throw input away until the peer has closed too.
            self.transport.write_eof()
            self.transport.resume_reading()

    # ------------------------------------------------------------------ feeds

    def _begin_feed(self, request: Request, feed: Telling) -> None:
        """From now on this connection only tells its peer what that asked for."""
        self._short = self._tail = None
        self._drop_input()
        self._waiting.clear()
        self._is_chunked = not request.is_http10
        self._send(stream_head(self._listener.dates.now(), is_chunked=self._is_chunked), NO_NEEDS)
        self._server.unwatch(self)
        self.transport.resume_reading()  # to see the peer close
        self._pump = Pump(feed, self, self._server.loop)
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
        self._send(chunk(data) if self._is_chunked else data, NO_NEEDS)

    def _end_feed(self, last: bytes) -> None:
        self._pump = None
        self._send(last, NO_NEEDS, is_last=True)


def _too_long(most: int) -> Problem:
    return Problem(413, "too_large", f"the body of this request has at most {most} bytes")
