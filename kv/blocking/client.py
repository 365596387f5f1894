"""The blocking client: ``kv.connect()`` and what hangs on it."""

from __future__ import annotations

import os

from kv.api.methods import Api, Blocking
from kv.blocking.connection import Link
from kv.blocking.stream import MAX_BUSY_POLL_US, Deadline
from kv.errors import KvdError, LockLost
from kv.wire.codecs import full
from kv.wire.exchange import Exchange
from kv.wire.operations import binary
from kvd.protocol.address import is_network, parse_tcp

TYPE_CHECKING = False  # importing typing to ask it would cost the short-lived command 7 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta
    from types import TracebackType
    from typing import Any, Literal, Self, TypeVar, overload

    from kv.api.locks import Lock
    from kv.api.pipeline import Pipeline
    from kv.api.procedures import Pages, Procedure
    from kv.api.snapshots import Snapshot
    from kv.api.transactions import Transaction
    from kv.blocking.mirror import Mirror
    from kv.blocking.tls import TlsFiles
    from kv.blocking.watch import Watch
    from kv.near_cache.blocking import NearClient
    from kv.near_cache.cache import NearCache, NearCacheLimits
    from kv.wire.codecs import Codec
    from kv.wire.operations import Operation
    from kv.wire.protocol import ClientProtocol

    T = TypeVar("T")

DEFAULT_TIMEOUT_S = 5.0
MAX_TIMEOUT_S = 1_000_000_000  # the system's calls take about nine times that


if TYPE_CHECKING:

    @overload
    def connect(
        address: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        token_file: str | None = None,
        codec: Codec | None = None,
        near_cache: Literal[True] | NearCacheLimits,
        busy_poll_us: int = 0,
        tls: TlsFiles | None = None,
    ) -> NearClient: ...

    @overload
    def connect(
        address: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        token_file: str | None = None,
        codec: Codec | None = None,
        near_cache: bool | NearCacheLimits = False,
        busy_poll_us: int = 0,
        tls: TlsFiles | None = None,
    ) -> Client: ...


def connect(
    address: str | None = None,
    *,
    timeout: float | None = DEFAULT_TIMEOUT_S,
    token_file: str | None = None,
    codec: Codec | None = None,
    near_cache: bool | NearCacheLimits = False,
    busy_poll_us: int = 0,
    tls: TlsFiles | None = None,
) -> Client:
    """A client of the daemon at ``address``: a socket's path, ``tcp://HOST:PORT`` or ``tls://HOST:PORT``.

    None means ``$KVD_SOCKET``, else the user's own daemon, else the system's. ``timeout`` is in seconds for each
    call (None: wait for ever). ``token_file`` holds what a TCP listener asks for, ``tls`` whom to believe and who we
    are. ``near_cache``: keep what is read, and answer from it for as long as it is certainly current (Unix sockets
    only). ``busy_poll_us``: look for a reply so long before sleeping until it comes, which takes a processor and saves
    being woken (the daemon has an option of the same name). Nothing is opened before the first call. Raises ValueError
    for what cannot be an address, a timeout or a time to poll.
    """
    if near_cache:
        from kv.near_cache.blocking import NearClient

        limits = None if near_cache is True else near_cache
        return NearClient(
            address, timeout=timeout, token_file=token_file, codec=codec, busy_poll_us=busy_poll_us, limits=limits
        )
    return Client(address, timeout=timeout, token_file=token_file, codec=codec, busy_poll_us=busy_poll_us, tls=tls)


def check_address(address: str | None, timeout: float | None) -> None:
    """Raise ValueError for an address or a timeout that cannot be one."""
    if address is not None:
        parse_tcp(address)
    if timeout is not None and not 0 < timeout <= MAX_TIMEOUT_S:
        raise ValueError(f"a timeout is None or seconds above 0, at most {MAX_TIMEOUT_S}, not {timeout}")


def read_token(path: str | None) -> str | None:
    """What a TCP listener asks for, out of the file at ``path`` or ``$KVD_TOKEN_FILE``. Raises KvdError."""
    path = path or os.environ.get("KVD_TOKEN_FILE")
    if not path:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise KvdError(f"cannot read the token file {path}: {why}", "token_file") from error


