"""The lifecycle of all connections: admission, deadlines, and drain on shutdown.

One sweep a second checks the few connections that have a deadline. Without any, the daemon is not woken.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from kvd.engine.engine import Engine
from kvd.protocol.keepalive import keep_alive
from kvd.protocol.limits import Limits
from kvd.requests.access import Access
from kvd.requests.authentication import Authentication
from kvd.requests.errors import error_reply
from kvd.requests.executor import Executor
from kvd.requests.peer import Peer
from kvd.requests.sliced import HeldBytes, SlicedRuns
from kvd.requests.streams import may_go_on
from kvd.requests.turns import Turns
from kvd.server.budget import BufferBudget
from kvd.server.busy_poll import BusyPoll
from kvd.server.connection import Connection, Connections
from kvd.server.outbox import HIGH_WATER_BYTES
from kvd.server.peers import tcp_peer, unix_peer
from kvd.server.places import Places
from kvd.server.set_batch import SetBatcher
from kvd.server.tls_listener import TlsListener
from kvd.telemetry.metrics import ServerMetrics

logger = logging.getLogger(__name__)

BACKLOG = 4096
SWEEP_S = 1.0
# How long input is read and discarded after the last frame, because unread input would reset the connection.
LINGER_S = 1.0
_FRAME_BYTES_PER_SECOND = 64 * 1024
# A peer that reads its replies more slowly does not read them.
_READ_BYTES_PER_SECOND = 4 * 1024


class Server:
    """The listeners and their sessions."""

    def __init__(
        self,
        executor: Executor,
        engine: Engine,
        authentication: Authentication,
        metrics: ServerMetrics,
        connections: Connections,
        sliced_bytes: HeldBytes,
        loop: asyncio.AbstractEventLoop,
        turns: Turns,
        busy_poll_us: int = 0,
    ) -> None:
        self.executor = executor
        self.turns = turns
        self.durability = engine.durability
        self.feeds = engine.feeds
        self.authentication = authentication
        self.loop = loop
        self.busy_poll = BusyPoll(loop, busy_poll_us) if busy_poll_us else None
        self.set_batch = SetBatcher(executor, engine.durability, loop)
        self.sliced_runs = SlicedRuns(executor, sliced_bytes)
        self.connections = connections
        # Whether small replies that are not taken count at once: so many connections are open that they could matter.
        self.is_crowded = False
        self.budget = BufferBudget(lambda: engine.database.memory.max_bytes, lambda: self.limits, loop)
        self.places = Places(lambda: self.limits)
        self._near_caches = engine.near_caches
        self._metrics = metrics
        self._listeners: list[asyncio.Server] = []
        self._tls: list[TlsListener] = []
        self._backlogs: list[tuple[socket.socket, bytes]] = []  # each with the message for connections in it
        self._tcp: dict[Connection, float] = {}  # when the sweep last saw input of each
        # Deadlines in loop time; and for connections that wait for their peer to read, how many bytes it has not read.
        self._deadlines: dict[Connection, float] = {}
        self._unread_bytes: dict[Connection, tuple[int, float]] = {}  # and when
        self._sweep: asyncio.TimerHandle | None = None
        self._stopping = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def limits(self) -> Limits:
        """The limits in force; a reload replaces them."""
        return self.executor.limits

    async def listen(
        self,
        listening: socket.socket,
        make_session: Callable[[], asyncio.BaseProtocol],
        *,
        own: bool,
        tls: ssl.SSLContext | None = None,
        goodbye: bytes,
    ) -> None:
        """Serve connections of a listening socket; ``make_session`` makes the session of each.

        ``own``: no other process will serve its backlog. ``goodbye``: the message to connections in the backlog when
        the server stops. ``tls``: the TLS context, used only on TCP.
        """
        if own:
            self._backlogs.append((listening.dup(), goodbye))
        if listening.family != socket.AF_UNIX:
            keep_alive(listening)
        if tls is not None and listening.family != socket.AF_UNIX:
            listening.listen(BACKLOG)
            self._tls.append(TlsListener(self, listening, tls, make_session))
            return
        create: Any = self.loop.create_unix_server if listening.family == socket.AF_UNIX else self.loop.create_server
        self._listeners.append(await create(make_session, sock=listening, backlog=BACKLOG))

    @property
    def max_handshakes(self) -> int:
        """How many TLS handshakes may be unfinished at the same time."""
        return self.places.max_strangers

    @property
    def max_stranger_connections(self) -> int:
        """How many connections there may be with one more that is not of root or the daemon's own user."""
        return self.places.max_for(is_trusted=False)

    def count_connections(self) -> int:
        """How many connections there are, including unfinished TLS handshakes."""
        return len(self.connections) + sum(map(len, self._tls)) - self.places.rejected

    # ------------------------------------------------------------------ called by sessions

    def admit(self, session: Connection, *, is_open: bool = False) -> None:
        """Admit a new connection, or reject it. ``is_open``: on TCP it need not authenticate."""
        self.connections.add(session)
        self._metrics.accepted += 1
        self._empty.clear()
        try:
            session.peer = self._identify(session)
        except OSError:  # the peer has gone already
            session.peer = Peer("unknown", None)
            session.abort()
            return
        peer, limits = session.peer, self.limits
        peer.is_authenticated = peer.is_authenticated or is_open
        peer.apply_access(self.authentication.access)
        self.places.add(session, is_open=is_open)  # also a connection that is rejected, because forget() removes it
        if self._stopping:
            session.close_with_error(error_reply("shutting_down", "the server is stopping"))
            return
        is_counted = session.transport.get_extra_info("ssl_object") is not None  # TlsListener has checked the limit
        reason = self.places.refusal(session, 0 if is_counted else self.count_connections())
        if reason:
            self._reject(session, reason)
        elif peer.uid is None and peer.is_authenticated:
            self._tcp[session] = self.loop.time()
            self._arm_sweep()
        elif peer.uid is None:
            self._tcp[session] = self.loop.time()
            self._arm(session, limits.hello_timeout_ms / 1000)
        self.places.make_room_for_strangers()
        self.is_crowded = self._may_hold_unreported
        if self.is_crowded:
            self._arm_sweep()

    def set_access_rules(self, access: Access) -> None:
        """Replace the access rules, for open connections too; disconnect those that lose the right to their feed."""
        self.set_batch.flush()
        self.authentication.access = access
        for session in self.connections:
            session.peer.apply_access(access)
        self._near_caches.invalidate_all()
        for session in self.connections:
            if session.is_feed and not may_go_on(session.peer):
                session.close_with_error(error_reply("forbidden", "the rules have changed: no right to this feed"))

    def set_tokens(self, tokens: Mapping[str, str | None]) -> None:
        """Replace the tokens, and disconnect clients whose token was removed or renamed."""
        self.set_batch.flush()
        self.authentication.tokens = tokens
        for session in self.connections:
            if not self.authentication.token_is_valid(session.peer):
                text = "the token of this connection is no longer valid"
                session.revoke(error_reply("unauthenticated", text))

    def set_tls_context(self, tls: ssl.SSLContext) -> None:
        """Replace the certificates, for future connections."""
        for listener in self._tls:
            listener.context = tls

    def forget(self, session: Connection) -> None:
        """Release everything that a closed connection held."""
        self.executor.disconnect(session.peer)
        self.connections.discard(session)
        self._tcp.pop(session, None)
        self.disarm(session)
        self.budget.release(session)
        self.places.remove(session)
        if not len(self.connections):
            self._empty.set()

    def arm_read_deadline(self, session: Connection, frame_bytes: int) -> None:
        """Set a deadline for the rest of a frame, counted from its first byte (before hello: from the connect)."""
        if session not in self._deadlines:
            self._arm(session, self.limits.frame_timeout_ms / 1000 + frame_bytes / _FRAME_BYTES_PER_SECOND)

    def arm_write_deadline(self, session: Connection) -> None:
        """Set a deadline for the peer to read some of its replies."""
        self._note_unread(session)
        self._arm(session, self.limits.stalled_peer_timeout_ms / 1000)

    def arm_linger(self, session: Connection) -> None:
        """Set a deadline for the peer to read its last frame, and on TCP to close."""
        self._note_unread(session)
        self._arm(session, LINGER_S)

    def welcome(self, session: Connection) -> None:
        """Let a session stay: its peer has authenticated in time."""
        self.disarm(session)
        self.places.note_authenticated(session)

    def disarm(self, session: Connection) -> None:
        """Remove the deadline of a session."""
        self._deadlines.pop(session, None)
        self._unread_bytes.pop(session, None)

    # ------------------------------------------------------------------ admission

    def _identify(self, session: Connection) -> Peer:
        connection = session.transport.get_extra_info("socket")
        if connection.family == socket.AF_UNIX:
            return unix_peer(connection.fileno())
        return tcp_peer(
            session.transport.get_extra_info("peername"), session.transport.get_extra_info("peercert") or None
        )

    def _reject(self, session: Connection, reason: str) -> None:
        logger.warning("refused %s: %s", session.peer.name, reason)
        self._metrics.rejected += 1
        if self.places.reject(session):
            session.close_with_error(error_reply("busy", f"{reason}; try again later"))
        else:
            session.abort()

    # ------------------------------------------------------------------ deadlines

    def _arm(self, session: Connection, timeout_s: float) -> None:
        self._deadlines[session] = self.loop.time() + timeout_s
        if self._sweep is None:
            self._sweep = self.loop.call_later(SWEEP_S, self._sweep_deadlines)

    def _arm_sweep(self) -> None:
        if self._sweep is None:
            self._sweep = self.loop.call_later(SWEEP_S, self._sweep_deadlines)

    def _sweep_deadlines(self) -> None:
        now = self.loop.time()
        for session, deadline in list(self._deadlines.items()):
            if deadline <= now and not self._has_progressed(session, now):
                self._expire(session, "it kept the server waiting")
        for session, last_active in list(self._tcp.items()):
            if session.active or session.is_feed:
                session.active = False
                self._tcp[session] = now
            elif now - last_active > self.limits.tcp_idle_timeout_ms / 1000:
                self._expire(session, "idle for too long")
        self.is_crowded = self._may_hold_unreported
        if self.is_crowded:
            self.budget.report_all(self.connections)
        waiting = self._deadlines or self._tcp or self.is_crowded
        self._sweep = self.loop.call_later(SWEEP_S, self._sweep_deadlines) if waiting else None

    def _has_progressed(self, session: Connection, now: float) -> bool:
        """Whether a peer has read enough of its replies since this deadline was set; then it gets another."""
        if session not in self._unread_bytes:
            return False
        before_bytes, since = self._unread_bytes[session]
        unread_bytes = self._note_unread(session)
        self._deadlines[session] = now + self.limits.stalled_peer_timeout_ms / 1000
        return 0 < unread_bytes <= before_bytes - max((now - since) * _READ_BYTES_PER_SECOND, 1)

    def _note_unread(self, session: Connection) -> int:
        unread_bytes = session.transport.get_write_buffer_size()
        self._unread_bytes[session] = unread_bytes, self.loop.time()
        return unread_bytes

    @property
    def _may_hold_unreported(self) -> bool:
        """Whether there are so many connections that the replies which they do not report could matter."""
        return len(self.connections) * HIGH_WATER_BYTES > self.budget.max_bytes // 2

    def _expire(self, session: Connection, reason: str) -> None:
        self.disarm(session)
        if not session.is_closing:
            logger.info("closed %s: %s", session.peer.name, reason)
        session.abort()

    # ------------------------------------------------------------------ stopping

    async def stop(self) -> None:
        """Accept no more connections, answer every frame that has been read, send the last frames, and close."""
        self._stopping = True
        for listener in self._listeners:
            listener.close()
        for tls in self._tls:
            tls.close()
        for backlog, goodbye in self._backlogs:
            _reject_backlog(backlog, goodbye)
        self.set_batch.flush()
        for session in self.connections:
            session.drain()
        try:
            async with asyncio.timeout(self.limits.drain_timeout_ms / 1000):
                await self._empty.wait()
        except TimeoutError:
            logger.warning("%d connections did not take their last replies in time", len(self.connections))
            for session in self.connections:
                session.abort()
        if self._sweep is not None:
            self._sweep.cancel()


def _reject_backlog(backlog: socket.socket, goodbye: bytes) -> None:
    """Tell connections that the server never served that none of their requests ran."""
    backlog.setblocking(False)
    with backlog:
        while True:
            try:
                connection, _ = backlog.accept()
            except OSError:
                return
            with connection:
                connection.setblocking(False)
                try:
                    connection.send(goodbye)
                except OSError:
                    continue
