"""The asyncio client with a near cache."""

from __future__ import annotations

from time import CLOCK_BOOTTIME, clock_gettime_ns, monotonic_ns
from typing import TYPE_CHECKING, Any

from kv.aio import AsyncClient
from kv.aio.connection import SingleCall
from kv.blocking.client import DEFAULT_TIMEOUT_S
from kv.near_cache.attach import refuse_tcp
from kv.near_cache.cache import DecodedObjects, NearCache, NearCacheLimits
from kv.wire import operations
from kvd.protocol.near_cache import LEASE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable
    from typing import TypeVar

    from kv.wire.codecs import Codec

    T = TypeVar("T")


class _Answered:
    """What is known already, to be awaited like what is not; a future would cost as much again as all the rest."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes | None) -> None:
        self._value = value

    def __await__(self) -> Generator[None, None, bytes | None]:
        return self._value
        yield  # it never waits


class _Fetch(SingleCall):
    """One key that the near cache did not have; its value is what is awaited."""

    __slots__ = ("key", "near_cache")

    def __init__(self, key: str, near_cache: NearCache) -> None:
        super().__init__((operations.fetch_entries([key]),))
        self.key = key
        self.near_cache = near_cache

    def result(self, number: int = 0) -> Any:  # noqa: ANN401
        """Its value, once it is kept. Raises the KvdError that it ended with."""
        told = super().result(number)
        self.near_cache.fill([self.key], told, self)
        return told[0][0]


class AsyncNearClient(AsyncClient):
    """An AsyncClient whose ``get`` and ``get_many`` are answered from its near cache whenever that is current.

    Such an answer does not wait for calls that were made before and are not awaited yet; else as NearClient.
    """

    near_cache: NearCache

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        token_file: str | None = None,
        codec: Codec | None = None,
        limits: NearCacheLimits | None = None,
    ) -> None:
        super().__init__(address, timeout=timeout, token_file=token_file, codec=codec)
        refuse_tcp(address)
        self.near_cache = NearCache(limits or NearCacheLimits())
        self._objects = DecodedObjects(self.near_cache.limits.entries)

    def get(self, key: str) -> Awaitable[bytes | None]:
        """The value of ``key``, or None if there is no such key."""
        # As NearClient.get.
        near_cache = self.near_cache
        table = near_cache.table
        try:
            value, word, generation, deadline = table.younger[key]
        except KeyError:
            return self._get(key)
        words = table.words
        if (
            words[word] == generation
            and words[LEASE] > monotonic_ns()
            and (deadline is None or clock_gettime_ns(CLOCK_BOOTTIME) < deadline)
        ):
            near_cache.hits += 1
            return _Answered(value)
        return self._get(key)

    def _get(self, key: str) -> Awaitable[bytes | None]:
        entry = self.near_cache.answer(key)
        return self._link_now().call(_Fetch(key, self.near_cache)) if entry is None else _Answered(entry[0])

    def _decoded(self, key: str, value: bytes, decode: Callable[[bytes], T]) -> T:
        return self._objects.of(key, value, decode)

    def get_many(self, keys: Iterable[str], *, at: int | None = None) -> Awaitable[dict[str, bytes | None]]:
        """The values of ``keys``, all of one instant, None for absent ones; of version ``at`` if given.

        Raises SnapshotGone if ``at`` has left the history.
        """
        if at is not None:
            return self._call(operations.get_many(list(keys), at))
        return self._drive(self.near_cache.get_many(keys))
