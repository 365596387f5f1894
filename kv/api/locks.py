"""Locks: fair, and released by anything that ends their holder.

Each contender writes an ephemeral key of its own below the lock's prefix. The commit's version is its place in the
queue. It is also the token that the holder shows to others ("fencing": M. Kleppmann, *How to do distributed locking*,
2016):

        lock/NAME/5f1c…   version 17   ◀── holds the lock
        lock/NAME/a09e…   version 21       waits for 17 to be deleted
        lock/NAME/33b7…   version 22       waits for 17 and 21 to be deleted

The contenders ahead of a new one are known at once, and only become fewer. So a contender scans once, and then watches
deletions. It ends its key's name with a random number, which the next contender of the same connection uses again: so a
lock that is taken many times leaves few deleted keys in the history. A key that was ahead may thus come back, after the
waiting ones; its version says so. The key of a holder that dies is deleted when its connection ends. A forked child
does not hold the lock: its copies of the descriptors are closed at the fork, so that they do not keep the parent's
connection open.
"""

from __future__ import annotations

import os
import time

from kv.api.procedures import NextChange, ask, send
from kv.api.scopes import ClientScope, WithBlock
from kv.errors import CommitUnknown, ConnectionLost, LockLost, TimedOut
from kv.methods import Blocking, procedure
from kv.wire import operations
from kv.wire.exchange import Exchange
from kv.wire.operations import milliseconds, text
from kvd.protocol.ranges import prefix_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import timedelta
    from typing import Any

    from kv.api.procedures import Procedure
    from kv.results import Change, Item
    from kv.wire.protocol import ClientProtocol

_MAX_ATTEMPTS = 5
# A connection keeps this many names of earlier contenders for the next ones.
_SPARE_NAMES = 64
# The prefix of the locks of callers that make a value while others wait for it (``Client.cached``).
MAKING = "making/"


def name_for(key: str) -> str:
    """Return the name of a lock for ``key``, which may have any length and any characters."""
    from hashlib import blake2b

    return blake2b(key.encode(), digest_size=16).hexdigest()


