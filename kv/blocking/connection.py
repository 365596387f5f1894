"""The blocking client's way to the daemon: one connection for a process, used by one thread at a time.

A call that is interrupted or times out while it waits leaves its frame in the channel's queue, so its late reply is
counted and dropped, and the connection goes on: ephemeral keys and locks hang on it. Only where it cannot be known
whether a frame went out whole, or whether all that came in was taken, is the connection given up (``_torn``).
"""

from __future__ import annotations

from _thread import allocate_lock

from kv.blocking.stream import Deadline, open_connection
from kv.errors import KvdError, ProtocolError, Unavailable
from kv.wire.exchange import Exchange, StoreView
from kv.wire.protocol import ClientProtocol, settle
from kvd.protocol.address import is_network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from kv.blocking.stream import Connection
    from kv.blocking.tls import TlsFiles
    from kv.near_cache.cache import NearCache
    from kv.wire.codecs import Codec
    from kv.wire.protocol import Frame

_MAX_WAIT_S = 4_000_000.0  # what a lock takes


class Link:
    """One process's connection, opened when it is needed."""

    def __init__(
        self,
        address: str | None,
        token_for: Callable[[str], str | None],
        codec: Codec,
        near_cache: NearCache | None = None,
        busy_poll_us: int = 0,
        tls: TlsFiles | None = None,
    ) -> None:
        self._address = address
        self._token_for = token_for
        self._codec = codec
        self._near_cache = near_cache
        self._busy_poll_us = busy_poll_us
        self._tls = tls
        self._lock = allocate_lock()
        self._knowledge = StoreView()
        self._connection: Connection | None = None
        self._channel = ClientProtocol(codec, self._knowledge)
        self._torn = False
        self._silent = False  # whether the last call timed out without a byte from the daemon since

    # ------------------------------------------------------------------ for the client

    def deliver(self, delivery: Exchange, deadline: Deadline) -> None:
        """Return when ``delivery`` is done. Raises what is not its own failure: ValueError for what cannot be sent."""
        taken = False
        try:
            # The lock within a time. Not as a call of its own: a signal between its return and the next step would
            # leave the lock held for ever. The loop calls acquire itself, and signals are not looked for in between.
            for taken in map(self._lock.acquire, (True,), (_lock_timeout(deadline),)):
                if not taken:
                    delivery.timed_out(self._address or "the daemon", deadline.seconds, sent=False)
                while not delivery.done:
                    self._try(delivery, deadline)
        finally:
            if taken:
                self._lock.release()

    def ask(
        self, requests: Sequence[tuple[object, ...]], deadline: Deadline
    ) -> tuple[list[Any], ClientProtocol] | None:
        """Send requests that change nothing in a frame; the replies and who brought them, in as few steps as it takes.

        Goes that way only if all is as it nearly always is: the connection open and free, the answer there at once, in
        one piece, and no error first. Otherwise None: the caller delivers them again, which tells what is wrong; the
        first answer, should it still come, is thrown away. Raises ValueError for what cannot be sent.
        """
        taken = False
        replies: list[Any] | None = None
        try:
            for taken in map(self._lock.acquire, (False,)):  # as in deliver
                if not taken:
                    return None
            connection, channel = self._connection, self._channel
            if connection is None or self._torn or channel.waiting or not connection.waits_by_itself:
                return None
            self._torn = True
            try:
                data = channel.encode_unattended(requests)
            except ValueError:
                self._torn = False
                raise
            if not connection.send(data, deadline):
                return None
            self._torn = False
            if connection.wait_briefly():
                self._torn = True
                replies = channel.only_replies(connection.take())
                self._torn = channel.finished or channel.refusal is not None
                self._silent = False
        except (OSError, EOFError, ProtocolError):
            self._drop()
        finally:
            if taken:
                self._lock.release()
        return None if replies is None else (replies, channel)

    def connection(self, deadline: Deadline) -> Connection:
        """The connection, opened if it is not. Raises Unavailable and its like."""
        with self._lock:
            return self._open(deadline)[0]

    @property
    def channel(self) -> ClientProtocol | None:
        """The channel of the connection that is open, as far as is known without asking the daemon."""
        connection = self._connection
        return None if connection is None or self._torn or connection.ended() else self._channel

    def take_over(self) -> Connection | None:
        """The connection, which is not this link's any more; None if there is none."""
        with self._lock:
            connection, self._connection = self._connection, None
            self._detach()
            return connection

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        connection = self.take_over()
        if connection is not None:
            connection.close()

    # ------------------------------------------------------------------ a try

    def _try(self, delivery: Exchange, deadline: Deadline) -> None:
        """Send it once, and wait for what comes of it."""
        try:
            connection, fresh = self._open(deadline)
            if delivery.store_id is not None:
                self._greet(connection, deadline)
                if self._channel.store_id != delivery.store_id:
                    delivery.elsewhere()
                    return
            data = self._channel.encode([delivery])
        except KvdError as error:
            delivery.refused(error)
            return
        sent = False
        try:
            sent = self._send(connection, data, [delivery], deadline)
            while not delivery.done and self._channel.waiting:
                self._receive(connection, deadline)
                if self._channel.finished or self._channel.refusal is not None:
                    break
        except TimeoutError:
            delivery.timed_out(connection.address, deadline.seconds, sent=sent)
            self._timed_out(connection, sent)
            return
        except (OSError, EOFError) as error:
            self._drop()
            ended = delivery.lost if sent else delivery.not_sent
            ended(connection.address, str(error), fresh=fresh)
            return
        except ProtocolError as error:
            self._drop()
            delivery.protocol_broken(error)
            return
        if self._channel.refusal is not None:
            delivery.refused(self._channel.refusal)
        if self._channel.finished or self._channel.refusal is not None or not sent:
            self._drop()

    def _open(self, deadline: Deadline) -> tuple[Connection, bool]:
        """The connection, and whether it is a new one. Raises Unavailable and its like."""
        if self._torn:
            self._drop()
        if self._connection is not None:
            return self._connection, False
        connection = open_connection(self._address, deadline, self._tls)
        connection.busy_poll_us = self._busy_poll_us
        self._channel = ClientProtocol(self._codec, self._knowledge)
        self._silent = self._torn = False
        if self._near_cache is not None:
            from kv.near_cache.attach import attach

            attach(self._near_cache, connection, self._channel, deadline)
        self._connection = connection
        if self._near_cache is not None:
            self._near_cache.attach(self._channel)
        if is_network(connection.address):
            self._greet(connection, deadline)  # nothing else is let in before
        return connection, True

    def _greet(self, connection: Connection, deadline: Deadline) -> None:
        """Return when the daemon has said which store it has. Raises Unavailable and its like."""
        channel = self._channel
        try:
            if not channel.said_hello:
                self._send(connection, b"", (), deadline)
            while channel.store_id is None and channel.refusal is None and not channel.finished:
                self._receive(connection, deadline)
        except TimeoutError:
            self._drop()
            raise Unavailable(f"no answer from {connection.address} in time", [connection.address]) from None
        except (OSError, EOFError) as error:
            self._drop()
            raise Unavailable(f"{connection.address} closed the connection", [connection.address]) from error
        except KvdError:
            self._drop()
            raise
        if channel.refusal is not None or channel.finished:
            self._drop()
            raise channel.refusal or Unavailable(f"{connection.address} is stopping", [connection.address])

    def _send(self, connection: Connection, data: bytes, frame: list[Exchange] | tuple[()], deadline: Deadline) -> bool:
        """Send a frame, with hello before the first one; whether all of it was sent before the other end hung up."""
        channel = self._channel
        self._torn = True
        if not channel.said_hello:
            data = channel.hello(self._token_for(connection.address)) + data
        if frame:
            channel.waiting.append(frame)
        sent = connection.send(data, deadline)
        self._torn = False
        return sent

    def _receive(self, connection: Connection, deadline: Deadline) -> None:
        """Wait for more, and tell those whom it concerns."""
        # TLS keeps what it has taken in halves, and an interrupt may lose some of it.
        self._torn = connection.address.startswith("tls://")
        try:
            connection.wait_for_data(deadline)
        except TimeoutError:
            self._torn = False
            raise
        self._torn = True
        self._silent = False
        answered: list[tuple[Frame, Any]] = []
        self._channel.receive(connection.take(), answered)
        for frame, reply in answered:
            settle(frame, reply)
        self._torn = False

    def _timed_out(self, connection: Connection, sent: bool) -> None:
        """Keep the connection for the late reply, unless it is torn, or seems dead.

        A Unix socket cannot be dead without saying so; on TCP the way to the other host may be gone.
        """
        if not sent or (self._silent and is_network(connection.address)):
            self._drop()
        self._silent = True

    def _detach(self) -> None:
        """Nobody renews what the near cache has of this connection, if it has anything."""
        if self._near_cache is not None:
            self._near_cache.detach(self._channel)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._torn = False
        self._detach()
        if connection is not None:
            connection.close()


def _lock_timeout(deadline: Deadline) -> float:
    try:
        left = deadline.left()
    except TimeoutError:
        return 0
    return -1 if left is None else min(left, _MAX_WAIT_S)
