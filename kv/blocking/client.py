"""The client for programs that block: its scopes, its connections, and how its methods do what they do."""

from __future__ import annotations

import os

from kv.blocking.connection import Connection
from kv.blocking.stream import Deadline
from kv.methods import Api, Blocking
from kv.settings import DEFAULT_TIMEOUT_S, ClientSettings
from kv.wire.exchange import Exchange
from kv.wire.operations import text, watch

TYPE_CHECKING = False  # importing typing to ask it would cost the short-lived command 7 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta
    from types import TracebackType
    from typing import Any, Self, TypeVar

    from kv.api.locks import Lock
    from kv.api.pipeline import Pipeline
    from kv.api.procedures import Pages, Procedure
    from kv.api.snapshots import Snapshot
    from kv.api.transactions import Transaction
    from kv.blocking.mirror import Mirror
    from kv.blocking.tls import TlsFiles
    from kv.blocking.watch import Watch
    from kv.near_cache.cache import NearCache
    from kv.wire.codecs import Codec
    from kv.wire.operations import Operation
    from kv.wire.protocol import ClientProtocol

    T = TypeVar("T")


class Client(Api, Blocking):
    """A daemon, over one connection. Threads may share a client; a forked child opens its own connection.

    Every method raises a KvdError: Unavailable if no daemon can be reached, Refused and its kinds for an error that the
    daemon answered, ConnectionLost if the connection broke during a read, CommitUnknown if it broke during a write and
    the client could not find out whether the write was made, TimedOut if there was no answer in time. ``retryable`` and
    ``maybe_committed`` say what the caller may conclude. ``settings`` are those that the client was made with.
    """

    near_cache: NearCache | None = None

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        token_file: str | None = None,
        codec: Codec | None = None,
        busy_poll_us: int = 0,
        tls: TlsFiles | None = None,
    ) -> None:
        self.settings = ClientSettings(
            address, timeout=timeout, token_file=token_file, codec=codec, busy_poll_us=busy_poll_us, tls=tls
        )
        self._is_program = codec is None  # rather than the short-lived command
        # By process id: a forked child finds none of its own, whatever a thread of its parent was doing.
        self._connections: dict[int, Connection] = {}

    # ------------------------------------------------------------------ several requests

    def pipeline(self) -> Pipeline:
        """Collect calls, and send them in one frame when the ``with`` block ends; each has its result then."""
        from kv.api.pipeline import Pipeline

        return Pipeline(self)

    def snapshot(self) -> Snapshot:
        """The store as it is now, readable until the ``with`` block ends (or for 30 s without a read)."""
        from kv.api.snapshots import Snapshot

        return Snapshot(self)

    def at(self, version: int) -> Snapshot:
        """The store as it was at ``version``, for as long as the history reaches back to it."""
        from kv.api.snapshots import Snapshot

        return Snapshot(self, version)

    def transaction(
        self,
        *,
        ttl: float | timedelta | None = None,
        keep_ttl: bool = False,
        ephemeral: bool = False,
        sync: bool | None = None,
    ) -> Transaction:
        """Reads of one instant, and writes that are all made if nothing that was read has changed by then.

        Commits when the ``with`` block ends, and raises Conflict there. ``run()`` tries again by itself.
        """
        from kv.api.transactions import Transaction

        return Transaction(self, ttl=ttl, keep_ttl=keep_ttl, ephemeral=ephemeral, sync=sync)

    def run(self, function: Callable[[Transaction], T], *, attempts: int = 20, sync: bool | None = None) -> T:
        """Call ``function`` with a transaction, commit the transaction, and return the function's result.

        Calls it again after each conflict, ``attempts`` times in all, with longer and longer pauses of random length.
        So the function must do nothing else that cannot be done twice. Raises the last Conflict. CommitUnknown is never
        tried again.
        """
        from kv.api.transactions import Transaction, run

        result: T = self._run_steps(run(lambda: Transaction(self, sync=sync), function, attempts))
        return result

    def watch(self, prefix: str = "", since: int | None = None) -> Watch:
        """Each commit to keys with ``prefix``, after version ``since`` or from now on.

        A watch has a connection of its own, until it is closed or its ``with`` block ends.
        """
        from kv.blocking.watch import Watch

        watch(prefix, since)  # raises for what cannot be asked
        return Watch(self.settings, prefix, since)

    def mirror(self, prefix: str = "") -> Mirror:
        """The keys that begin with ``prefix`` as a read-only mapping in this process, kept current by a watch.

        Reads cost no round trip, and may be a little out of date; ``wait_for(version)`` waits until they are not. For
        data that is read much more often than it changes, and is small enough to hold: configuration, membership.
        """
        from kv.blocking.mirror import Mirror

        return Mirror(self.settings, self.log, self.version, text(prefix, "a prefix"))

    def lock(
        self,
        name: str,
        *,
        ttl: float | timedelta | None = None,
        timeout: float | None = None,
        prefix: str = "lock/",
    ) -> Lock:
        """A lock with one holder at a time, in the order of asking: ``with db.lock(name) as token:``.

        ``ttl``: the holder loses the lock after this time. ``timeout``: seconds to wait for the lock, then TimedOut.
        ``token`` rises from holder to holder: a service that sees a lower token than before knows that its sender has
        lost the lock.
        """
        from kv.api.locks import Lock

        return Lock(self, name, ttl=ttl, timeout=timeout, prefix=prefix)

    def cached(
        self,
        key: str,
        make: Callable[[], bytes],
        *,
        ttl: float | timedelta | None = None,
        timeout: float | None = None,
        decode: Callable[[bytes], Any] | None = None,
    ) -> Any:  # noqa: ANN401  # bytes, or what decode returns
        """Return the value of ``key``; if it has none, what ``make`` returns, which is then stored for ``ttl``.

        Of all callers that want the value at one time, in any process, one makes it and the others wait. If that one
        fails or dies, the next takes over. Raises what ``make`` raises, and TimedOut if there is no value within
        ``timeout`` seconds.

        ``decode``: return the object that it makes of the value. With a near cache that object is kept beside the
        value, and returned again for as long as the value is current: do not change it.
        """
        value = self.get(key)
        if value is None:
            from kv.api.cached import make_once

            value = self._run_steps(make_once(self, key, make, ttl, timeout))
        return value if decode is None else self._decode(key, value, decode)

    def _decode(self, key: str, value: bytes, decode: Callable[[bytes], T]) -> T:
        return decode(value)

    # ------------------------------------------------------------------ the connection

    def server_pid(self) -> int | None:
        """Return the daemon's process id, which the kernel knows; None on TCP, or from another pid namespace."""
        return self._current_connection().stream(Deadline(self.settings.timeout)).server_pid()

    def wait_for_end(self, timeout: float | None) -> bool:
        """Wait until the daemon closes this client's connection; whether it did within ``timeout`` seconds."""
        stream = self._current_connection().take_stream()
        if stream is None:
            return True
        try:
            stream.wait_for_end(Deadline(timeout))
        except TimeoutError:
            return False
        finally:
            stream.close()
        return True

    def close(self) -> None:
        """Close this process's connection. The next call opens another."""
        self._current_connection().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ how methods do what they do

    def _call(self, operation: Operation[T]) -> T:
        exchange = Exchange((operation,))
        self._current_connection().deliver(exchange, Deadline(self.settings.timeout))
        result: T = exchange.result()
        return result

    def _run_steps(self, steps: Procedure[T]) -> T:
        from kv.api.procedures import run_effects

        return run_effects(steps, self._do)

    def _iterate(self, steps: Pages[T]) -> Iterator[T]:
        from kv.api.procedures import iterate

        return iterate(steps, self._do)

    def _do(self, step: object) -> Any:  # noqa: ANN401
        """Do one step of a procedure; return what it results in."""
        if isinstance(step, Exchange):
            self._current_connection().deliver(step, Deadline(self.settings.timeout))
            return step
        from kv.blocking.steps import do_step

        return do_step(step)

    def _current_protocol(self) -> ClientProtocol | None:
        """The protocol of the connection that is open now."""
        return self._current_connection().protocol

    def _current_connection(self) -> Connection:
        """Return this process's connection, open or not."""
        pid = os.getpid()
        connection = self._connections.get(pid)
        if connection is None:
            if self._is_program:
                from kv.loading import load_all

                load_all(self.settings.address)
            connection = self._connections.setdefault(pid, Connection(self.settings, self.near_cache))
            for other in [other for other in self._connections if other != pid]:
                self._connections.pop(other, None)  # the parent's; its descriptor was closed at the fork
        return connection
