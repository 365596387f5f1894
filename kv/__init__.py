"""kvd for programs: ``db = kv.connect()``, then ``db.get``, ``db.set``, ``db.scan`` and the rest of Client.

Names are imported at their first use, so that the command line starts without those that it does not need.
"""

import os
from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv import aio as aio
    from kv.aio import AsyncClient, AsyncTransaction
    from kv.aio import connect as connect_async
    from kv.api.snapshots import Snapshot
    from kv.api.transactions import Transaction
    from kv.blocking.client import Client
    from kv.blocking.connect import connect
    from kv.blocking.tls import TlsFiles
    from kv.blocking.watch import Watch
    from kv.errors import (
        Busy,
        CommitUnknown,
        Conflict,
        ConnectionLost,
        Forbidden,
        ForkedClient,
        KvdError,
        LockLost,
        NotANumber,
        NotFound,
        ProtocolError,
        Refused,
        SnapshotGone,
        TimedOut,
        Unavailable,
    )
    from kv.near_cache.aio import AsyncNearClient
    from kv.near_cache.blocking import NearClient
    from kv.near_cache.cache import NearCache, NearCacheStats
    from kv.near_cache.entries import NearCacheLimits
    from kv.results import Author, Change, Commit, ConflictEntry, HotKeys, Item, SlowFrame, Version, Versioned
    from kv.settings import ClientSettings
    from kvd.protocol import Position

__all__ = [
    "AsyncClient",
    "AsyncNearClient",
    "AsyncTransaction",
    "Author",
    "Busy",
    "Change",
    "Client",
    "ClientSettings",
    "Commit",
    "CommitUnknown",
    "Conflict",
    "ConflictEntry",
    "ConnectionLost",
    "Forbidden",
    "ForkedClient",
    "HotKeys",
    "Item",
    "KvdError",
    "LockLost",
    "NearCache",
    "NearCacheLimits",
    "NearCacheStats",
    "NearClient",
    "NotANumber",
    "NotFound",
    "Position",
    "ProtocolError",
    "Refused",
    "SlowFrame",
    "Snapshot",
    "SnapshotGone",
    "TimedOut",
    "TlsFiles",
    "Transaction",
    "Unavailable",
    "Version",
    "Versioned",
    "Watch",
    "connect",
    "connect_async",
]

_HOMES = {
    "connect": "kv.blocking.connect",
    "Client": "kv.blocking.client",
    "connect_async": "kv.aio",
    "AsyncClient": "kv.aio",
    "ClientSettings": "kv.settings",
    "AsyncTransaction": "kv.aio",
    "AsyncNearClient": "kv.near_cache.aio",
    "NearClient": "kv.near_cache.blocking",
    **dict.fromkeys(("NearCache", "NearCacheStats"), "kv.near_cache.cache"),
    "NearCacheLimits": "kv.near_cache.entries",
    "Position": "kvd.protocol",
    "Snapshot": "kv.api.snapshots",
    "TlsFiles": "kv.blocking.tls",
    "Transaction": "kv.api.transactions",
    "Watch": "kv.blocking.watch",
    **dict.fromkeys(("Author", "Change", "Commit", "ConflictEntry", "HotKeys", "Item"), "kv.results"),
    **dict.fromkeys(("SlowFrame", "Version", "Versioned"), "kv.results"),
}


# Held while parts of the client are imported. A fork waits for it: its child could never import what another thread was
# importing at the fork, because the lock on that module would stay held.
importing = RLock()


def _release() -> None:
    try:
        importing.release()
    except RuntimeError:
        pass  # forked by C code that calls only some of the hooks


os.register_at_fork(before=importing.acquire, after_in_parent=_release, after_in_child=_release)


def __getattr__(name: str) -> object:
    if name not in __all__ and name != "aio":
        raise AttributeError(f"module 'kv' has no attribute {name!r}")
    from importlib import import_module

    with importing:
        import_module("kv.loading")
        if name == "aio":
            return import_module("kv.aio")
        home = import_module(_HOMES.get(name, "kv.errors"))
        value = home.connect if name == "connect_async" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "aio"])
