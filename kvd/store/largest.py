"""Which keys have the largest values: a page at a time, so that nobody waits for a look at all of them."""

from heapq import nlargest
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvd.store.store import Store

# A millisecond or two.
PAGE_KEYS = 2_048


def largest(store: "Store", start: str, limit: int) -> tuple[list[tuple[str, int]], str | None]:
    """Of the next PAGE_KEYS keys from ``start`` on, up to ``limit`` with the largest values, each with its bytes.

    The largest first; and from where to go on, None: those were the last.
    """
    keys = list(islice(store.keys_between(start, None), PAGE_KEYS + 1))
    following = keys.pop() if len(keys) > PAGE_KEYS else None
    find = store.find
    sizes = [(len(head.value), key) for key in keys if (head := find(key)) is not None and head.value is not None]
    return [(key, size) for size, key in nlargest(limit, sizes)], following
