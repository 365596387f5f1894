"""The asyncio client's way to the daemon: one connection, and one frame for all calls of a turn of the loop.

    a call ──▶ queue ──end of the turn──▶ frame ──▶ protocol.pending ──reply──▶ the calls' futures
                 ▲                                        │
                 └──────── sent again ◀── connection lost, or goodbye

A call that was cancelled or timed out needs no special care: its future is done, and the reply that comes in its place
is dropped. One timer, set for the oldest call that waits, serves all deadlines.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

from kv.aio.stream import AsyncStream, greet, tls_options
from kv.blocking.stream import STOPPING_PAUSE_S, Deadline, open_home
from kv.errors import KvdError, Stopping, Unavailable
from kv.wire.exchange import Exchange
from kv.wire.protocol import ClientProtocol, StoreView, dispatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kv.blocking.stream import Stream
    from kv.near_cache.cache import NearCache
    from kv.settings import ClientSettings

# Below the daemon's limits: with smaller frames the first replies come sooner.
MAX_REQUESTS = 4_096
MAX_BYTES = 1 << 20


class Call(Exchange):
    """An exchange that a task awaits, until ``deadline`` (the loop's time; None: no limit, or not set yet)."""

    __slots__ = ("deadline",)

    deadline: float | None

    def finish(self) -> None:
        """Resolve the future that the task awaits."""
        if not self.waiter.done():
            self.waiter.set_result(self)


class SingleCall(Call):
    """One operation; the task awaits its result."""

    __slots__ = ()

    def finish(self) -> None:
        if self.waiter.done():
            return
        try:
            self.waiter.set_result(self.result())
        except KvdError as error:
            self.waiter.set_exception(error)


class AsyncConnection:
    """One loop's connection, opened when it is needed."""

    def __init__(self, settings: ClientSettings, near_cache: NearCache | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self._settings = settings
        self._near_cache = near_cache
        self._store_view = StoreView()
        self._queue: list[Call] = []
        self._flush_scheduled = False
        self._stream: AsyncStream | None = None
        self._opening: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ for the client

    def call(self, call: Call) -> asyncio.Future[Any]:
        """Send ``call`` together with all others of this turn of the loop; return the future of its result."""
        future = call.waiter = self.loop.create_future()
        call.deadline = None  # set at the end of the turn, for all calls of the turn
        self._queue.append(call)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush)
        return future

    @property
    def protocol(self) -> ClientProtocol | None:
        """The protocol of the connection that is open now."""
        return None if self._stream is None else self._stream.protocol

    async def close(self) -> None:
        """Close the connection. Calls under way end with ConnectionLost; the next call opens another connection."""
        for call in self._under_way():
            call.closed()
            call.finish()
        self._queue.clear()
        if self._opening is not None:
            self._opening.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        stream, self._stream = self._stream, None
        if stream is not None:
            self._detach_near_cache(stream.protocol)
            stream.transport.close()
            await stream.ended.wait()

    # ------------------------------------------------------------------ sending

    def _flush(self) -> None:
        """Send the calls of a turn of the loop, at its end."""
        self._flush_scheduled = False
        if self._settings.timeout is not None:
            deadline = self.loop.time() + self._settings.timeout
            for call in reversed(self._queue):
                if call.deadline is not None:
                    break  # it waits for a connection since an earlier turn, as do all calls before it
                call.deadline = deadline
            if self._timer is None and self._queue:
                self._timer = self.loop.call_at(deadline, self._time_out)
        stream = self._stream
        if stream is not None and stream.is_writable:
            queue, self._queue = self._queue, []
            self._transmit(stream, [call for call in queue if not call.waiter.done()])
        elif self._opening is None and stream is None and self._queue:
            self._opening = self.loop.create_task(self._open())

    def _transmit(self, stream: AsyncStream, calls: list[Call]) -> None:
        """Send calls in as few frames as they fit into."""
        at = 0
        store_id = stream.protocol.store_id
        max_requests = min(MAX_REQUESTS, stream.protocol.limits.get("max_requests_per_frame", MAX_REQUESTS))
        while at < len(calls):
            frame: list[Call] = []
            size = 0
            for call in calls[at:]:
                if frame and size + call.size > max_requests:
                    break
                at += 1
                if call.store_id is not None and call.store_id != store_id:
                    call.store_changed()
                    call.finish()
                    continue
                frame.append(call)
                size += call.size
            if frame:
                self._transmit_frame(stream, frame)

    def _transmit_frame(self, stream: AsyncStream, frame: list[Call]) -> None:
        protocol = stream.protocol
        try:
            data = protocol.encode(frame)
            if len(data) > MAX_BYTES and len(frame) > 1:
                raise ValueError("too much for one frame")
        except Exception as error:  # a program's value may fail to encode in any way
            if len(frame) > 1:
                half = len(frame) // 2
                self._transmit_frame(stream, frame[:half])
                self._transmit_frame(stream, frame[half:])
            elif isinstance(error, KvdError):
                frame[0].refused(error)
                frame[0].finish()
            elif not frame[0].waiter.done():
                frame[0].waiter.set_exception(error)
            return
        protocol.pending.append(frame)
        stream.transport.write(data)

    # ------------------------------------------------------------------ replies, and the end of the connection

    def answered(self, stream: AsyncStream, frames: Sequence[tuple[Any, object]]) -> None:
        """Take frames with their replies."""
        again: list[Call] = []
        for frame, reply in frames:
            if type(reply) is dict and len(frame) > 1:
                # The daemon refused one of the calls, and so the whole frame, and ran none. Send each of them alone.
                for call in frame:
                    if not call.waiter.done():
                        self._transmit_frame(stream, [call])
                continue
            dispatch(frame, reply)
            for call in frame:
                if call.done:
                    call.finish()
                else:
                    again.append(call)
        self._send_again(again)

    def lost(self, stream: AsyncStream, reason: str) -> None:
        """Send the calls of an ended connection again, or end them."""
        if self._stream is stream:
            self._stream = None
        self._detach_near_cache(stream.protocol)
        again: list[Call] = []
        for frame in stream.protocol.pending:
            for call in frame:
                assert isinstance(call, Call)
                if call.waiter.done():
                    continue
                if stream.failure is not None:
                    call.protocol_broken(stream.failure)
                elif not stream.protocol.shutting_down:
                    call.lost(stream.address, reason, fresh=not stream.has_answered)
                if call.done:
                    call.finish()
                else:
                    again.append(call)
        stream.protocol.pending.clear()
        self._send_again(again)

    def resume(self) -> None:
        """Send the queued calls: the stream is writable again."""
        self._send_again([])

    def _send_again(self, calls: list[Call]) -> None:
        if calls or self._queue:
            self._queue[:0] = calls  # they are the oldest
            if not self._flush_scheduled:
                self._flush_scheduled = True
                self.loop.call_soon(self._flush)

    def _under_way(self) -> list[Call]:
        stream = self._stream
        frames = () if stream is None else stream.protocol.pending
        sent = [call for frame in frames for call in frame if isinstance(call, Call)]
        return [call for call in (*sent, *self._queue) if not call.waiter.done()]

    def _time_out(self) -> None:
        """End the calls that are past their deadline; set the timer for the next one."""
        self._timer = None
        now, stream = self.loop.time(), self._stream
        waiting = self._under_way()
        late = [call for call in waiting if call.deadline is not None and call.deadline <= now]
        address = (stream.address if stream is not None else self._settings.address) or "the daemon"
        sent = {id(call) for frame in stream.protocol.pending for call in frame} if stream is not None else set()
        for call in late:
            call.timed_out(address, self._settings.timeout, sent=id(call) in sent)
            call.finish()
        if stream is not None and late:
            stream.on_timeout()
        deadlines = [call.deadline for call in waiting if not call.done and call.deadline is not None]
        if deadlines:
            self._timer = self.loop.call_at(min(deadlines), self._time_out)

    # ------------------------------------------------------------------ the connection

    async def _open(self) -> None:
        """Connect, and send the queued calls, or end them with the reason why there is no connection."""
        deadline = Deadline(self._settings.timeout)
        try:
            while self._stream is None:
                try:
                    self._stream = await self._connect()
                except Stopping:  # the daemon's successor may answer
                    if deadline.is_over:
                        raise
                    await asyncio.sleep(STOPPING_PAUSE_S)
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

    async def _connect(self) -> AsyncStream:
        """Return a stream on which the daemon has answered hello. Raises Unavailable and the like."""
        settings = self._settings
        # The blocking client's code finds the daemon and connects; in a thread, because name servers may be slow.
        protocol = ClientProtocol(settings.codec, self._store_view)
        blocking_stream = await self.loop.run_in_executor(None, self._open_blocking, protocol)
        address = blocking_stream.address
        descriptor, is_unix = blocking_stream.detach()
        connected = socket.socket(fileno=descriptor)
        connected.setblocking(False)
        if not protocol.hello_sent and not address.startswith("tls://"):
            await greet(connected, address, protocol, settings)
        stream = AsyncStream(self, protocol, address)
        create: Any = self.loop.create_unix_connection if is_unix else self.loop.create_connection
        try:
            async with asyncio.timeout(settings.timeout):
                await create(lambda: stream, sock=connected, **tls_options(address, settings.tls))
        except TimeoutError:
            raise Unavailable(f"no answer from {address} in time", [address]) from None
        except OSError as error:  # of TLS
            raise Unavailable(f"no daemon at {address} ({error.strerror or error})", [address]) from None
        try:
            if not protocol.hello_sent:
                stream.transport.write(protocol.hello(settings.token_for(address)))
            elif protocol.store_id is not None:
                stream.greeted.set()
            async with asyncio.timeout(settings.timeout):
                await stream.greeted.wait()
        except TimeoutError:
            stream.transport.abort()
            raise Unavailable(f"no answer from {address} in time", [address]) from None
        except BaseException:
            stream.transport.abort()
            raise
        if protocol.refusal is not None or stream.failure is not None:
            stream.transport.abort()
            raise protocol.refusal or stream.failure or AssertionError
        if protocol.shutting_down:
            raise Stopping(f"{address} is stopping", [address])
        if protocol.store_id is None or stream.transport.is_closing():
            raise Unavailable(f"{address} closed the connection", [address])
        if self._near_cache is not None:
            self._near_cache.attach(protocol)
        return stream

    def _open_blocking(self, protocol: ClientProtocol) -> Stream:
        """Connect, and attach the near cache, if the client has one. Raises Unavailable and the like."""
        deadline = Deadline(self._settings.timeout)
        stream = open_home(self._settings, deadline, shake_hands=False)
        if self._near_cache is not None:
            from kv.near_cache.attach import attach

            attach(self._near_cache, stream, protocol, deadline)
        return stream

    def _detach_near_cache(self, protocol: ClientProtocol) -> None:
        """Forget the near cache's entries of this connection: the server notes their changes no longer."""
        if self._near_cache is not None:
            self._near_cache.detach(protocol)
