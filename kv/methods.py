"""The methods of all clients, each declared once, for clients that block, are awaited, or collect calls in a pipeline.

How this works, by the example of ``get``:

    @call
    def get(self, key: str) -> Operation[bytes | None]:      says what travels, and does nothing
        return operations.get(key)

    db.get("cake")       becomes     db._call(operations.get("cake"))     where each class has a ``_call`` of its own

So one declaration gives the blocking client a method that returns ``bytes | None``, the asyncio client one that returns
an ``Awaitable[bytes | None]``, and a pipeline one that returns a ``Result[bytes | None]``. Which of them a class has is
said by the marker class that it inherits from. There are three decorators:

    decorator     the function returns                     the class does it with    Blocking      Asynchronous
    @call         an Operation: one request, one reply     _call                     T             Awaitable[T]
    @procedure    steps (a generator, procedures.py)       _run_steps                T             Awaitable[T]
    @pages        steps that yield items                   _iterate                  Iterator[T]   AsyncIterator[T]

Each decorator is written twice below: once for type checkers (and editors), with the types of this table, and once for
the interpreter, without them.
"""

from __future__ import annotations

from kv.wire import operations
from kv.wire.operations import binary, write_options

TYPE_CHECKING = False  # importing typing to ask it would cost the short-lived command 7 ms
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
    from datetime import timedelta
    from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

    from kv.api.procedures import Pages, Procedure
    from kv.api.result import Result
    from kv.results import Commit, HotKeys, Item, SlowFrame, Version, Versioned
    from kv.wire.operations import Operation, Range
    from kvd.protocol import Position

    P = ParamSpec("P")
    T = TypeVar("T")
    Ttl = float | timedelta | None


class Blocking:
    """Methods return their results."""


class Asynchronous:
    """Methods return what can be awaited, or iterated over with ``async for``."""


class Deferred:
    """Methods return a Result, which has its value later."""


if TYPE_CHECKING:

    class call(Generic[P, T]):  # noqa: N801  # a decorator
        """A method that does one operation."""

        def __init__(self, make: Callable[Concatenate[Any, P], Operation[T]]) -> None: ...
        @overload
        def __get__(self, client: None, owner: object) -> Callable[Concatenate[Any, P], T]: ...
        @overload
        def __get__(self, client: Blocking, owner: object) -> Callable[P, T]: ...
        @overload
        def __get__(self, client: Asynchronous, owner: object) -> Callable[P, Awaitable[T]]: ...
        @overload
        def __get__(self, client: Deferred, owner: object) -> Callable[P, Result[T]]: ...
        def __get__(self, client: object, owner: object) -> Any: ...

    class procedure(Generic[P, T]):  # noqa: N801  # a decorator
        """A method that goes through the steps of a generator."""

        def __init__(self, make: Callable[Concatenate[Any, P], Procedure[T]]) -> None: ...
        @overload
        def __get__(self, client: None, owner: object) -> Callable[Concatenate[Any, P], T]: ...
        @overload
        def __get__(self, client: Blocking, owner: object) -> Callable[P, T]: ...
        @overload
        def __get__(self, client: Asynchronous, owner: object) -> Callable[P, Awaitable[T]]: ...
        def __get__(self, client: object, owner: object) -> Any: ...

    class pages(Generic[P, T]):  # noqa: N801  # a decorator
        """A method that iterates over what the steps of a generator bring."""

        def __init__(self, make: Callable[Concatenate[Any, P], Pages[T]]) -> None: ...
        @overload
        def __get__(self, client: None, owner: object) -> Callable[Concatenate[Any, P], Iterator[T]]: ...
        @overload
        def __get__(self, client: Blocking, owner: object) -> Callable[P, Iterator[T]]: ...
        @overload
        def __get__(self, client: Asynchronous, owner: object) -> Callable[P, AsyncIterator[T]]: ...
        def __get__(self, client: object, owner: object) -> Any: ...

