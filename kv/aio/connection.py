"""The asyncio client's way to the daemon: one connection, and one frame for all that is asked in a turn of the loop.

    a call ──▶ queue ──end of the turn──▶ frame ──▶ channel.waiting ──reply──▶ the calls' futures
                 ▲                                        │
                 └──────── sent again ◀── connection lost, or goodbye

A call that was cancelled or timed out is no special case: its future is done, and the reply that comes in its place is
thrown away. One timer, set for the oldest call that waits, serves all deadlines.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from kv.blocking.stream import Deadline, open_connection
from kv.errors import KvdError, ProtocolError, Unavailable
from kv.wire.exchange import Exchange, StoreView
from kv.wire.protocol import ClientProtocol, settle
from kvd.protocol.address import is_network, parse_tcp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kv.blocking.stream import Connection
    from kv.blocking.tls import TlsFiles
    from kv.near_cache.cache import NearCache
    from kv.wire.codecs import Codec
    from kv.wire.protocol import Frame

# However many the daemon would take: with fewer in a frame the first replies come sooner.
MAX_REQUESTS = 4_096
MOST_BYTES = 1 << 20


class Call(Exchange):
    """A delivery that somebody awaits, until ``deadline`` (the loop's time; None: for ever)."""

    __slots__ = ("deadline",)

    deadline: float | None

    def finish(self) -> None:
        """Tell whoever awaits it."""
        if not self.waiter.done():
            self.waiter.set_result(self)


class SingleCall(Call):
    """One operation, whose result is what is awaited."""

    __slots__ = ()

    def finish(self) -> None:
        if self.waiter.done():
            return
        try:
            self.waiter.set_result(self.result())
        except KvdError as error:
            self.waiter.set_exception(error)


class AsyncLink:
    """One loop's connection, opened when it is needed."""

    def __init__(
        self,
        address: str | None,
        token_for: Callable[[str], str | None],
        codec: Codec,
        timeout: float | None,
        near_cache: NearCache | None = None,
        tls: TlsFiles | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._address = address
        self._token_for = token_for
        self._codec = codec
        self._timeout = timeout
        self._near_cache = near_cache
        self._tls = tls
        self._knowledge = StoreView()
        self._queue: list[Call] = []
        self._flush_due = False
        self._session: Session | None = None
        self._opening: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ for the client

    def call(self, call: Call) -> asyncio.Future[Any]:
        """Send it with all others of this turn; the future of what it comes to."""
        future = call.waiter = self.loop.create_future()
        self._queue.append(call)
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush)
        return future

    @property
    def channel(self) -> ClientProtocol | None:
        """The channel of the connection that is open now."""
        return None if self._session is None else self._session.channel

    async def close(self) -> None:
        """Close the connection; calls under way end with ConnectionLost. The next call opens another."""
        for call in self._under_way():
            call.closed()
            call.finish()
        self._queue.clear()
        if self._opening is not None:
            self._opening.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        session, self._session = self._session, None
        if session is not None:
            self._detach(session.channel)
            session.transport.close()
            await session.ended.wait()

    # ------------------------------------------------------------------ sending

    def _flush(self) -> None:
        """The end of a turn: everything that was asked for in it goes out."""
        self._flush_due = False
        if self._timeout is not None:
            deadline = self.loop.time() + self._timeout
            for call in reversed(self._queue):
                if hasattr(call, "deadline"):
                    break  # it waits for a connection, and so do those before it
                call.deadline = deadline
            if self._timer is None and self._queue:
                self._timer = self.loop.call_at(deadline, self._time_out)
        session = self._session
        if session is not None and session.ready:
            queue, self._queue = self._queue, []
            self._transmit(session, [call for call in queue if not call.waiter.done()])
        elif self._opening is None and session is None and self._queue:
            self._opening = self.loop.create_task(self._open())

    def _transmit(self, session: Session, calls: list[Call]) -> None:
        """Send calls in as few frames as they fit into."""
        at = 0
        store_id = session.channel.store_id
        most = min(MAX_REQUESTS, session.channel.limits.get("max_requests_per_frame", MAX_REQUESTS))
        while at < len(calls):
            frame: list[Call] = []
            size = 0
            for call in calls[at:]:
                if frame and size + call.size > most:
                    break
                at += 1
                if call.store_id is not None and call.store_id != store_id:
                    call.elsewhere()
                    call.finish()
                    continue
                frame.append(call)
                size += call.size
            if frame:
                self._transmit_frame(session, frame)

    def _transmit_frame(self, session: Session, frame: list[Call]) -> None:
        channel = session.channel
        try:
            data = channel.encode(frame)
            if len(data) > MOST_BYTES and len(frame) > 1:
                raise ValueError("too much for one frame")
        except Exception as error:  # whatever a program may have given us to encode
            if len(frame) > 1:
                half = len(frame) // 2
                self._transmit_frame(session, frame[:half])
                self._transmit_frame(session, frame[half:])
            elif isinstance(error, KvdError):
                frame[0].refused(error)
                frame[0].finish()
            elif not frame[0].waiter.done():
                frame[0].waiter.set_exception(error)
            return
        channel.waiting.append(frame)
        session.transport.write(data)

    # ------------------------------------------------------------------ what comes of it

    def answered(self, session: Session, frames: Sequence[tuple[Any, object]]) -> None:
        """Frames have their replies."""
        again: list[Call] = []
        for frame, reply in frames:
            if type(reply) is dict and len(frame) > 1:
                # Something in it was refused, and so everything with it: nothing ran. Each alone, then.
                for call in frame:
                    if not call.waiter.done():
                        self._transmit_frame(session, [call])
                continue
            settle(frame, reply)
            for call in frame:
                if call.done:
                    call.finish()
                else:
                    again.append(call)
        self._again(again)

    def lost(self, session: Session, reason: str) -> None:
        """The connection has ended, for better or worse. What waits there is sent again, or ends."""
        if self._session is session:
            self._session = None
        self._detach(session.channel)
        again: list[Call] = []
        for frame in session.channel.waiting:
            for call in frame:
                assert isinstance(call, Call)
                if call.waiter.done():
                    continue
                if session.failure is not None:
                    call.protocol_broken(session.failure)
                elif not session.channel.finished:
                    call.lost(session.address, reason, fresh=not session.heard)
                if call.done:
                    call.finish()
                else:
                    again.append(call)
        session.channel.waiting.clear()
        self._again(again)

    def _again(self, calls: list[Call]) -> None:
        if calls or self._queue:
            self._queue[:0] = calls  # they were asked for first
            if not self._flush_due:
                self._flush_due = True
                self.loop.call_soon(self._flush)

    def _under_way(self) -> list[Call]:
        session = self._session
        frames = () if session is None else session.channel.waiting
        sent = [call for frame in frames for call in frame if isinstance(call, Call)]
        return [call for call in (*sent, *self._queue) if not call.waiter.done()]

    def _time_out(self) -> None:
        """End the calls whose time is over; look again when that of the next one is."""
        self._timer = None
        now, session = self.loop.time(), self._session
        waiting = self._under_way()
        late = [call for call in waiting if call.deadline is not None and call.deadline <= now]
        address = (session.address if session is not None else self._address) or "the daemon"
        sent = {id(call) for frame in session.channel.waiting for call in frame} if session is not None else set()
        for call in late:
            call.timed_out(address, self._timeout, sent=id(call) in sent)
            call.finish()
        if session is not None and late:
            session.timed_out()
        following = [call.deadline for call in waiting if not call.done and call.deadline is not None]
        if following:
            self._timer = self.loop.call_at(min(following), self._time_out)

    # ------------------------------------------------------------------ the connection

    async def _open(self) -> None:
        """Connect, and let out what waits for it, or tell it that there is no daemon."""
        try:
            self._session = await self._connect()
        except KvdError as error:
            waiting, self._queue = self._queue, []
            for call in waiting:
                if not call.waiter.done():
                    call.refused(error)
                    call.finish()
        finally:
            self._opening = None
        if self._queue:
            self._flush()

    async def _connect(self) -> Session:
        """A session that has been greeted. Raises Unavailable and its like."""
        # Found and connected to as by the blocking client; in a thread, as a name server may have to be asked.
        channel = ClientProtocol(self._codec, self._knowledge)
        found = await self.loop.run_in_executor(None, self._open_connection, channel)
        address = found.address
        descriptor, unix = found.detach()
        connected = socket.socket(fileno=descriptor)
        connected.setblocking(False)
        session = Session(self, channel, address)
        create: Any = self.loop.create_unix_connection if unix else self.loop.create_connection
        try:
            async with asyncio.timeout(self._timeout):
                await create(lambda: session, sock=connected, **tls_options(address, self._tls))
        except TimeoutError:
            raise Unavailable(f"no answer from {address} in time", [address]) from None
        except OSError as error:  # of TLS
            raise Unavailable(f"no daemon at {address} ({error.strerror or error})", [address]) from None
        try:
            if not channel.said_hello:
                session.transport.write(channel.hello(self._token_for(address)))
            elif channel.store_id is not None:
                session.greeted.set()
            async with asyncio.timeout(self._timeout):
                await session.greeted.wait()
        except TimeoutError:
            session.transport.abort()
            raise Unavailable(f"no answer from {address} in time", [address]) from None
        except BaseException:
            session.transport.abort()
            raise
        if session.channel.refusal is not None or session.failure is not None:
            session.transport.abort()
            raise session.channel.refusal or session.failure or AssertionError
        if session.channel.store_id is None or session.transport.is_closing():
            raise Unavailable(f"{address} closed the connection", [address])
        if self._near_cache is not None:
            self._near_cache.attach(channel)
        return session

    def _open_connection(self, channel: ClientProtocol) -> Connection:
        """Connect, and attach the near cache, if there is to be one. Raises Unavailable and its like."""
        deadline = Deadline(self._timeout)
        connection = open_connection(self._address, deadline, shake_hands=False)
        if self._near_cache is not None:
            from kv.near_cache.attach import attach

            attach(self._near_cache, connection, channel, deadline)
        return connection

    def _detach(self, channel: ClientProtocol) -> None:
        """Nobody renews what the near cache has of this connection, if it has anything."""
        if self._near_cache is not None:
            self._near_cache.detach(channel)


def tls_options(address: str, tls: TlsFiles | None) -> dict[str, Any]:
    """What asyncio has to be told to shake hands. Raises KvdError."""
    if not address.startswith("tls://"):
        return {}
    from kv.blocking.tls import context

    host, _ = parse_tcp(address) or ("", 0)
    return {"ssl": context(tls), "server_hostname": host}


class Session(asyncio.Protocol):
    """One connection, as the loop sees it."""

    transport: asyncio.Transport

    def __init__(self, link: AsyncLink, channel: ClientProtocol, address: str) -> None:
        self._link = link
        self.channel = channel
        self.address = address
        self.greeted = asyncio.Event()
        self.ended = asyncio.Event()
        self.heard = False  # whether anything was answered but hello
        self.failure: ProtocolError | None = None
        self._blocked = False
        self._silent = False

    @property
    def ready(self) -> bool:
        """Whether it takes frames now."""
        return not self._blocked

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        _open.add(self)

    def data_received(self, data: bytes) -> None:
        self._silent = False
        answered: list[tuple[Frame, Any]] = []
        failure = None
        try:
            self.channel.receive(data, answered)
        except ProtocolError as error:
            failure = error
        if not self.greeted.is_set() and (self.channel.store_id is not None or self.channel.refusal is not None):
            self.greeted.set()
        if answered:
            self.heard = True
            self._link.answered(self, answered)
        if failure is not None or self.channel.finished:
            self._give_up(failure)

    def _give_up(self, failure: ProtocolError | None) -> None:
        """Leave the connection: what waits is told why, or sent again."""
        self.failure = failure
        self.transport.abort()
        self.greeted.set()
        self._link.lost(self, "")

    def timed_out(self) -> None:
        """Calls have timed out. A Unix socket cannot be dead without saying so; on TCP the way may be gone."""
        if self._silent and is_network(self.address):
            self.transport.abort()
        self._silent = True

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._link._again([])

    def connection_lost(self, exc: Exception | None) -> None:
        _open.discard(self)
        self.greeted.set()
        self.ended.set()
        self._link.lost(self, str(exc or ""))


# All sessions of this process, for its forked children.
_open: WeakSet[Session] = WeakSet()


def _close_all() -> None:
    """In a forked child: give back its copies of the connections, so that the daemon sees it when the parent goes.

    The numbers are not closed but pointed elsewhere: the parent's loop, of which the child has a copy, knows them, and
    must not close what the child opens under the same number.
    """
    for session in list(_open):
        descriptor = session.transport.get_extra_info("socket").fileno()
        if descriptor >= 0:
            nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(nowhere, descriptor, inheritable=False)
            os.close(nowhere)
    _open.clear()


os.register_at_fork(after_in_child=_close_all)
