"""What the two clients with a near cache share: all but ``get``, which is too hot to share."""

from __future__ import annotations

from kv.near_cache.attach import refuse_tcp
from kv.near_cache.cache import NearCache
from kv.near_cache.entries import NearCacheLimits
from kv.wire import operations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")


def near_cache_for(address: str | None, limits: NearCacheLimits | None) -> NearCache:
    """Return a near cache for a daemon at ``address``. Raises ValueError if there can be none."""
    refuse_tcp(address)
    return NearCache(limits or NearCacheLimits())


class NearReads:
    """Reads that the near cache answers whenever it can. To be mixed into a client."""

    near_cache: NearCache

    def _decode(self, key: str, value: bytes, decode: Callable[[bytes], T]) -> T:
        return self.near_cache.decoded.of(key, value, decode)

    if not TYPE_CHECKING:  # overrides Calls.get_many, which gives both clients its types

        def get_many(self, keys, *, at=None):  # noqa: ANN001, ANN201
            """The values of ``keys``, all of one instant, None for absent ones; of version ``at`` if given.

            Raises SnapshotGone if ``at`` has left the history.
            """
            if at is not None:
                return self._call(operations.get_many(keys, at))
            if isinstance(keys, str | bytes | bytearray | memoryview):
                operations.texts(keys)  # raises
            return self._run_steps(self.near_cache.get_many(keys))
