"""What a reply has to wait for, by what its requests show and what they ask for.

shows nothing            the replies of ping and attach
shows some keys          the versions of these keys, unless one of them is absent
shows the rest           the current version
"""

from collections.abc import Sequence

from kvd.engine.database import Database
from kvd.engine.durability import NO_WAIT, Durability, LogPosition
from kvd.protocol import messages
from kvd.protocol.messages import AnyRequest
from kvd.requests.keys import written_keys

_SHOWS_NOTHING = frozenset((messages.Ping, messages.Attach))
_SHOWS_KEYS = frozenset((messages.Get, messages.GetMany, messages.Fetch))


def position_for(durability: Durability, database: Database, requests: Sequence[AnyRequest]) -> LogPosition:
    """What a reply to these requests, which have just run, has to wait for; NO_WAIT if it may leave."""
    version = durability.newest()
    if durability.is_settled(version):
        return NO_WAIT
    position = LogPosition(0, 0)
    for request in requests:
        _add(position, durability, database, request, version)
    return NO_WAIT if durability.has_reached(position) else position


def _add(position: LogPosition, durability: Durability, database: Database, request: AnyRequest, version: int) -> None:
    kind = type(request)
    if kind in _SHOWS_NOTHING:
        return
    shown = min(_version_of(database, request), version) if kind in _SHOWS_KEYS else version
    how = getattr(request, "how", None)
    sync = _sync_of(durability, database, request) if how is None or how.sync is None else how.sync
    position.written = max(position.written, shown)
    if sync or shown > durability.ceiling_for(shown):
        position.synced = max(position.synced, shown)


def _sync_of(durability: Durability, database: Database, request: AnyRequest) -> bool:
    """Whether a request that does not say so itself waits for the disk."""
    rules = database.memory.rules
    keys = written_keys(request) if rules.have_syncs else ()
    if not keys:
        return durability.always
    # Several keys wait for what the strictest of them waits for.
    said = [None if (rule := rules.rule_of(key)) is None else rule.sync for key in keys]
    return any(durability.always if sync is None else sync for sync in said)


def _version_of(database: Database, request: AnyRequest) -> int:
    """The newest version that a read of keys shows; the current one if it shows that a key is absent."""
    keys = [request.key] if isinstance(request, messages.Get) else request.keys  # type: ignore[union-attr]
    store, newest = database.store, 0
    for key in keys:
        head = store.find(key)
        if head is None:
            return store.version
        newest = max(newest, head.version)
    return newest
