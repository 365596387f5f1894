"""All connections of the daemon: who may connect, who has waited too long, and how everybody is sent home.

Deadlines are kept by one sweep a second over the few sessions that have one; with none, nothing wakes up.
"""

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from kvd.engine.durability import LogDurability
from kvd.protocol.frames import frame
from kvd.protocol.keepalive import keep_alive
from kvd.protocol.limits import Limits
from kvd.protocol.messages import encode_replies
from kvd.requests.access import Access
from kvd.requests.errors import error_reply
from kvd.requests.executor import Commands
from kvd.server.busy_poll import BusyPoll
from kvd.server.connection import Connection
from kvd.server.peers import Peer, tcp_peer, unix_peer
from kvd.server.session import Session
from kvd.server.set_batch import SetBatcher
from kvd.server.tls_listener import TlsListener
from kvd.telemetry.metrics import LoopLag

logger = logging.getLogger(__name__)

BACKLOG = 4096
SWEEP_S = 1.0
# A session that was sent its last frame is listened to for so long, that its input does not reset the connection.
LINGER_S = 1.0
# What a connection takes that holds nothing, about.
SESSION_BYTES = 1024
# How old the sum of what the connections hold may be.
BUFFERS_S = 0.1
_FRAME_BYTES_A_SECOND = 64 * 1024
_GOODBYE = frame(encode_replies(error_reply("shutting_down", "the server is stopping; nothing ran")))


