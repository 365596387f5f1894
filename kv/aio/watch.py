"""The asyncio client's watches: the feed of ``kv/api/watches.py`` on a connection of its own."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import TYPE_CHECKING, Self

from kv.aio.stream import greet, tls_options
from kv.api.watches import FIRST_PAUSE_S, MAX_PAUSE_S, WatchState
from kv.blocking.stream import STOPPING_PAUSE_S, Deadline, open_home
from kv.errors import ConnectionLost, KvdError, Stopping, Unavailable
from kv.methods import Asynchronous
from kv.wire.protocol import ClientProtocol, StoreView

if TYPE_CHECKING:
    from types import TracebackType

    from kv.results import Change

_READ_BYTES = 256 * 1024


class AsyncWatch(WatchState, Asynchronous):
    """As Watch, with ``async for``; ``await watch.wait(timeout)`` for one change."""

    _reader: asyncio.StreamReader | None = None
    _writer: asyncio.StreamWriter | None = None
    _protocol: ClientProtocol | None = None
    _has_begun = False
    _reopen_deadline: Deadline | None = None  # until when the daemon may come back, over all waits

    async def wait(self, timeout: float | None = None) -> Change | None:  # as the blocking one
        """Return the next change; None if none comes within ``timeout`` seconds (None: no limit), or after close()."""
        self._check_process()
        if (change := self._feed.hand_out()) is not None:
            return change
        try:
            async with asyncio.timeout(timeout):
                while (change := self._feed.hand_out()) is None and not self._closed:
                    await self._receive()
        except TimeoutError:
            return None
        return change

    def abandon(self) -> None:
        """Close the connection without waiting for its end."""
        self._closed = True
        if self._writer is not None and not self._forked:
            self._writer.transport.abort()

    async def close(self) -> None:
        """End the watch."""
        self.abandon()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        change = await self.wait()
        if change is None:
            raise StopAsyncIteration
        return change

    async def __aenter__(self) -> Self:
        self._check_process()
        if self._reader is None:
            try:
                await self._begin()
            except BaseException:
                self.abandon()
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------------------------ the connection

    async def _receive(self) -> None:
        if self._reader is None or self._protocol is None:
            await (self._reopen() if self._has_begun else self._begin())
            return
        try:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                raise EOFError
            self._feed.receive(self._protocol, data)
        except (OSError, EOFError, Unavailable):
            self._reader = None  # what came before the end is handed out first; then the next call reopens

    async def _begin(self) -> None:
        """Connect for the first time, once no daemon that is stopping answers. Raises KvdError."""
        deadline = Deadline(self._settings.timeout)
        while not self._has_begun:
            try:
                await self._open()
            except Stopping:
                if deadline.is_over:
                    raise
                await asyncio.sleep(STOPPING_PAUSE_S)

    async def _reopen(self) -> None:
        """Connect again, for as long as the client's timeout."""
        reopen_deadline = self._reopen_deadline = self._reopen_deadline or Deadline(self._settings.timeout)
        pause_s = FIRST_PAUSE_S
        while True:
            self._reader = None  # if this is cancelled, the next wait continues here
            try:
                await self._open()
            except KvdError as error:
                if not error.retryable or reopen_deadline.is_over:
                    raise
            else:
                self._reopen_deadline = None
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _open(self) -> None:
        """Connect, and request the feed. Raises KvdError."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        if self._writer is not None:
            self._writer.transport.abort()
        open_blocking = partial(open_home, settings, Deadline(settings.timeout), shake_hands=False)
        stream = await loop.run_in_executor(None, open_blocking)
        address = stream.address
        descriptor, is_unix = stream.detach()
        connect = asyncio.open_unix_connection if is_unix else asyncio.open_connection
        connected = socket.socket(fileno=descriptor)
        connected.setblocking(False)
        protocol = self._protocol = ClientProtocol(settings.codec, StoreView())
        if not address.startswith("tls://"):
            await greet(connected, address, protocol, settings)
        try:
            async with asyncio.timeout(settings.timeout):
                options = tls_options(address, settings.tls)
                reader, self._writer = await connect(sock=connected, **options)
        except OSError as error:  # of TLS, or a TimeoutError
            raise Unavailable(f"no daemon at {address} ({error.strerror or error})", [address]) from None
        try:
            async with asyncio.timeout(settings.timeout):
                await self._request(reader, self._writer, protocol, settings.token_for(address))
        except TimeoutError:
            raise Unavailable(f"no answer from {address} in time", [address]) from None
        except (OSError, EOFError) as error:
            raise ConnectionLost(f"{address} closed the connection: {error}", writing=False) from error
        self._reader = reader
        self._has_begun = True

    async def _request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: ClientProtocol, token: str | None
    ) -> None:
        opening = self._feed.opening(protocol, token)
        try:
            output = next(opening)
            while True:
                if output:
                    writer.write(output)
                    output = next(opening)
                else:
                    data = await reader.read(_READ_BYTES)
                    if not data:
                        raise EOFError
                    output = opening.send(data)
        except StopIteration:
            return
