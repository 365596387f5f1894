"""The blocking client with a near cache: what it reads again, it answers itself."""

from __future__ import annotations

from time import CLOCK_BOOTTIME, clock_gettime_ns, monotonic_ns

from kv import operations
from kv.attaching import refuse_tcp
from kv.client import DEFAULT_TIMEOUT_S, Client
from kv.connection import Deadline
from kv.delivery import Delivery
from kv.near_cache import DecodedObjects, NearCache, NearCacheLimits
from kvd.protocol.near_cache import LEASE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    from kv.codecs import Codec

    T = TypeVar("T")


class NearClient(Client):
    """A client whose ``get`` and ``get_many`` are answered from its near cache whenever that is current.

    Everything else asks the daemon, as do reads in transactions, snapshots and pipelines. Opens its connection, and
    with it the near cache, with the first call. Besides what Client raises: KvdError if the daemon has no near caches.
    """

    near_cache: NearCache

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT_S,
        token_file: str | None = None,
        codec: Codec | None = None,
        busy_poll_us: int = 0,
        limits: NearCacheLimits | None = None,
    ) -> None:
        super().__init__(address, timeout=timeout, token_file=token_file, codec=codec, busy_poll_us=busy_poll_us)
        refuse_tcp(address)
        self.near_cache = NearCache(limits or NearCacheLimits())
        self._objects = DecodedObjects(self.near_cache.limits.entries)

    def get(self, key: str) -> bytes | None:
        """The value of ``key``, or None if there is no such key."""
        # The way of nearly all reads: NearCache.answer without its calls.
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
            return value
        return self._get(key)

    def _get(self, key: str) -> bytes | None:
        entry = self.near_cache.answer(key)
        if entry is not None:
            return entry[0]
        delivery = Delivery((operations.fetch_entries([key]),))
        self._link().deliver(delivery, Deadline(self._timeout))
        told = delivery.result()
        self.near_cache.fill([key], told, delivery)
        value: bytes | None = told[0][0]
        return value

    def _decoded(self, key: str, value: bytes, decode: Callable[[bytes], T]) -> T:
        return self._objects.of(key, value, decode)

    def get_many(self, keys: Iterable[str], *, at: int | None = None) -> dict[str, bytes | None]:
        """The values of ``keys``, all of one instant, None for absent ones; of version ``at`` if given.

        Raises SnapshotGone if ``at`` has left the history.
        """
        if at is not None:
            return self._call(operations.get_many(list(keys), at))
        return self._drive(self.near_cache.get_many(keys))