class Server:
    """The listeners and their sessions."""

    def __init__(self, commands: Commands, loop: asyncio.AbstractEventLoop, busy_poll_us: int = 0) -> None:
        self.commands = commands
        self.loop = loop
        self.busy_poll = BusyPoll(loop, busy_poll_us) if busy_poll_us else None
        self.turn = SetBatcher(commands, loop)
        self.sessions: set[Connection] = set()
        self._buffer_bytes = 0
        self._measure_at = 0.0
        commands.database.memory.buffer_bytes = self.buffer_bytes
        commands.measures.open_connections = self.sessions.__len__
        commands.measures.loop_lag = LoopLag(loop.call_later)
        self._listeners: list[asyncio.Server] = []
        self._tls: list[TlsListener] = []
        self._backlogs: list[tuple[socket.socket, bytes]] = []  # and the last words for who waits in it
        self._of_uid: Counter[int] = Counter()
        self._tcp: dict[Connection, float] = {}  # when each last sent something, as the sweep saw it
        # Loop times; and for those that wait for their peer to read, how much it had left to read.
        self._deadlines: dict[Connection, float] = {}
        self._unread_bytes: dict[Connection, int] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._stopping = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def durability(self) -> LogDurability | None:
        """Who holds replies until the disk has what they show."""
        return self.commands.durability

    @property
    def limits(self) -> Limits:
        """The limits in force; a reload replaces them."""
        return self.commands.limits

    def buffer_bytes(self) -> int:
        """What the connections hold: themselves, input that has not run yet, replies. Not older than BUFFERS_S.

        And the table of near caches, which is there for them, and what is on its way to the disk.
        """
        now = self.loop.time()
        if now >= self._measure_at:
            self._measure_at = now + BUFFERS_S
            held = sum(session.buffer_bytes for session in self.sessions) + SESSION_BYTES * len(self.sessions)
            self._buffer_bytes = held + self.commands.near_caches.table_bytes
        return self._buffer_bytes + self.commands.sliced_bytes + self.commands.database.journal.outstanding_bytes

    async def listen(
        self,
        listening: socket.socket,
        *,
        own: bool,
        tls: ssl.SSLContext | None = None,
        spoken: Callable[[], asyncio.BaseProtocol] | None = None,
        goodbye: bytes | None = None,
    ) -> None:
        """Serve connections of a listening socket. ``own``: nobody will serve its backlog after us. ``tls``: on TCP.

        ``spoken``: makes the session of each, if it is another protocol than ours; ``goodbye``: that one's last words.
        """
        if own:
            self._backlogs.append((listening.dup(), _GOODBYE if goodbye is None else goodbye))
        if listening.family != socket.AF_UNIX:
            keep_alive(listening)
        session = spoken or (lambda: Session(self))
        if tls is not None and listening.family != socket.AF_UNIX:
            listening.listen(BACKLOG)
            self._tls.append(TlsListener(self, listening, tls, session))
            return
        create: Any = self.loop.create_unix_server if listening.family == socket.AF_UNIX else self.loop.create_server
        self._listeners.append(await create(session, sock=listening, backlog=BACKLOG))

    @property
    def connections(self) -> int:
        """How many there are, with those that have not ended their TLS handshake yet."""
        return len(self.sessions) + sum(map(len, self._tls))

    # ------------------------------------------------------------------ called by sessions

    def admit(self, session: Connection, *, is_open: bool = False) -> None:
        """Take a new connection in, or send it away. ``is_open``: on TCP it need not show who it is."""
        self.sessions.add(session)
        self.commands.measures.accepted += 1
        self._empty.clear()
        try:
            session.peer = self._identify(session)
        except OSError:  # gone already
            session.peer = Peer("unknown", None)
            session.abort()
            return
        peer, limits = session.peer, self.limits
        peer.greeted = peer.greeted or is_open
        peer.allow(self.commands.access)
        if peer.uid is not None:
            self._of_uid[peer.uid] += 1  # also if it is sent away: forget() takes it off again
        if self._stopping:
            session.leave(error_reply("shutting_down", "the server is stopping"))
            return
        is_counted = session.transport.get_extra_info("ssl_object") is not None  # when it was accepted
        if not is_counted and self.connections > limits.max_connections:
            self._send_away(session, f"{limits.max_connections} connections are open, as many as may be")
        elif peer.uid is None and peer.greeted:
            self._tcp[session] = self.loop.time()
            self._watch_idle()
        elif peer.uid is None:
            self._tcp[session] = self.loop.time()
            self._watch(session, limits.hello_timeout_ms / 1000)
        elif self._of_uid[peer.uid] > limits.max_connections_per_uid and not peer.administrator:
            self._send_away(session, f"uid {peer.uid} has {limits.max_connections_per_uid} connections open")

    def allow(self, access: Access) -> None:
        """Other rules hold from now on, for open connections too."""
        self.turn.make()
        self.commands.access = access
        for session in self.sessions:
            session.peer.allow(access)
        self.commands.near_caches.invalidate_all()
        for session in list(self.sessions):
            if session.feeding and not self.commands.may_go_on(session.peer):
                session.leave(error_reply("forbidden", "the rules have changed: no right to what this was told"))

    def know(self, tokens: Mapping[str, str | None]) -> None:
        """Other tokens hold from now on: whoever has shown one that does not, or not under that name, has to leave."""
        self.turn.make()
        self.commands.tokens = tokens
        for session in list(self.sessions):
            if not self.commands.token_is_valid(session.peer):
                session.leave(error_reply("unauthenticated", "the token that was shown is not valid any more"))

    def speak(self, tls: ssl.SSLContext) -> None:
        """Other certificates hold from now on, for connections to come."""
        for listener in self._tls:
            listener.context = tls

    def forget(self, session: Connection) -> None:
        """A connection has ended."""
        self.commands.forget(session.peer)
        self.sessions.discard(session)
        self._tcp.pop(session, None)
        self.disarm(session)
        uid = session.peer.uid
        if uid is not None:
            self._of_uid[uid] -= 1
            if self._of_uid[uid] <= 0:
                del self._of_uid[uid]
        if not self.sessions:
            self._empty.set()

    def arm_read_deadline(self, session: Connection, frame_bytes: int) -> None:
        """The rest of a frame has to come in time, counted from its first byte (before hello: from the connect)."""
        if session not in self._deadlines:
            self._watch(session, self.limits.frame_timeout_ms / 1000 + frame_bytes / _FRAME_BYTES_A_SECOND)

    def arm_write_deadline(self, session: Connection) -> None:
        """The peer has to take some of its replies in time."""
        self._unread_bytes[session] = session.transport.get_write_buffer_size()
        self._watch(session, self.limits.stalled_peer_timeout_ms / 1000)

    def arm_linger(self, session: Connection) -> None:
        """The peer has to take its last frame, and on TCP to close, in time."""
        self._unread_bytes[session] = session.transport.get_write_buffer_size()
        self._watch(session, LINGER_S)

    def disarm(self, session: Connection) -> None:
        """The session has no deadline any more."""
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

    def _send_away(self, session: Connection, reason: str) -> None:
        logger.warning("refused %s: %s", session.peer.name, reason)
        self.commands.measures.rejected += 1
        session.leave(error_reply("busy", f"{reason}; try again later"))

    # ------------------------------------------------------------------ deadlines

    def _watch(self, session: Connection, timeout_s: float) -> None:
        self._deadlines[session] = self.loop.time() + timeout_s
        if self._sweep is None:
            self._sweep = self.loop.call_later(SWEEP_S, self._sweep_deadlines)

    def _watch_idle(self) -> None:
        if self._sweep is None:
            self._sweep = self.loop.call_later(SWEEP_S, self._sweep_deadlines)

    def _sweep_deadlines(self) -> None:
        now = self.loop.time()
        for session, deadline in list(self._deadlines.items()):
            if deadline <= now and not self._has_progressed(session, now):
                self._expire(session, "it kept the server waiting")
        for session, last_active in list(self._tcp.items()):
            if session.active or session.feeding:
                session.active = False
                self._tcp[session] = now
            elif now - last_active > self.limits.tcp_idle_timeout_ms / 1000:
                self._expire(session, "idle for too long")
        waiting = self._deadlines or self._tcp
        self._sweep = self.loop.call_later(SWEEP_S, self._sweep_deadlines) if waiting else None

    def _has_progressed(self, session: Connection, now: float) -> bool:
        """Whether a peer took some of its replies since it was last looked at; then it gets more time."""
        before = self._unread_bytes.get(session)
        if before is None:
            return False
        unread = self._unread_bytes[session] = session.transport.get_write_buffer_size()
        self._deadlines[session] = now + self.limits.stalled_peer_timeout_ms / 1000
        return 0 < unread < before

    def _expire(self, session: Connection, reason: str) -> None:
        self.disarm(session)
        if not session.leaving:
            logger.info("closed %s: %s", session.peer.name, reason)
        session.abort()

    # ------------------------------------------------------------------ stopping

    async def stop(self) -> None:
        """Accept nobody any more, answer every frame already read, say goodbye, close."""
        self._stopping = True
        for listener in self._listeners:
            listener.close()
        for tls in self._tls:
            tls.close()
        for backlog, goodbye in self._backlogs:
            _dismiss(backlog, goodbye)
        self.turn.make()
        for session in list(self.sessions):
            session.finish()
        try:
            async with asyncio.timeout(self.limits.drain_timeout_ms / 1000):
                await self._empty.wait()
        except TimeoutError:
            logger.warning("%d connections did not take their last replies in time", len(self.sessions))
            for session in list(self.sessions):
                session.abort()
        if self._sweep is not None:
            self._sweep.cancel()


def _dismiss(backlog: socket.socket, goodbye: bytes) -> None:
    """Say goodbye to connections that nobody will accept any more: what they sent did not run."""
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
