"""Locks: fair, and released by whatever ends their holder.

Each contender writes an ephemeral key of its own below the lock's prefix. The commit's version is its place in the
queue, and the token that its holder shows to others ("fencing": M. Kleppmann, *How to do distributed locking*, 2016):

        lock/NAME/5f1c…   version 17   ◀── holds the lock
        lock/NAME/a09e…   version 21       waits for 17 to go
        lock/NAME/33b7…   version 22       waits for 17 and 21 to go

Who is ahead of a contender is known when it has come, and only gets less from then on: so it looks once, and then
watches keys go. A holder that dies takes its connection, and so its key, with it. A forked child does not hold the
lock: its copies of the descriptors are closed at the fork, so that they do not keep the parent's connection alive.
"""

from __future__ import annotations

import os
import time

from kv.api.methods import Blocking, procedure
from kv.api.procedures import Next, ask, send
from kv.api.scopes import ClientScope, WithBlock
from kv.errors import CommitUnknown, ConnectionLost, LockLost, TimedOut
from kv.wire import operations
from kv.wire.exchange import Exchange
from kv.wire.operations import milliseconds, prefix_end

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import timedelta
    from typing import Any

    from kv.api.procedures import Procedure
    from kv.results import Change, Item
    from kv.wire.protocol import ClientProtocol

_MAX_ATTEMPTS = 5
# Below it stand those who make a value that others wait for (``Client.cached``).
MAKING = "making/"


def name_for(key: str) -> str:
    """The name of a lock for ``key``, which may be of any length and have any characters."""
    from hashlib import blake2b

    return blake2b(key.encode(), digest_size=16).hexdigest()


class LockCalls(ClientScope):
    """A contender for a lock; its holder, within the block."""

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
        if not name or "/" in name:
            raise ValueError(f"a lock's name has no '/' and is not empty, unlike {name!r}")
        self.name = name
        self.token: int | None = None
        self._place = f"{prefix}{name}/"
        self._ttl = ttl
        self._timeout = timeout
        self._key = ""
        self._channel: ClientProtocol | None = None
        self._ends_at: float | None = None

    # ------------------------------------------------------------------ while it is held

    @property
    def held(self) -> bool:
        """Whether it is held, as far as can be seen from here without asking the daemon."""
        if self.token is None or self._forked or self._channel is not self._client._channel_now():
            return False
        return self._ends_at is None or _now() < self._ends_at

    @procedure
    def check(self) -> Procedure[int]:
        """Ask the daemon whether the lock is still held; the token. Raises LockLost."""
        token = self._held_token()
        delivery = yield from send(operations.ttl([self._key]))
        if delivery.result()[0] is None or delivery.channel is not self._channel:
            raise self._lost()
        return token

    def _held_token(self) -> int:
        if self.token is None:
            raise RuntimeError("the lock is not held: write 'with db.lock(name) as token:'")
        return self.token

    def _lost(self) -> LockLost:
        return LockLost(f"the lock {self.name!r} is not held any more: its time was over, or its connection ended")

    # ------------------------------------------------------------------ beginning and end

    def _enter(self) -> Procedure[int]:
        if self.token is not None:
            raise RuntimeError(f"the lock {self.name!r} is held already; it is not reentrant")
        until = None if self._timeout is None else _now() + self._timeout
        for attempt in range(_MAX_ATTEMPTS):
            try:
                token = yield from self._contend(until)
            except CommitUnknown:
                # The place in the queue has gone with the connection, if it was ever taken.
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
        delivery = yield from self._withdraw()
        if failed:
            return
        if delivery.result() == 0:
            raise self._lost()

    def _withdraw(self) -> Procedure[Exchange]:
        delivery = yield from send(operations.delete([self._key], True, {}))
        return delivery

    # ------------------------------------------------------------------ the queue

    def _contend(self, until: float | None) -> Procedure[int | None]:
        """Take a place in the queue and wait there; the token, or None if the place was lost."""
        self._key = self._place + os.urandom(8).hex()
        who = f"pid {os.getpid()}".encode()
        mine = operations.set_many({self._key: who}, operations.write_options(ephemeral=True))
        delivery = yield from send(mine, self._contenders(self._place, None))
        token: int = delivery.result(0)
        self._channel = delivery.channel
        items, following = delivery.result(1)
        if any(item.version > token for item in items):  # others came in between: look again at that very version
            items, following = yield from ask(self._contenders(self._place, token))
        contenders: list[Item] = list(items)
        while following is not None:
            items, following = yield from ask(self._contenders(following, token))
            contenders += items
        ahead = {item.key for item in contenders if item.version < token}
        if ahead and not (yield from self._wait(ahead, token, until)):
            return None
        if self._ttl is not None and not (yield from self._begin_to_expire()):
            return None
        return token

    def _contenders(self, start: str, at: int | None) -> operations.Operation[tuple[list[Item], str | None]]:
        return operations.scan(start, prefix_end(self._place), 1_000, at, True)

    def _wait(self, ahead: set[str], token: int, until: float | None) -> Procedure[bool]:
        """Until nobody is ahead any more; false if the place in the queue was lost."""
        watch = self._client.watch(self._place, since=token)
        try:
            while ahead:
                left = None if until is None else max(0.0, until - _now())
                change: Change | None = yield Next(watch, left)
                if change is None:
                    how = f"was not free within {self._timeout:g} s" if self._timeout else "is not free"
                    text = f"the lock {self.name!r} {how}"
                    raise TimedOut(text, writing=False)
                if change.resync:
                    ahead &= change.writes.keys()
                else:
                    ahead -= {key for key, value in change.writes.items() if value is None}
                gone = change.resync and self._key not in change.writes
                if gone or change.writes.get(self._key, b"") is None:
                    return False
        finally:
            watch.abandon()
        return True

    def _begin_to_expire(self) -> Procedure[bool]:
        """The time to live begins when the lock is held, not while it is waited for; false if the place was lost."""
        assert self._ttl is not None
        self._ends_at = _now() + milliseconds(self._ttl) / 1000
        found = yield from ask(operations.touch([self._key], self._ttl))
        return found[0]


class Lock(LockCalls, WithBlock, Blocking):
    """``with db.lock(name) as token:``; ``held`` and ``check()`` tell inside the block whether it still is.

    Leaving the block raises LockLost if the lock was lost inside.
    """

    if TYPE_CHECKING:

        def __enter__(self) -> int: ...


def _now() -> float:
    """The clock by which keys expire."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