else:

    class _Declared:
        """Becomes a method at its first use: the short-lived command needs only one of them."""

        __slots__ = ("make", "name", "owner")

        def __init__(self, make):  # noqa: ANN001, ANN204
            self.make = make

        def __set_name__(self, owner, name):  # noqa: ANN001, ANN204
            self.owner, self.name = owner, name

        def __get__(self, client, owner):  # noqa: ANN001, ANN204
            method = _like(self.method(self.make), self.make)
            setattr(self.owner, self.name, method)
            return method.__get__(client, owner)

    class call(_Declared):  # noqa: N801  # a decorator
        __slots__ = ()

        @staticmethod
        def method(make):  # noqa: ANN001, ANN205
            return lambda self, *args, **kwargs: self._call(make(self, *args, **kwargs))

    class procedure(_Declared):  # noqa: N801  # a decorator
        __slots__ = ()

        @staticmethod
        def method(make):  # noqa: ANN001, ANN205
            return lambda self, *args, **kwargs: self._run_steps(make(self, *args, **kwargs))

    class pages(_Declared):  # noqa: N801  # a decorator
        __slots__ = ()

        @staticmethod
        def method(make):  # noqa: ANN001, ANN205
            return lambda self, *args, **kwargs: self._iterate(make(self, *args, **kwargs))

    def _like(method, make):  # noqa: ANN001, ANN202
        """Have help() show the name, signature and docstring of ``make``, with the type that callers get."""
        method.__name__, method.__qualname__, method.__doc__ = make.__name__, make.__qualname__, make.__doc__
        method.__module__ = make.__module__
        returned = make.__annotations__.get("return", "")
        make.__annotations__["return"] = returned.partition("[")[2].removesuffix("]")
        method.__wrapped__ = make
        return method


