"""The blocking client: ``kv.connect()`` and what hangs on it."""

from __future__ import annotations

import os
from _thread import allocate_lock

from kv import operations
from kv.codecs import full
from kv.connection import Deadline, open_connection
from kv.errors import ConnectionLost, KvdError, ProtocolError, TimedOut, Unavailable, from_reply
from kv.operations import Item, Operation, prefix_end
from kvd.protocol.address import parse_tcp

TYPE_CHECKING = False  # importing typing to ask it would cost the short-lived command 7 ms
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Any, Self

    from kv.codecs import Codec
    from kv.connection import Connection

DEFAULT_TIMEOUT_S = 5.0
_PAGE_KEYS = 1_000


def connect(
    address: str | None = None,
    *,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    token_file: str | None = None,
    codec: Codec | None = None,
) -> Client:
    """A client of the daemon at ``address``: a socket's path or ``tcp://HOST:PORT``.

    None means ``$KVD_SOCKET``, else the user's own daemon, else the system's. ``timeout`` is in seconds for each
    call (None: wait for ever). ``token_file`` holds what a TCP listener asks for. Nothing is opened before the first
    call. Raises ValueError for an address that cannot be one.
    """
    return Client(address, timeout=timeout, token_file=token_file, codec=codec)


class _Line:
    """What one process has of a client: a connection, and the lock that gives it to one thread at a time."""

    __slots__ = ("connection", "lock")

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.connection: Connection | None = None


