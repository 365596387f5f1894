"""The asyncio client's watches; what they are told is ``watches.py``'s business."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import TYPE_CHECKING, Self

from kv.aio.connection import tls_options
from kv.api.methods import Asynchronous
from kv.blocking.stream import Deadline, open_connection
from kv.blocking.watch import FIRST_PAUSE_S, MAX_PAUSE_S, WatchState, over
from kv.errors import ConnectionLost, KvdError, Unavailable
from kv.wire.exchange import StoreView
from kv.wire.protocol import ClientProtocol

if TYPE_CHECKING:
    from types import TracebackType

    from kv.results import Change

_READ_BYTES = 256 * 1024


class AsyncWatch(WatchState, Asynchronous):
    """As Watch, with ``async for``; ``await watch.wait(timeout)`` for one change."""

    _reader: asyncio.StreamReader | None = None
    _writer: asyncio.StreamWriter | None = None
    _channel: ClientProtocol | None = None

    async def wait(self, timeout: float | None = None) -> Change | None:  # as the blocking one
        """The next change; None if there is none within ``timeout`` seconds (None: wait for ever), or it was closed."""
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
        """Close the connection without waiting for it."""
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
            await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------------------------ the connection

    async def _receive(self) -> None:
        if self._reader is None or self._channel is None:
            await (self._open() if self._patience is None else self._reopen())
            return
        try:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                raise EOFError
            self._feed.receive(self._channel, data)
        except (OSError, EOFError, Unavailable):
            if not self._closed:
                await self._reopen()

    async def _reopen(self) -> None:
        """Connect again, for as long as the client's timeout."""
        patience = self._patience = self._patience or Deadline(self._client._timeout)
        pause_s = FIRST_PAUSE_S
        while True:
            self._reader = None  # cancelled in here, the next wait goes on with it
            try:
                await self._open()
            except KvdError as error:
                if not error.retryable or over(patience):
                    raise
            else:
                self._patience = None
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def _open(self) -> None:
        """Connect, and ask for the feed. Raises KvdError."""
        client = self._client
        loop = asyncio.get_running_loop()
        if self._writer is not None:
            self._writer.transport.abort()
        opened = partial(open_connection, client._address, Deadline(client._timeout), shake_hands=False)
        found = await loop.run_in_executor(None, opened)
        address = found.address
        descriptor, unix = found.detach()
        connect = asyncio.open_unix_connection if unix else asyncio.open_connection
        connected = socket.socket(fileno=descriptor)
        try:
            async with asyncio.timeout(client._timeout):
                options = tls_options(address, client._tls)
                reader, self._writer = await connect(sock=connected, **options)
        except OSError as error:  # of TLS, or the time was over
            raise Unavailable(f"no daemon at {address} ({error.strerror or error})", [address]) from None
        channel = self._channel = ClientProtocol(client._codec, StoreView())
        try:
            async with asyncio.timeout(client._timeout):
                await self._begin(reader, self._writer, channel, client._token_for(address))
        except TimeoutError:
            raise Unavailable(f"no answer from {address} in time", [address]) from None
        except (OSError, EOFError) as error:
            raise ConnectionLost(f"{address} closed the connection: {error}", writing=False) from error
        self._reader = reader

    async def _begin(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, channel: ClientProtocol, token: str | None
    ) -> None:
        opening = self._feed.opening(channel, token)
        try:
            sent = next(opening)
            while True:
                if sent:
                    writer.write(sent)
                    sent = next(opening)
                else:
                    data = await reader.read(_READ_BYTES)
                    if not data:
                        raise EOFError
                    sent = opening.send(data)
        except StopIteration:
            return
