"""One version of a key's value, and the chain of older versions that it leads to.

``gc=False``: the garbage collector never visits a head, so a million keys cost its collections nothing (a full
collection over a million tracked objects took 280 ms). That is safe because a chain only points backwards in time, and
so holds no cycle.
"""

from typing import cast

import msgspec

from kvd.store.steps import Steps

# One step follows about this many links from a version to the one before it; each may be a cache miss.
LINKS = 4_096


class _Forgotten:
    """Stands in for a value that is gone. It is not bytes, so code that takes it for a value fails at once."""

    def __repr__(self) -> str:
        return "FORGOTTEN"


# What a superseded head has in place of a value that was not kept (``retention.py``). No current head has it.
FORGOTTEN = cast(bytes, _Forgotten())


class Head(msgspec.Struct, gc=False, eq=False):
    """The value that ``key`` took at ``version``.

    ``value`` is None for a tombstone, and FORGOTTEN for a superseded value that was not kept. ``previous`` is the head
    that this one superseded, as long as the history window can still show it.
    """

    key: str
    value: bytes | None
    version: int
    previous: "Head | None"

    def at(self, version: int) -> "Head | None":
        """Return the newest head of this chain at or below ``version``; None if the key did not exist then."""
        head: Head | None = self
        while head is not None and head.version > version:
            head = head.previous
        return head

    def known_since(self) -> int:
        """Return the oldest version of this chain from which on all its values are known."""
        head = self
        while (previous := head.previous) is not None and previous.value is not FORGOTTEN:
            head = previous
        return head.version


def head_at(head: Head | None, at: int) -> Steps[Head | None]:
    """Return the newest head of a chain at or below ``at``, as ``Head.at`` does."""
    links = 0
    while head is not None and head.version > at:
        head = head.previous
        links += 1
        if links == LINKS:
            links = 0
            yield
    return head
