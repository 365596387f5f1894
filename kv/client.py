"""The blocking client: ``kv.connect()`` and what hangs on it."""

from __future__ import annotations

import os

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
LONGEST_TIMEOUT_S = 1_000_000_000  # the system's calls take about nine times that
_PAGE_KEYS = 1_000
# As many threads' connections are kept for their next calls.
_MOST_IDLE = 16


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
    call. Raises ValueError for an address or a timeout that cannot be one.
    """
    return Client(address, timeout=timeout, token_file=token_file, codec=codec)


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
        if timeout is not None and not 0 < timeout <= LONGEST_TIMEOUT_S:
            raise ValueError(f"a timeout is None or seconds above 0, at most {LONGEST_TIMEOUT_S}, not {timeout}")
        self._address = address
        self._timeout = timeout
        self._token_file = token_file
        self._codec = codec or full()
        # Connections that no call is using, by process id: a forked child finds none of its own and opens another. A
        # call takes one out, or opens one, and puts it back when it has its reply. So calls of several threads do not
        # meet, and one that is interrupted, wherever it is, leaves nothing behind that another could stumble over.
        self._idle: dict[int, list[Connection]] = {}

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
        idle = self._idle_connections()
        connection = self._take(idle, Deadline(self._timeout))
        pid = connection.server_pid()
        self._put_back(idle, connection)
        return pid

    def wait_for_end(self, timeout: float | None) -> bool:
        """Wait until the daemon closes a connection of this client; whether it did within ``timeout`` seconds."""
        idle = self._idle_connections()
        if not idle:
            return True
        connection = idle.pop()
        try:
            connection.wait_for_end(Deadline(timeout))
        except TimeoutError:
            return False
        finally:
            connection.close()
        return True

    def close(self) -> None:
        """Close this process's connections. The next call opens another."""
        idle = self._idle_connections()
        while idle:
            idle.pop().close()

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
        idle, deadline = self._idle_connections(), Deadline(self._timeout)
        while (reply := self._exchange(idle, data, deadline, operation.writing)) is None:
            pass
        if isinstance(reply[0], dict):
            raise from_reply(reply[0])
        try:
            return operation.read(reply[0])
        except (ValueError, TypeError, IndexError) as error:
            raise ProtocolError(f"the daemon's reply has an unexpected form: {error}", "bad_reply") from error

    def _exchange(self, idle: list[Connection], data: bytes, deadline: Deadline, writing: bool) -> list[Any] | None:
        """One try at a frame; its reply in a list, or None if it certainly did not run and should be sent again."""
        was_idle = bool(idle)
        connection = self._take(idle, deadline)
        sent = False
        try:
            sent = connection.send(data, deadline)
            reply = self._decode(connection.receive(deadline))
            if not sent and not isinstance(reply, dict):
                raise EOFError  # an answer to what was not asked
        except TimeoutError:
            connection.close()
            text = f"no answer from {connection.address} within {deadline.seconds:g} s"
            raise TimedOut(text, writing=sent and writing) from None
        except (OSError, EOFError) as error:
            connection.close()
            # A frame that was not sent whole did not run. A read may as well run twice.
            if was_idle and not (sent and writing):
                return None
            text = f"the connection to {connection.address} broke"
            raise ConnectionLost(f"{text}: {error}" if str(error) else text, writing=sent and writing) from None
        except BaseException:
            # Whatever interrupted us, the reply is still to come: the stream must not be used for another request.
            connection.close()
            raise
        if isinstance(reply, list) and len(reply) == 1:
            self._put_back(idle, connection)
            return reply
        connection.close()
        if not isinstance(reply, dict):
            raise ProtocolError("the daemon's reply is not one of kvd's protocol", "bad_reply")
        if reply.get("error") != "shutting_down":
            raise from_reply(reply)
        return None

    def _take(self, idle: list[Connection], deadline: Deadline) -> Connection:
        """An idle connection, or a new one."""
        try:
            return idle.pop()
        except IndexError:  # none, or another thread was quicker
            pass
        connection = open_connection(self._address, deadline)
        try:
            if connection.address.startswith("tcp://"):
                self._greet(connection, deadline)
        except BaseException:
            connection.close()
            raise
        return connection

    def _put_back(self, idle: list[Connection], connection: Connection) -> None:
        if len(idle) < _MOST_IDLE:
            idle.append(connection)
        else:
            connection.close()

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

    def _idle_connections(self) -> list[Connection]:
        """Those of this process."""
        pid = os.getpid()
        idle = self._idle.get(pid)
        if idle is None:
            idle = self._idle.setdefault(pid, [])
            for other in [other for other in self._idle if other != pid]:
                # A parent's: give the descriptors back; the streams themselves stay the parent's.
                for connection in self._idle.pop(other, ()):
                    connection.close()
        return idle


def _binary(value: bytes) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"a value is bytes, not {type(value).__name__}; encode text first, as in value.encode()")
