"""The blocking client with a near cache."""

from __future__ import annotations

from time import CLOCK_BOOTTIME, clock_gettime_ns, monotonic_ns

from kv.blocking.client import Client
from kv.blocking.stream import Deadline
from kv.errors import KvdError, Refused
from kv.near_cache.entries import checked_entries, fetch_entries
from kv.near_cache.reads import NearReads, near_cache_for
from kv.settings import DEFAULT_TIMEOUT_S
from kv.wire.exchange import Exchange
from kv.wire.operations import text
from kvd.protocol.near_cache import LEASE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from kv.near_cache.cache import NearCache
    from kv.near_cache.entries import NearCacheLimits
    from kv.wire.codecs import Codec
    from kv.wire.operations import Operation

    T = TypeVar("T")


class NearClient(NearReads, Client):
    """A client whose ``get`` and ``get_many`` are answered from its near cache whenever that is current.

    All other calls ask the daemon, as do reads in transactions, snapshots and pipelines. The first call opens the
    connection, and with it the near cache. Besides what Client raises: KvdError if the daemon has no near caches.
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
        self.near_cache = near_cache_for(address, limits)

    def get(self, key: str) -> bytes | None:
        """The value of ``key``, or None if there is no such key."""
        # Nearly all reads take this way, which is NearCache.answer without its calls.
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
            return value
        return self._get(key)

    def _get(self, key: str) -> bytes | None:
        key = text(key)
        near_cache = self.near_cache
        entry = near_cache.answer(key)
        if entry is not None:
            return entry[0]
        piggybacked = near_cache.table.take_due((key,))
        keys = [key, *piggybacked]
        deadline = Deadline(self.settings.timeout)
        connection = self._current_connection()
        reply = connection.ask_quickly((("fetch", keys),), deadline)
        if reply is not None:
            replies, protocol = reply
            try:
                return near_cache.on_read_reply(keys, checked_entries(keys, replies[0]), protocol)
            except (KvdError, ValueError, TypeError):
                pass  # delivered again below, it finds out what is wrong
        near_cache.stop_refreshing(piggybacked)
        exchange = Exchange((fetch_entries([key]),))
        connection.deliver(exchange, deadline)
        return near_cache.on_read_reply([key], exchange.result(), exchange.protocol)

    def _call(self, operation: Operation[T]) -> T:
        """Do one operation. A write refreshes the keys that it has changed, and others that have changed."""
        keys = self.near_cache.piggyback_keys(operation.request) if operation.options is not None else ()
        if not keys:
            return super()._call(operation)
        exchange = Exchange((operation, fetch_entries(keys)))
        self._current_connection().deliver(exchange, Deadline(self.settings.timeout))
        if isinstance(exchange.failure, Refused) and exchange.failure.code == "too_large":
            # Too large for both in one frame; neither has run.
            self.near_cache.stop_refreshing(keys)
            return super()._call(operation)
        self.near_cache.on_piggyback_reply(keys, exchange.results[1], exchange.protocol)
        result: T = exchange.result()
        return result
