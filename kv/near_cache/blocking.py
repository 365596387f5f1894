"""The blocking client with a near cache: what it reads again, it answers itself."""

from __future__ import annotations

from time import CLOCK_BOOTTIME, clock_gettime_ns, monotonic_ns

from kv.blocking.client import DEFAULT_TIMEOUT_S, Client
from kv.blocking.stream import Deadline
from kv.errors import KvdError, Refused
from kv.near_cache.attach import refuse_tcp
from kv.near_cache.cache import DecodedObjects, NearCache, NearCacheLimits
from kv.wire import operations
from kv.wire.exchange import Exchange
from kvd.protocol.near_cache import LEASE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    from kv.wire.codecs import Codec
    from kv.wire.operations import Operation

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
        near_cache = self.near_cache
        entry = near_cache.answer(key)
        if entry is not None:
            return entry[0]
        table = near_cache.table
        riders = table.demand.take(table, (key,))
        keys = [key, *riders]
        deadline = Deadline(self._timeout)
        link = self._link()
        asked = link.ask((("fetch", keys),), deadline)
        if asked is not None:
            replies, channel = asked
            try:
                return near_cache.fetched(keys, operations.entries_of(keys, replies[0]), channel)
            except (KvdError, ValueError, TypeError):
                pass  # delivered once more, it says what is wrong
        near_cache.give_up(riders)
        delivery = Exchange((operations.fetch_entries([key]),))
        link.deliver(delivery, deadline)
        return near_cache.fetched([key], delivery.result(), delivery.channel)

    def _call(self, operation: Operation[T]) -> T:
        """A write brings along what it has made stale here, and what others have."""
        riders = self.near_cache.riders_of_write(operation.request) if operation.how is not None else ()
        if not riders:
            return super()._call(operation)
        delivery = Exchange((operation, operations.fetch_entries(riders)))
        self._link().deliver(delivery, Deadline(self._timeout))
        if isinstance(delivery.failure, Refused) and delivery.failure.code == "too_large":
            # For both in one frame; nothing has run.
            self.near_cache.give_up(riders)
            return super()._call(operation)
        self.near_cache.rode_along(riders, delivery.results[1], delivery.channel)
        result: T = delivery.result()
        return result

    def _decoded(self, key: str, value: bytes, decode: Callable[[bytes], T]) -> T:
        return self._objects.of(key, value, decode)

    def get_many(self, keys: Iterable[str], *, at: int | None = None) -> dict[str, bytes | None]:
        """The values of ``keys``, all of one instant, None for absent ones; of version ``at`` if given.

        Raises SnapshotGone if ``at`` has left the history.
        """
        if at is not None:
            return self._call(operations.get_many(list(keys), at))
        return self._drive(self.near_cache.get_many(keys))
