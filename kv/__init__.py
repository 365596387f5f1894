"""kvd for programs: ``db = kv.connect()``, then ``db.get``, ``db.set``, ``db.scan`` and the rest of Client.

Names are imported when first used, so that the command line starts without what it does not need.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.client import Client, connect
    from kv.errors import (
        Busy,
        ConnectionLost,
        Forbidden,
        KvdError,
        NotFound,
        ProtocolError,
        Refused,
        SnapshotGone,
        TimedOut,
        Unavailable,
    )
    from kv.operations import Item

__all__ = [
    "Busy",
    "Client",
    "ConnectionLost",
    "Forbidden",
    "Item",
    "KvdError",
    "NotFound",
    "ProtocolError",
    "Refused",
    "SnapshotGone",
    "TimedOut",
    "Unavailable",
    "connect",
]

_HOMES = {"connect": "kv.client", "Client": "kv.client", "Item": "kv.operations"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'kv' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES.get(name, "kv.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
