"""Who made a commit, as the history shows it."""

import msgspec


class Author(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """``uid`` and ``pid`` by the kernel's word, None where it has none (TCP, the server itself).

    ``name``: of the process, of the TCP peer, or of what the server did by itself.
    """

    uid: int | None
    pid: int | None
    name: str


NOBODY = Author(None, None, "")
EXPIRED = Author(None, None, "expired")
EVICTED = Author(None, None, "evicted")
RESTARTED = Author(None, None, "restarted")
# Names that nobody else's commits go by.
OWN_NAMES = frozenset(author.name for author in (EXPIRED, EVICTED, RESTARTED))