class Calls:
    """Calls of one request and one reply.

    Keys are strings of 1 byte to 4 KiB of UTF-8, values are bytes. Durations are seconds or timedelta. A commit returns
    its version; versions rise. Each version comes as a Position: a number that knows its store. Handed back to a daemon
    with another store it is SnapshotGone, or has a watch begin with a resync. A bare number means the store that the
    daemon has now. Writes take ``ttl`` (the keys expire after this time), ``keep_ttl`` (keys that exist
    keep the deadline that they have), ``ephemeral`` (the keys are deleted when this client's connection ends) and
    ``sync`` (whether to wait until the commit is on the disk; None: as the daemon is configured).
    """

    @call
    def get(self, key: str) -> Operation[bytes | None]:
        """The value of ``key``, or None if there is no such key."""
        return operations.get(key)

    @call
    def get_many(self, keys: Iterable[str], *, at: int | None = None) -> Operation[dict[str, bytes | None]]:
        """The values of ``keys``, all of one instant, None for absent ones; of version ``at`` if given.

        Raises SnapshotGone if ``at`` has left the history.
        """
        return operations.get_many(keys, at)

    @call
    def fetch(self, keys: Iterable[str], *, at: int | None = None) -> Operation[dict[str, Versioned]]:
        """As get_many, with the version of each value; version 0 and value None for absent keys."""
        return operations.fetch(keys, at)

    @call
    def set(
        self,
        key: str,
        value: bytes,
        *,
        ttl: Ttl = None,
        keep_ttl: bool = False,
        ephemeral: bool = False,
        sync: bool | None = None,
    ) -> Operation[Position]:
        """Store ``value`` under ``key``; return the version of the commit."""
        return operations.set_many({key: binary(value)}, write_options(ttl, keep_ttl, ephemeral, sync))

    @call
    def set_many(
        self,
        entries: Mapping[str, bytes],
        *,
        ttl: Ttl = None,
        keep_ttl: bool = False,
        ephemeral: bool = False,
        sync: bool | None = None,
    ) -> Operation[Position]:
        """Store all ``entries``, or none of them, in one commit; return its version."""
        checked = {key: binary(value) for key, value in entries.items()}
        return operations.set_many(checked, write_options(ttl, keep_ttl, ephemeral, sync))

    @call
    def delete(self, *keys: str, missing_ok: bool = False, sync: bool | None = None) -> Operation[int]:
        """Delete all ``keys`` in one commit; return how many existed.

        Raises NotFound, with nothing deleted, if one does not exist, unless ``missing_ok``.
        """
        return operations.delete(keys, missing_ok, write_options(sync=sync))

    @call
    def increment(
        self, key: str, by: int = 1, *, ttl: Ttl = None, keep_ttl: bool = False, sync: bool | None = None
    ) -> Operation[int]:
        """Add ``by`` to the decimal number under ``key`` (0 if absent); return the new number. Never conflicts.

        The key keeps its deadline, unless ``ttl`` is given without ``keep_ttl``; with both, ``ttl`` is for a new key.
        Raises NotANumber.
        """
        return operations.increment(key, by, write_options(ttl, keep_ttl, sync=sync))

    @call
    def compare_and_set(
        self,
        key: str,
        value: bytes | None,
        version: int,
        *,
        ttl: Ttl = None,
        keep_ttl: bool = False,
        ephemeral: bool = False,
        sync: bool | None = None,
    ) -> Operation[Position]:
        """Store ``value`` (None: delete) if ``key`` still has the ``version`` that fetch returned (0: is absent).

        Returns the version of the commit. Raises Conflict.
        """
        options = write_options(ttl, keep_ttl, ephemeral, sync)
        return operations.commit({key: value}, {key: version}, (), None, options)

    @call
    def commit(
        self,
        writes: Mapping[str, bytes | None],
        *,
        reads: Mapping[str, int] | None = None,
        ranges: Iterable[Range] = (),
        snapshot: int | None = None,
        ttl: Ttl = None,
        keep_ttl: bool = False,
        ephemeral: bool = False,
        sync: bool | None = None,
    ) -> Operation[Position]:
        """Make ``writes`` (None deletes) in one commit, if nothing that was read has changed; return its version.

        ``reads``: each key with the version that was read, 0 for absent. ``ranges``: pairs of start and end (None: no
        end), in which nothing may have changed since version ``snapshot``. Raises Conflict. See transaction().
        """
        return operations.commit(writes, reads, ranges, snapshot, write_options(ttl, keep_ttl, ephemeral, sync))

    @call
    def touch(self, *keys: str, ttl: Ttl) -> Operation[list[bool]]:
        """Have ``keys`` live for ``ttl`` from now on (None: without end), in one commit; return whether each exists."""
        return operations.touch(keys, ttl)

    @call
    def ttl(self, *keys: str) -> Operation[list[float | None]]:
        """How many seconds each of ``keys`` still lives: math.inf without an end, None if absent."""
        return operations.ttl(keys)

    @call
    def version(self) -> Operation[Position]:
        """The current version: that of the last commit."""
        return operations.version()

    @call
    def version_at(self, time_us: int) -> Operation[Position]:
        """The version that was current at a time, in µs since the epoch. Raises SnapshotGone."""
        return operations.version_at(time_us)

    @call
    def ping(self) -> Operation[bool]:
        """Return True if the daemon answers."""
        return operations.ping()

    @call
    def metrics(self) -> Operation[dict[str, int]]:
        """The daemon's counters by name."""
        return operations.metrics()

    @call
    def exposition(self) -> Operation[str]:
        """All that the daemon measures, in Prometheus' text format. Raises Refused if the daemon cannot."""
        return operations.exposition()

    @call
    def status(self) -> Operation[dict[str, str | int]]:
        """What the daemon says about itself, by name."""
        return operations.status()

    @call
    def slow_log(self, *, limit: int = 20, reset: bool = False) -> Operation[list[SlowFrame]]:
        """The frames that took the daemon long, the newest first; ``reset`` clears the log. Raises Forbidden."""
        return operations.slow_log(limit, reset)

    @call
    def hottest_keys(self, by: str = "reads", *, limit: int = 10) -> Operation[HotKeys]:
        """The keys with the most recent "reads" or "writes", estimated from a sample. Raises Forbidden."""
        return operations.hottest(by, limit)

    @call
    def reload(self) -> Operation[list[str]]:
        """Have the daemon read its configuration again; return what changed, in words. Raises Forbidden, Refused."""
        return operations.reload()

    @call
    def access(
        self,
        key: str,
        *,
        uid: int | None = None,
        gids: Iterable[int] = (),
        certificate: str | None = None,
        token: str | None = None,
    ) -> Operation[dict[str, Any]]:
        """What a user may do with ``key``, and which access rules say so. Raises Forbidden.

        The user has a ``uid`` and ``gids`` (on a Unix socket), a ``certificate`` or a ``token``, both by name (over
        TCP). The result has "rights" (names such as "read"), "reason" (a sentence) and "rules" (those that decide).
        """
        return operations.access(key, uid, list(gids), certificate, token)

    @call
    def checkpoint(self) -> Operation[int]:
        """Have the daemon begin a checkpoint; return a version that it will cover. Raises Forbidden, Refused.

        It is complete when metrics()["checkpoint_version"] has reached that version, and has failed when
        "checkpoint_failures" has risen.
        """
        return operations.checkpoint()

    @call
    def shutdown(self) -> Operation[int]:
        """Have the daemon stop in order; return its process id. It may still run then. Raises Forbidden."""
        return operations.shutdown()