class Client:
    """A daemon, seen from a program. Safe to share between threads, and to go on using in a forked child.

    Keys are strings of 1 byte to 4 KiB of UTF-8, values bytes. Every method raises a KvdError: Unavailable if no
    daemon can be reached, Refused and its kinds for what the daemon answered, ConnectionLost or TimedOut if it is
    not known what the daemon did; ``retryable`` and ``maybe_committed`` tell what may be concluded.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        token_file: str | None = None,
        codec: Codec | None = None,
    ) -> None:
        if address is not None:
            parse_tcp(address)
        self._address = address
        self._timeout = timeout
        self._token_file = token_file
        self._codec = codec or full()
        # By process id: a forked child finds none of its own and begins anew, on a connection of its own.
        self._lines: dict[int, _Line] = {}

    # ------------------------------------------------------------------ keys and values

    def get(self, key: str) -> bytes | None:
        """The value of ``key``, or None if there is no such key."""
        value: bytes | None = self._call(operations.get(key))
        return value

    def get_many(self, keys: Iterable[str], *, at: int | None = None) -> dict[str, bytes | None]:
        """The values of ``keys``, all of one instant, None for absent ones; of version ``at`` if given.

        Raises SnapshotGone if ``at`` has left the history.
        """
        values: dict[str, bytes | None] = self._call(operations.get_many(list(keys), at))
        return values

    def set(self, key: str, value: bytes) -> int:
        """Store ``value`` under ``key``; the version of the commit."""
        return self.set_many({key: value})

    def set_many(self, entries: Mapping[str, bytes]) -> int:
        """Store all ``entries``, or none of them, in one commit; its version."""
        version: int = self._call(operations.set_many({key: _binary(value) for key, value in entries.items()}))
        return version

    def delete(self, *keys: str, missing_ok: bool = False) -> int:
        """Delete all ``keys`` in one commit; how many there were.

        Raises NotFound, with nothing deleted, if one does not exist, unless ``missing_ok``.
        """
        count: int = self._call(operations.delete(list(keys), missing_ok))
        return count

    def scan(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        at: int | None = None,
        keys_only: bool = False,
    ) -> Iterator[Item]:
        """The keys that begin with ``prefix``, or from ``start`` on and before ``end``, in order of their UTF-8 bytes.

        Fetched page by page while one iterates: of one instant only within a page, unless ``at`` names a version.
        """
        following: str | None = max(prefix, start or "")
        bounds = [bound for bound in (prefix_end(prefix), end) if bound is not None]
        stop = min(bounds, default=None)
        while following is not None and (limit is None or limit > 0):
            page = _PAGE_KEYS if limit is None else min(limit, _PAGE_KEYS)
            items, following = self._call(operations.scan(following, stop, page, at, keys_only))
            yield from items
            if limit is not None:
                limit -= len(items)

    # ------------------------------------------------------------------ the daemon

    def ping(self) -> None:
        """Return if the daemon answers."""
        self._call(operations.PING)

    def metrics(self) -> dict[str, int]:
        """The daemon's counters by name."""
        metrics: dict[str, int] = self._call(operations.METRICS)
        return metrics

    def status(self) -> dict[str, str | int]:
        """What the daemon tells about itself, by name."""
        status: dict[str, str | int] = self._call(operations.STATUS)
        return status

    def reload(self) -> list[str]:
        """Have the daemon read its configuration again; what changed, in words. Raises Forbidden, Refused."""
        changes: list[str] = self._call(operations.RELOAD)
        return changes

    def shutdown(self) -> int:
        """Have the daemon stop in order; its process id. It may still run when this returns. Raises Forbidden."""
        pid: int = self._call(operations.SHUTDOWN)
        return pid

    def server_pid(self) -> int | None:
        """The daemon's process id by the kernel's word; None on TCP, or from another pid namespace."""
        line = self._line()
        with _Held(line, Deadline(self._timeout)) as deadline:
            return self._connected(line, deadline).server_pid()

    def wait_for_end(self, timeout: float | None) -> bool:
        """Wait until the daemon closes this client's connection; whether it did within ``timeout`` seconds."""
        line = self._line()
        if line.connection is None:
            return True
        try:
            line.connection.wait_for_end(Deadline(timeout))
        except TimeoutError:
            return False
        self._drop(line)
        return True

    def close(self) -> None:
        """Close this process's connection. The next call opens another."""
        self._drop(self._line())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ the way of a call

    def _call(self, operation: Operation) -> Any:  # noqa: ANN401  # each public method states its type
        """Send one request, and return its reply as the operation reads it."""
        payload = self._codec.encode([operation.request])
        data = len(payload).to_bytes(4, "big") + payload
        line = self._line()
        with _Held(line, Deadline(self._timeout)) as deadline:
            while True:
                reply = self._exchange(line, data, deadline, operation.writing)
                if reply is not None:
                    break
        if not isinstance(reply, list) or len(reply) != 1:
            self._drop(line)
            raise ProtocolError("the daemon's reply is not one of kvd's protocol", "bad_reply")
        if isinstance(reply[0], dict):
            raise from_reply(reply[0])
        try:
            return operation.read(reply[0])
        except (ValueError, TypeError, IndexError) as error:
            raise ProtocolError(f"the daemon's reply has an unexpected form: {error}", "bad_reply") from error

    def _exchange(self, line: _Line, data: bytes, deadline: Deadline, writing: bool) -> object:
        """One try at sending a frame; its reply, or None if it certainly did not run and should be sent again."""
        had_connection = line.connection is not None
        connection = self._connected(line, deadline)
        sent = False
        try:
            connection.send(data, deadline)
            sent = True
            reply = self._decode(connection.receive(deadline))
        except TimeoutError:
            self._drop(line)
            raise TimedOut(
                f"no answer from {connection.address} within {deadline.seconds:g} s", writing=sent and writing
            ) from None
        except (OSError, EOFError) as error:
            self._drop(line)
            # A frame that was not sent whole did not run. A read may as well run twice.
            if had_connection and not (sent and writing):
                return None
            text = f"the connection to {connection.address} broke"
            raise ConnectionLost(f"{text}: {error}" if str(error) else text, writing=sent and writing) from None
        except BaseException:
            # Whatever interrupted us, the reply is still to come: the stream must not be used for another request.
            self._drop(line)
            raise
        if isinstance(reply, dict):
            self._drop(line)
            if reply.get("error") != "shutting_down":
                raise from_reply(reply)
            return None
        return reply

    def _connected(self, line: _Line, deadline: Deadline) -> Connection:
        if line.connection is None:
            connection = open_connection(self._address, deadline)
            try:
                if connection.address.startswith("tcp://"):
                    self._greet(connection, deadline)
            except BaseException:
                connection.close()
                raise
            line.connection = connection
        return line.connection

    def _greet(self, connection: Connection, deadline: Deadline) -> None:
        """Say hello with the token: a TCP listener wants it first."""
        payload = self._codec.encode([operations.hello("kv", self._token()).request])
        try:
            connection.send(len(payload).to_bytes(4, "big") + payload, deadline)
            reply = self._decode(connection.receive(deadline))
        except TimeoutError:
            raise Unavailable(f"no answer from {connection.address} in time", [connection.address]) from None
        except (OSError, EOFError) as error:
            raise Unavailable(f"{connection.address} closed the connection", [connection.address]) from error
        answer = reply[0] if isinstance(reply, list) and reply else reply
        if isinstance(answer, dict):
            raise from_reply(answer)

    def _token(self) -> str | None:
        path = self._token_file or os.environ.get("KVD_TOKEN_FILE")
        if not path:
            return None
        try:
            with open(path, encoding="utf-8") as file:
                return file.read(4096).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise KvdError(f"cannot read the token file {path}: {error}", "token_file") from error

    def _decode(self, payload: bytes) -> object:
        try:
            return self._codec.decode(payload)
        except self._codec.errors as error:
            raise ProtocolError("the daemon's reply is not MessagePack", "bad_reply") from error

    # ------------------------------------------------------------------ processes and threads

    def _line(self) -> _Line:
        pid = os.getpid()
        line = self._lines.get(pid)
        if line is None:
            line = self._lines.setdefault(pid, _Line())
            for other in [other for other in self._lines if other != pid]:
                # A parent's: give the descriptor back; the stream itself stays the parent's.
                self._drop(self._lines.pop(other))
        return line

    def _drop(self, line: _Line) -> None:
        connection, line.connection = line.connection, None
        if connection is not None:
            connection.close()


class _Held:
    """Holds a line's lock, within a deadline."""

    __slots__ = ("_deadline", "_line")

    def __init__(self, line: _Line, deadline: Deadline) -> None:
        self._line = line
        self._deadline = deadline

    def __enter__(self) -> Deadline:
        left = self._deadline.left()
        if not self._line.lock.acquire(timeout=-1 if left is None else left):
            raise TimedOut("another thread of this process kept the connection busy", writing=False)
        return self._deadline

    def __exit__(self, *_: object) -> None:
        self._line.lock.release()


def _binary(value: bytes) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"a value is bytes, not {type(value).__name__}; encode text first, as in value.encode()")
