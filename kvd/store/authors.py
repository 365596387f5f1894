"""Who made a commit, as the history shows it."""

import msgspec


class Author(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """``uid`` and ``pid`` as the kernel reports them; None where it reports none (TCP, the daemon itself).

    ``name``: the name of the process or of the TCP peer, or what the daemon did by itself.
    """

    uid: int | None
    pid: int | None
    name: str


NO_AUTHOR = Author(None, None, "")
EXPIRED = Author(None, None, "expired")
EVICTED = Author(None, None, "evicted")
RESTARTED = Author(None, None, "restarted")