class Api(Calls):
    """Calls that take more than one request."""

    @procedure
    def get_and_touch(self, *keys: str, ttl: Ttl) -> Procedure[dict[str, bytes | None]]:
        """The values of ``keys``, None for absent ones, and have the keys live for ``ttl`` from now on (None: no end).

        For keys that live for as long as they are used, such as sessions. It always asks the daemon, also with a near
        cache. With access rules it takes the rights to read and to write. (If the keys do not fit into a frame of
        64 KiB, all are prolonged before the first is read.)
        """
        from kv.api.procedures import get_and_touch

        return get_and_touch(list(keys), ttl)

    @pages
    def scan(
        self,
        prefix: str = "",
        *,
        start: str | None = None,
        end: str | None = None,
        limit: int | None = None,
        at: int | None = None,
        keys_only: bool = False,
    ) -> Pages[Item]:
        """The keys that begin with ``prefix``, or from ``start`` on and before ``end``, in order of their UTF-8 bytes.

        Fetched page by page during the iteration: of one instant only within a page, unless ``at`` names a version.
        """
        from kv.api.procedures import scan

        return scan(prefix, start=start, end=end, limit=limit, at=at, keys_only=keys_only)

    @pages
    def history(self, key: str, *, limit: int | None = None) -> Pages[Version]:
        """The versions of ``key`` that are still known, newest first, each with its time and author."""
        from kv.api.history import history

        return history(key, limit)

    @pages
    def log(self, since: int | None = None, *, limit: int | None = None) -> Pages[Commit]:
        """The commits after version ``since``, oldest first; with None the newest ``limit``, or all that are known.

        It ends at the commit that is the newest when it begins. Raises SnapshotGone if some have left the history.
        """
        from kv.api.history import log

        return log(since, limit)

    @procedure
    def largest_keys(self, *, limit: int = 10) -> Procedure[dict[str, int]]:
        """The keys with the largest values, and their bytes, the largest first. Raises Forbidden.

        It looks at every key, in steps between which the daemon serves other clients. Changes meanwhile may be missed.
        """
        from kv.api.procedures import largest_keys

        return largest_keys(limit)

    @procedure
    def rollback(self, *keys: str, to: int) -> Procedure[Position]:
        """Restore ``keys`` to what they were at version ``to``, in a commit of its own; return its version.

        Keys keep the deadline that they have. Raises Conflict if one changes at the same time, SnapshotGone.
        """
        from kv.api.history import rollback

        return rollback(list(keys), to)

    @procedure
    def plan_rollback(self, *keys: str, to: int) -> Procedure[dict[str, bytes | None]]:
        """What rollback() would write (None: delete), without the keys that have not changed."""
        from kv.api.history import plan_rollback, writes_of

        return writes_of(plan_rollback(list(keys), to))

    @procedure
    def revert(self, version: int) -> Procedure[Position]:
        """Undo the commit that made ``version``, in a commit of its own; return the new version.

        Raises Conflict if a key that it wrote has changed since, SnapshotGone if it has left the history.
        """
        from kv.api.history import revert

        return revert(version)

    @procedure
    def plan_revert(self, version: int) -> Procedure[dict[str, bytes | None]]:
        """What revert() would write (None: delete). Raises as revert() does."""
        from kv.api.history import plan_revert, writes_of

        return writes_of(plan_revert(version))
