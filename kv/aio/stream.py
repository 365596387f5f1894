"""The asyncio client's stream: one connection as the event loop sees it, with or without TLS."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from kv.errors import ProtocolError, Stopping, Unavailable
from kvd.protocol.address import is_network, parse_tcp

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from kv.blocking.tls import TlsFiles
    from kv.settings import ClientSettings
    from kv.wire.protocol import ClientProtocol, Frame

    class Owner(Protocol):
        """What a stream reports to: an AsyncConnection."""

        def answered(self, stream: AsyncStream, frames: Sequence[tuple[Any, object]]) -> None: ...
        def lost(self, stream: AsyncStream, reason: str) -> None: ...
        def resume(self) -> None: ...


_HELLO_BYTES = 4096


def tls_options(address: str, tls: TlsFiles | None) -> dict[str, Any]:
    """Return the options with which asyncio makes the TLS handshake. Raises KvdError."""
    if not address.startswith("tls://"):
        return {}
    from kv.blocking.tls import context

    host, _ = parse_tcp(address) or ("", 0)
    return {"ssl": context(tls), "server_hostname": host}


async def greet(connected: socket.socket, address: str, protocol: ClientProtocol, settings: ClientSettings) -> None:
    """Say hello on a new socket without TLS, and take the answer. Closes the socket if it raises. Raises KvdError.

    Not by a transport, which would close the socket at the first write that fails: a daemon that is stopping says
    goodbye and closes at once, and its goodbye can still be read.
    """
    try:
        async with asyncio.timeout(settings.timeout):
            await _say_hello(connected, protocol, settings.token_for(address))
        if protocol.refusal is not None:
            raise protocol.refusal
        if protocol.shutting_down:
            raise Stopping(f"{address} is stopping", [address])
    except TimeoutError:
        connected.close()
        raise Unavailable(f"no answer from {address} in time", [address]) from None
    except (OSError, EOFError) as error:
        connected.close()
        raise Unavailable(f"{address} closed the connection", [address]) from error
    except BaseException:
        connected.close()
        raise


async def _say_hello(connected: socket.socket, protocol: ClientProtocol, token: str | None) -> None:
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(connected, protocol.hello(token))
    except ConnectionError:
        pass  # what the daemon said before it closed comes now
    while protocol.store_id is None and protocol.refusal is None and not protocol.shutting_down:
        data = await loop.sock_recv(connected, _HELLO_BYTES)
        if not data:
            raise EOFError
        protocol.receive(data, [])


class AsyncStream(asyncio.Protocol):
    """One connection, as the event loop sees it."""

    transport: asyncio.Transport

    def __init__(self, owner: Owner, protocol: ClientProtocol, address: str) -> None:
        self._owner = owner
        self.protocol = protocol
        self.address = address
        self.greeted = asyncio.Event()
        self.ended = asyncio.Event()
        self.has_answered = False  # whether the daemon has answered any frame but hello
        self.failure: ProtocolError | None = None
        self.is_writable = True
        self._silent = False  # whether the daemon has sent nothing since a call timed out

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        _open_streams.add(self)

    def data_received(self, data: bytes) -> None:
        self._silent = False
        answered: list[tuple[Frame, Any]] = []
        failure = None
        try:
            self.protocol.receive(data, answered)
        except ProtocolError as error:
            failure = error
        if not self.greeted.is_set() and (self.protocol.store_id is not None or self.protocol.refusal is not None):
            self.greeted.set()
        if answered:
            self.has_answered = True
            self._owner.answered(self, answered)
        if failure is not None or self.protocol.shutting_down:
            self._give_up(failure)

    def _give_up(self, failure: ProtocolError | None) -> None:
        """Close the connection; its calls are sent again, or end with ``failure``."""
        self.failure = failure
        self.transport.abort()
        self.greeted.set()
        self._owner.lost(self, "")

    def on_timeout(self) -> None:
        """Note that calls have timed out. A Unix socket always reports its end; on TCP the way may be gone."""
        if self._silent and is_network(self.address):
            self.transport.abort()
        self._silent = True

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self._owner.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        _open_streams.discard(self)
        self.greeted.set()
        self.ended.set()
        self._owner.lost(self, str(exc or ""))


# All streams of this process, for its forked children.
_open_streams: WeakSet[AsyncStream] = WeakSet()


def _close_all() -> None:
    """Release a forked child's copies of the connections, so that the daemon sees when the parent closes its own.

    The descriptors are not closed but redirected: the child has a copy of the parent's loop, which knows their numbers
    and must not close a file that the child opens under the same number.
    """
    for stream in list(_open_streams):
        descriptor = stream.transport.get_extra_info("socket").fileno()
        if descriptor >= 0:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, descriptor, inheritable=False)
            os.close(null)
    _open_streams.clear()


os.register_at_fork(after_in_child=_close_all)
