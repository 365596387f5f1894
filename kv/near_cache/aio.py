"""The asyncio client with a near cache."""

from __future__ import annotations

from time import CLOCK_BOOTTIME, clock_gettime_ns, monotonic_ns
from typing import TYPE_CHECKING, Any

from kv.aio.client import AsyncClient
from kv.aio.connection import SingleCall
from kv.near_cache.entries import fetch_entries
from kv.near_cache.reads import NearReads, near_cache_for
from kv.settings import DEFAULT_TIMEOUT_S
from kv.wire.operations import text
from kvd.protocol.near_cache import LEASE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator

    from kv.near_cache.cache import NearCache
    from kv.near_cache.entries import NearCacheLimits
    from kv.wire.codecs import Codec


class _Answered:
    """A known value, to be awaited like one that is not known; a future would double the cost of a hit."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes | None) -> None:
        self._value = value

    def __await__(self) -> Generator[None, None, bytes | None]:
        return self._value
        yield  # makes this a generator; it never waits


class _Fetch(SingleCall):
    """A fetch of one key that the near cache cannot answer; the task awaits its value."""

    __slots__ = ("key", "near_cache")

    def __init__(self, key: str, near_cache: NearCache) -> None:
        super().__init__((fetch_entries([key]),))
        self.key = key
        self.near_cache = near_cache

    def result(self, number: int = 0) -> Any:  # noqa: ANN401
        """Keep the entry, and return its value. Raises the KvdError that the fetch ended with."""
        entries = super().result(number)
        self.near_cache.fill([self.key], entries, self)
        return entries[0][0]


class AsyncNearClient(NearReads, AsyncClient):
    """An AsyncClient whose ``get`` and ``get_many`` are answered from its near cache whenever that is current.

    Such an answer does not wait for calls that were made before and are not awaited yet; otherwise as NearClient.
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
        self.near_cache = near_cache_for(address, limits)

    def get(self, key: str) -> Awaitable[bytes | None]:
        """The value of ``key``, or None if there is no such key."""
        # As NearClient.get.
        near_cache = self.near_cache
        table = near_cache.table
        try:
            value, word, generation, deadline = table.younger[key]
        except (KeyError, TypeError):
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
        key = text(key)
        entry = self.near_cache.answer(key)
        if entry is not None:
            return _Answered(entry[0])
        return self._current_connection().call(_Fetch(key, self.near_cache))
