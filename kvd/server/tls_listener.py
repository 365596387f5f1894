"""TLS connections during their handshake: each counts as a connection from the moment it is accepted.

A connection has no session before its handshake ends, and a peer that never ends it would hold a descriptor that no
limit counts. So this listener accepts the connections itself, up to the limit, and each handshake has the same deadline
as the hello of a peer on TCP.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from kvd.protocol.limits import Limits

logger = logging.getLogger(__name__)

# The maximum number of connections that one turn of the loop accepts.
# Each begins a handshake, which costs about a millisecond; with a certificate of RSA 4096 several.
_ACCEPTS_PER_TURN = 4
# How long accepting pauses after the process has run out of descriptors.
_PAUSE_S = 1.0
# Failures are logged at most once per this time, because any peer can cause them.
_LOG_S = 1.0


class Host(Protocol):
    """What a listener needs of its server."""

    loop: asyncio.AbstractEventLoop

    @property
    def limits(self) -> Limits:
        """The limits in force."""

    @property
    def max_handshakes(self) -> int:
        """How many handshakes may be unfinished."""

    @property
    def max_stranger_connections(self) -> int:
        """How many connections there may be with one more of a stranger."""

    def count_connections(self) -> int:
        """How many connections there are, including unfinished handshakes."""


class TlsListener:
    """A listening TCP socket of a server; ``session`` makes the session of each connection.

    ``context``: the TLS context of future connections.
    """

    def __init__(
        self,
        server: Host,
        listening: socket.socket,
        context: ssl.SSLContext,
        session: Callable[[], asyncio.BaseProtocol],
    ) -> None:
        self._server = server
        self._session = session
        self._loop = server.loop
        self._listening = listening
        self.context = context
        self._under_way: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._logged_at = -_LOG_S
        self._not_logged = 0
        self._closed = False
        listening.setblocking(False)
        self._listen()

    def __len__(self) -> int:
        """How many handshakes are unfinished."""
        return len(self._under_way)

    def close(self) -> None:
        """Accept no more connections, and cancel unfinished handshakes."""
        self._closed = True
        self._loop.remove_reader(self._listening.fileno())
        self._listening.close()
        for task in self._under_way:
            task.cancel()

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listening.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                connection, address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no more descriptors
                logger.error("cannot accept a connection: %s", error.strerror)
                self._loop.remove_reader(self._listening.fileno())
                self._loop.call_later(_PAUSE_S, self._listen)
                return
            where = f"tcp {address[0]}:{address[1]}"
            if self._server.count_connections() >= self._server.max_stranger_connections:
                connection.close()  # before TLS the peer would not understand any message
                self._note(where, f"{self._server.limits.max_connections} connections are open, which is the limit")
                continue
            task = self._loop.create_task(self._shake_hands(connection, where))
            self._under_way[task] = None
            task.add_done_callback(self._forget)
            if len(self._under_way) > self._server.max_handshakes:
                oldest = next(iter(self._under_way))
                del self._under_way[oldest]
                oldest.cancel()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._under_way.pop(task, None)

    async def _shake_hands(self, connection: socket.socket, where: str) -> None:
        """Hand the connection to a session, or close it."""
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(
                self._session,
                connection,
                ssl=self.context,
                ssl_handshake_timeout=self._server.limits.hello_timeout_ms / 1000,
            )
        except asyncio.CancelledError:  # it was the oldest of too many, or the server stops
            connection.close()
            raise
        except (OSError, EOFError) as error:  # both SSLError and the error of a timeout are OSErrors
            connection.close()
            self._note(where, f"no TLS: {error}")

    def _note(self, where: str, why: str) -> None:
        now = self._loop.time()
        if now - self._logged_at < _LOG_S:
            self._not_logged += 1
            return
        more = f" (and {self._not_logged} others since the last such line)" if self._not_logged else ""
        logger.info("refused %s: %s%s", where, why, more)
        self._logged_at, self._not_logged = now, 0
