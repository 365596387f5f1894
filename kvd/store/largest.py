"""Which keys have the largest values: one page at a time, so that no client waits while all keys are visited."""

from heapq import nlargest
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvd.store.store import Store

# One page takes a millisecond or two.
PAGE_KEYS = 2_048


def largest(store: "Store", start: str, limit: int) -> tuple[list[tuple[str, int]], str | None]:
    """Return, of the next PAGE_KEYS keys from ``start`` on, up to ``limit`` keys with the largest values.

    Each key comes with the size of its value in bytes, the largest first. The second result is the key from which to
    go on; None after the last page.
    """
    keys = list(islice(store.living_between(start, None), PAGE_KEYS + 1))
    following = keys.pop() if len(keys) > PAGE_KEYS else None
    find = store.find
    sizes = [(len(head.value), key) for key in keys if (head := find(key)) is not None and head.value is not None]
    return [(key, size) for size, key in nlargest(limit, sizes)], following