class Client(Api, Blocking):
    """A daemon, seen from a program, by one connection. Threads may share it; a forked child opens its own connection.

    Every method raises a KvdError: Unavailable if no daemon can be reached, Refused and its kinds for what the daemon
    answered, ConnectionLost if the connection broke during a read, CommitUnknown if it did during a write and it could
    not be found out whether that was made, TimedOut if there was no answer in time. ``retryable`` and
    ``maybe_committed`` tell what may be concluded.
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
        check_address(address, timeout)
        if not 0 <= busy_poll_us <= MAX_BUSY_POLL_US:
            raise ValueError(f"busy_poll_us is 0 to {MAX_BUSY_POLL_US}, not {busy_poll_us}")
        self._address = address
        self._timeout = timeout
        self._token_file = token_file
        self._codec = codec or full()
        self._busy_poll_us = busy_poll_us
        self._tls = tls
        # By process id: a forked child finds none of its own, whatever a thread of its parent was doing.
        self._links: dict[int, Link] = {}

    # ------------------------------------------------------------------ several requests

    def pipeline(self) -> Pipeline:
        """Collects calls and sends them in one frame when its ``with`` block ends; each has its result then."""
        from kv.api.pipeline import Pipeline

        return Pipeline(self)

    def snapshot(self) -> Snapshot:
        """The store as it is now, readable until the ``with`` block ends (or nothing was read for 30 s)."""
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
        """Reads of one instant and writes that are all made, if nothing that was read has changed by then.

        Commits when its ``with`` block ends. Raises Conflict then; run() begins anew by itself.
        """
        from kv.api.transactions import Transaction

        return Transaction(self, ttl=ttl, keep_ttl=keep_ttl, ephemeral=ephemeral, sync=sync)

    def run(self, function: Callable[[Transaction], T], *, attempts: int = 20, sync: bool | None = None) -> T:
        """What ``function`` returns, called with a transaction that is committed afterwards.

        Called again after each conflict, ``attempts`` times in all, with longer and longer pauses of random length; it
        must do nothing else that cannot be done twice. Raises the last Conflict. CommitUnknown is never tried again.
        """
        from kv.api.transactions import Transaction, run

        result: T = self._drive(run(lambda: Transaction(self, sync=sync), function, attempts))
        return result

    def watch(self, prefix: str = "", since: int | None = None) -> Watch:
        """Each commit that concerns keys with ``prefix``, after version ``since`` or from now on.

        Has a connection of its own, until it is closed or its ``with`` block ends.
        """
        from kv.blocking.watch import Watch

        return Watch(self, prefix, since)

    def mirror(self, prefix: str = "") -> Mirror:
        """The keys that begin with ``prefix`` as a read-only mapping in this process, kept current by a watch.

        Reads cost no round trip, and may be a little behind; ``wait_for(version)`` waits until they are not. For what
        is read much more often than it changes, and is small enough to hold: configuration, membership.
        """
        from kv.blocking.mirror import Mirror

        return Mirror(self, prefix)

    def lock(
        self,
        name: str,
        *,
        ttl: float | timedelta | None = None,
        timeout: float | None = None,
        prefix: str = "lock/",
    ) -> Lock:
        """A lock that one holder has at a time, in the order in which they asked: ``with db.lock(name) as token:``.

        ``ttl``: it is lost after so long. ``timeout``: seconds to wait for it, then TimedOut. ``token`` rises from
        holder to holder: who is told a lower one than before knows that its sender has lost the lock.
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
        """The value of ``key``; where there is none, what ``make`` returns, which is then stored for ``ttl``.

        Of all that ask for it, in whatever process, one makes it and the others wait; if that one fails or dies, the
        next takes over. Raises what ``make`` raises, and TimedOut if there is no value within ``timeout`` seconds.

        ``decode``: return what it makes of the value. With a near cache that object is kept beside the value and handed
        out again for as long as the value is current: do not change it.
        """
        from kv.api.locks import MAKING, name_for

        value = self.get(key)
        try:
            if value is None:
                with self.lock(name_for(key), timeout=timeout, prefix=MAKING):
                    value = self.get(key)
                    if value is None:
                        value = binary(make())
                        self.set(key, value, ttl=ttl)
        except LockLost:
            if value is None:
                raise  # lost before anything was made
        return value if decode is None else self._decoded(key, value, decode)

    def _decoded(self, key: str, value: bytes, decode: Callable[[bytes], T]) -> T:
        return decode(value)

    # ------------------------------------------------------------------ the connection

    def server_pid(self) -> int | None:
        """The daemon's process id by the kernel's word; None on TCP, or from another pid namespace."""
        return self._link().connection(Deadline(self._timeout)).server_pid()

    def wait_for_end(self, timeout: float | None) -> bool:
        """Wait until the daemon closes this client's connection; whether it did within ``timeout`` seconds."""
        connection = self._link().take_over()
        if connection is None:
            return True
        try:
            connection.wait_for_end(Deadline(timeout))
        except TimeoutError:
            return False
        finally:
            connection.close()
        return True

    def close(self) -> None:
        """Close this process's connection. The next call opens another."""
        self._link().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ how methods do what they do

    def _call(self, operation: Operation[T]) -> T:
        delivery = Exchange((operation,))
        self._link().deliver(delivery, Deadline(self._timeout))
        result: T = delivery.result()
        return result

    def _drive(self, steps: Procedure[T]) -> T:
        from kv.api.procedures import run_effects

        return run_effects(steps, self._do)

    def _iterate(self, steps: Pages[T]) -> Iterator[T]:
        from kv.api.procedures import iterate

        return iterate(steps, self._do)

    def _do(self, step: object) -> Any:  # noqa: ANN401
        """One step of a procedure."""
        if isinstance(step, Exchange):
            self._link().deliver(step, Deadline(self._timeout))
            return step
        from kv.api.procedures import CallUser, Next, Pause

        if isinstance(step, Pause):
            from time import sleep

            return sleep(step.seconds)
        if isinstance(step, CallUser):
            return step.function(*step.arguments)
        assert isinstance(step, Next)
        return step.watch.wait(step.seconds)

    def _channel_now(self) -> ClientProtocol | None:
        """The channel of the connection that is open now."""
        return self._link().channel

    def _token_for(self, address: str) -> str | None:
        return read_token(self._token_file) if is_network(address) else None

    def _link(self) -> Link:
        """This process's."""
        pid = os.getpid()
        link = self._links.get(pid)
        if link is None:
            made = Link(self._address, self._token_for, self._codec, self.near_cache, self._busy_poll_us, self._tls)
            link = self._links.setdefault(pid, made)
            for other in [other for other in self._links if other != pid]:
                self._links.pop(other, None)  # the parent's; its descriptor was given back at the fork
        return link