class LockCalls(ClientScope):
    """A contender for a lock, and its holder within the block."""

    _what = "a lock"

    def __init__(
        self,
        client: Any,  # noqa: ANN401
        name: str,
        *,
        ttl: float | timedelta | None = None,
        timeout: float | None = None,
        prefix: str = "lock/",
    ) -> None:
        super().__init__(client)
        name, prefix = text(name, "a lock's name"), text(prefix, "a prefix")
        if not name or "/" in name:
            raise ValueError(f"a lock's name has no '/' and is not empty, unlike {name!r}")
        self.name = name
        self.token: int | None = None
        self._queue_prefix = f"{prefix}{name}/"
        self._ttl = ttl
        self._timeout = timeout
        self._key = ""
        self._protocol: ClientProtocol | None = None  # of the connection that keeps the key
        self._expires_at: float | None = None

    # ------------------------------------------------------------------ while it is held

    @property
    def held(self) -> bool:
        """Whether the lock is held, as far as the client knows without asking the daemon."""
        if self.token is None or self._forked or self._protocol is not self._client._current_protocol():
            return False
        return self._expires_at is None or _now() < self._expires_at

    @procedure
    def check(self) -> Procedure[int]:
        """Ask the daemon whether the lock is still held; return the token. Raises LockLost."""
        token = self._held_token()
        exchange = yield from send(operations.ttl([self._key]))
        if exchange.result()[0] is None or exchange.protocol is not self._protocol:
            raise self._lost()
        return token

    def _held_token(self) -> int:
        if self.token is None:
            raise RuntimeError("the lock is not held: write 'with db.lock(name) as token:'")
        return self.token

    def _lost(self) -> LockLost:
        return LockLost(f"the lock {self.name!r} is not held any more: its time was over, or its connection ended")

    # ------------------------------------------------------------------ entering and leaving

    def _enter(self) -> Procedure[int]:
        if self.token is not None:
            raise RuntimeError(f"the lock {self.name!r} is held already; it is not reentrant")
        deadline = None if self._timeout is None else _now() + self._timeout
        for attempt in range(_MAX_ATTEMPTS):
            try:
                token = yield from self._contend(deadline)
            except CommitUnknown:
                # The key was deleted when the connection ended, if it was ever written.
                if attempt == _MAX_ATTEMPTS - 1:
                    raise
                continue
            except BaseException:
                yield from self._withdraw()
                raise
            if token is not None:
                self.token = token
                return token
        raise ConnectionLost(f"the connection broke each time while waiting for the lock {self.name!r}", writing=False)

    def _leave(self, failed: bool) -> Procedure[None]:
        if self.token is None:
            return
        self.token = None
        exchange = yield from self._withdraw()
        if failed:
            return
        if exchange.result() == 0:
            raise self._lost()

    def _withdraw(self) -> Procedure[Exchange]:
        exchange = yield from send(operations.delete([self._key], True, {}))
        protocol, self._protocol = self._protocol, None
        is_deleted = exchange.failure is None and type(exchange.results[0]) is int
        if protocol is None or protocol is not exchange.protocol or not is_deleted:
            return exchange  # the key may be there, or it belongs to another connection
        if len(protocol.spare_lock_names) < _SPARE_NAMES:
            protocol.spare_lock_names.append(self._key.removeprefix(self._queue_prefix))
        return exchange

    # ------------------------------------------------------------------ the queue

    def _name(self) -> str:
        """Return the end of the contender's key: one that the connection has used before, or a random number."""
        protocol: ClientProtocol | None = self._client._current_protocol()
        spare = [] if protocol is None else protocol.spare_lock_names
        try:
            return spare.pop()
        except IndexError:
            return os.urandom(8).hex()

    def _contend(self, deadline: float | None) -> Procedure[int | None]:
        """Take a place in the queue and wait there; return the token, or None if the place was lost."""
        self._key = self._queue_prefix + self._name()
        holder = f"pid {os.getpid()}".encode()
        own_key = operations.set_many({self._key: holder}, operations.write_options(ephemeral=True))
        exchange = yield from send(own_key, self._contenders(self._queue_prefix, None))
        token: int = exchange.result(0)
        self._protocol = exchange.protocol
        items, following = exchange.result(1)
        if following is None and all(item.version <= token for item in items):
            ahead = {item.key for item in items if item.version < token}
        else:  # others have come since, or there are very many: look again, at that very version
            ahead = yield from self._ahead_of(token, at=token)
        if ahead and not (yield from self._wait(ahead, token, deadline)):
            return None
        if self._ttl is not None and not (yield from self._begin_to_expire()):
            return None
        return token

    def _ahead_of(self, token: int, at: int | None) -> Procedure[set[str]]:
        """Return the keys of the contenders before ``token``, as of version ``at`` (None: now)."""
        ahead: set[str] = set()
        following: str | None = self._queue_prefix
        while following is not None:
            items, following = yield from ask(self._contenders(following, at))
            ahead.update(item.key for item in items if item.version < token)
        return ahead

    def _contenders(self, start: str, at: int | None) -> operations.Operation[tuple[list[Item], str | None]]:
        return operations.scan(start, prefix_end(self._queue_prefix), 1_000, at, True)

    def _wait(self, ahead: set[str], token: int, deadline: float | None) -> Procedure[bool]:
        """Wait until the keys ``ahead`` are deleted; false if the place in the queue was lost."""
        watch = self._client.watch(self._queue_prefix, since=token)
        try:
            while ahead:
                remaining = None if deadline is None else max(0.0, deadline - _now())
                change: Change | None = yield NextChange(watch, remaining)
                if change is None:
                    reason = f"was not free within {self._timeout:g} s" if self._timeout else "is not free"
                    raise TimedOut(f"the lock {self.name!r} {reason}", writing=False)
                if change.resync:  # what is there says nothing about the order: a key may have come back
                    if self._key not in change.writes:
                        return False
                    ahead &= yield from self._ahead_of(token, at=None)
                    continue
                ahead -= {key for key, value in change.writes.items() if value is None}
                if change.writes.get(self._key, b"") is None:
                    return False
        finally:
            watch.abandon()
        return True

    def _begin_to_expire(self) -> Procedure[bool]:
        """Set the time to live, which begins once the lock is held; false if the place in the queue was lost."""
        assert self._ttl is not None
        self._expires_at = _now() + milliseconds(self._ttl) / 1000
        exist = yield from ask(operations.touch([self._key], self._ttl))
        return exist[0]


class Lock(LockCalls, WithBlock, Blocking):
    """``with db.lock(name) as token:``. Inside the block, ``held`` and ``check()`` say whether the lock is still held.

    Leaving the block raises LockLost if the lock was lost inside.
    """

    if TYPE_CHECKING:

        def __enter__(self) -> int: ...


def _now() -> float:
    """Return the time of the clock by which keys expire."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
