"""One version of a key's value, and the chain of older ones behind it.

``gc=False``: the garbage collector never visits a head, so a million keys cost its collections nothing (a full
collection over a million tracked objects took 280 ms). That is safe because a chain only points backwards in
time and so holds no cycle.
"""

import msgspec


class Head(msgspec.Struct, gc=False, eq=False):
    """The value that ``key`` took at ``version``.

    ``value`` is None for a tombstone. ``previous`` is the version it superseded, as long as the history window
    can still show that one.
    """

    key: str
    value: bytes | None
    version: int
    previous: "Head | None"

    def at(self, version: int) -> "Head | None":
        """The newest of this chain at or below ``version``; None where the key did not exist then."""
        head: Head | None = self
        while head is not None and head.version > version:
            head = head.previous
        return head
