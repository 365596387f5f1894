"""The blocking client's way to the daemon: one connection for a process, used by one thread at a time.

A call that is interrupted or times out while it waits leaves its frame in the protocol's queue. Its late reply is
counted and dropped, and the connection stays open, because ephemeral keys and locks depend on it. The client closes
the connection only if a frame may have been sent in part, or received data may have been lost (``_torn``).
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident

from kv.blocking.stream import STOPPING_PAUSE_S, Deadline, open_home
from kv.errors import KvdError, ProtocolError, Stopping, Unavailable
from kv.wire.exchange import Exchange
from kv.wire.protocol import ClientProtocol, StoreView
from kvd.protocol.address import is_network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from kv.blocking.stream import Stream
    from kv.near_cache.cache import NearCache
    from kv.settings import ClientSettings

_MAX_WAIT_S = 4_000_000.0  # a lock cannot wait for longer


class Connection:
    """One process's connection, opened when it is needed."""

    def __init__(self, settings: ClientSettings, near_cache: NearCache | None = None) -> None:
        self._settings = settings
        self._near_cache = near_cache
        self._lock = allocate_lock()
        self._owner = 0  # the thread that is in a call
        self._store_view = StoreView()
        self._stream: Stream | None = None
        self._protocol = ClientProtocol(settings.codec, self._store_view)
        self._torn = False
        self._silent = False  # whether the daemon has sent nothing since a call timed out

    # ------------------------------------------------------------------ for the client

    def deliver(self, exchange: Exchange, deadline: Deadline) -> None:
        """Carry out ``exchange``; its failures are its own. Raises ValueError for what cannot be encoded.

        Raises RuntimeError inside another call of the same thread: in a signal handler or a ``__del__``.
        """
        thread = self._check_owner()
        acquired = False
        try:
            # A signal between the return of a plain acquire() and the next step would leave the lock held for ever.
            # Here the for statement calls acquire through map, and Python looks for no signals in between. (A context
            # manager of ours would have the same gap, and cost 2 to 3 % of the instructions of a get.)
            for acquired in map(self._lock.acquire, (True,), (_lock_timeout(deadline),)):
                if acquired:
                    self._owner = thread
                else:
                    exchange.timed_out(self._settings.address or "the daemon", deadline.seconds, sent=False)
                while not exchange.done:
                    self._try(exchange, deadline)
        finally:
            if acquired:
                self._owner = 0
                self._lock.release()

    def ask_quickly(
        self, requests: Sequence[tuple[object, ...]], deadline: Deadline
    ) -> tuple[list[Any], ClientProtocol] | None:
        """Send requests that change nothing; return the replies and the protocol that read them. The short way.

        It works only in the usual case: the connection is open and free, the reply comes soon and in one piece, and the
        first reply is no error. Otherwise returns None: the caller delivers the requests again, which finds out what is
        wrong, and a late reply to this frame is dropped. Raises ValueError for what cannot be encoded.
        """
        thread = get_ident()
        acquired = False
        replies: list[Any] | None = None
        try:
            for acquired in map(self._lock.acquire, (False,)):  # as in deliver
                if not acquired:
                    return None
                self._owner = thread
            stream, protocol = self._stream, self._protocol
            if stream is None or self._torn or protocol.pending or not stream.recv_waits:
                return None
            self._torn = True
            try:
                data = protocol.encode_unclaimed(requests)
            except ValueError:
                self._torn = False
                raise
            if not stream.send(data, deadline):
                return None
            self._torn = False
            if stream.wait_briefly():
                self._torn = True
                replies = protocol.take_only_replies(stream.take())
                self._torn = protocol.shutting_down or protocol.refusal is not None
                self._silent = False
        except (OSError, EOFError, ProtocolError):
            self._drop()
        finally:
            if acquired:
                self._owner = 0
                self._lock.release()
        return None if replies is None else (replies, protocol)

    def stream(self, deadline: Deadline) -> Stream:
        """Return the stream, opened if it is not open. Raises Unavailable and the like."""
        self._check_owner()
        with self._lock:
            return self._open(deadline)[0]

    @property
    def protocol(self) -> ClientProtocol | None:
        """The protocol of the open connection; None if it is not open, as far as the client knows without asking."""
        stream = self._stream
        return None if stream is None or self._torn or stream.has_ended() else self._protocol

    def take_stream(self) -> Stream | None:
        """Return the stream, if one is open. It belongs to the caller then, and the next call opens another."""
        self._check_owner()
        with self._lock:
            stream, self._stream = self._stream, None
            self._detach_near_cache()
            return stream

    def close(self) -> None:
        """Close the stream; the next call opens another."""
        stream = self.take_stream()
        if stream is not None:
            stream.close()

    def _check_owner(self) -> int:
        """Return this thread's id. Raises RuntimeError if the thread is in a call, for which it would wait for ever."""
        thread = get_ident()
        if self._owner == thread:
            raise RuntimeError(
                "the client is already in a call of this thread: a signal handler or __del__ that may interrupt it "
                "must use a client of its own"
            )
        return thread

    # ------------------------------------------------------------------ a try

    def _try(self, exchange: Exchange, deadline: Deadline) -> None:
        """Send ``exchange`` once, and wait for its replies or for the end of the try."""
        try:
            stream, fresh = self._open(deadline)
            if exchange.store_id is not None:
                self._greet(stream, deadline)
                if self._protocol.store_id != exchange.store_id:
                    exchange.store_changed()
                    return
            data = self._protocol.encode([exchange])
        except Stopping as error:
            if not deadline.pause(STOPPING_PAUSE_S):
                exchange.refused(error)
            return  # else deliver tries again: the daemon's successor may answer
        except KvdError as error:
            exchange.refused(error)
            return
        sent = False
        try:
            sent = self._send(stream, data, [exchange], deadline)
            while not exchange.done and self._protocol.pending:
                self._receive(stream, deadline)
                if self._protocol.shutting_down or self._protocol.refusal is not None:
                    break
        except TimeoutError:
            exchange.timed_out(stream.address, deadline.seconds, sent=sent)
            self._on_timeout(stream, sent)
            return
        except (OSError, EOFError) as error:
            self._drop()
            end_try = exchange.lost if sent else exchange.not_sent
            end_try(stream.address, str(error), fresh=fresh)
            return
        except ProtocolError as error:
            self._drop()
            exchange.protocol_broken(error)
            return
        if self._protocol.refusal is not None:
            exchange.refused(self._protocol.refusal)
        if self._protocol.shutting_down or self._protocol.refusal is not None or not sent:
            self._drop()

    def _open(self, deadline: Deadline) -> tuple[Stream, bool]:
        """Return the stream, and whether it is a new one. Raises Unavailable and the like."""
        if self._torn:
            self._drop()
        if self._stream is not None:
            return self._stream, False
        settings = self._settings
        stream = open_home(settings, deadline)
        stream.busy_poll_us = settings.busy_poll_us
        self._protocol = ClientProtocol(settings.codec, self._store_view)
        self._silent = self._torn = False
        if self._near_cache is not None:
            from kv.near_cache.attach import attach

            attach(self._near_cache, stream, self._protocol, deadline)
        self._stream = stream
        if self._near_cache is not None:
            self._near_cache.attach(self._protocol)
        if is_network(stream.address):
            self._greet(stream, deadline)  # over TCP the daemon accepts no other first frame
        return stream, True

    def _greet(self, stream: Stream, deadline: Deadline) -> None:
        """Wait until the daemon has said which store it has. Raises Unavailable and the like."""
        protocol = self._protocol
        try:
            if not protocol.hello_sent:
                self._send(stream, b"", (), deadline)
            while protocol.store_id is None and protocol.refusal is None and not protocol.shutting_down:
                self._receive(stream, deadline)
        except TimeoutError:
            self._drop()
            raise Unavailable(f"no answer from {stream.address} in time", [stream.address]) from None
        except (OSError, EOFError) as error:
            self._drop()
            raise Unavailable(f"{stream.address} closed the connection", [stream.address]) from error
        except KvdError:
            self._drop()
            raise
        if protocol.refusal is not None or protocol.shutting_down:
            self._drop()
            raise protocol.refusal or Stopping(f"{stream.address} is stopping", [stream.address])

    def _send(self, stream: Stream, data: bytes, frame: list[Exchange] | tuple[()], deadline: Deadline) -> bool:
        """Send a frame, after hello if it is the first; whether all of it was sent before the peer hung up."""
        protocol = self._protocol
        self._torn = True
        if not protocol.hello_sent:
            data = protocol.hello(self._settings.token_for(stream.address)) + data
        if frame:
            protocol.pending.append(frame)
        sent = stream.send(data, deadline)
        self._torn = False
        return sent

    def _receive(self, stream: Stream, deadline: Deadline) -> None:
        """Wait for data, and hand out the replies in it."""
        # An interrupt may lose data on TLS, which takes records in pieces.
        self._torn = stream.address.startswith("tls://")
        try:
            stream.wait_for_data(deadline)
        except TimeoutError:
            self._torn = False
            raise
        self._torn = True
        self._silent = False
        self._protocol.receive_and_dispatch(stream.take())
        self._torn = False

    def _on_timeout(self, stream: Stream, sent: bool) -> None:
        """Keep the connection for the late reply, unless it is torn or seems dead.

        A Unix socket always reports its end; on TCP the way to the other host may be gone.
        """
        if not sent or (self._silent and is_network(stream.address)):
            self._drop()
        self._silent = True

    def _detach_near_cache(self) -> None:
        """Forget the near cache's entries of this connection: the server notes their changes no longer."""
        if self._near_cache is not None:
            self._near_cache.detach(self._protocol)

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        self._torn = False
        self._detach_near_cache()
        if stream is not None:
            stream.close()


def _lock_timeout(deadline: Deadline) -> float:
    try:
        remaining = deadline.remaining()
    except TimeoutError:
        return 0
    return -1 if remaining is None else min(remaining, _MAX_WAIT_S)
