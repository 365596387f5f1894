"""The rules for each kind of request before there was one table, as they were in 8 files of the first version; but for
their cost, which is high unless a rule says otherwise.

``test_table.py`` compares the table with them on random requests. A request that is added later has no line here.
"""

from collections.abc import Collection

from kvd.protocol import messages
from kvd.protocol.messages import AnyRequest
from kvd.requests.access import READ, WATCH, WRITE, Grant

# All others take any time.
FIXED = frozenset(
    (messages.Hello, messages.Attach, messages.Ping, messages.Get, messages.Increment, messages.Begin, messages.End)
)
KEYED = frozenset(
    (messages.GetMany, messages.Fetch, messages.Set, messages.Delete, messages.Commit, messages.Touch, messages.Ttl)
)
SEES_ALL = frozenset((messages.Scan, messages.Begin, messages.Largest))
SHOWS_NOTHING = frozenset((messages.Ping, messages.Attach))
SHOWS_KEYS = frozenset((messages.Get, messages.GetMany, messages.Fetch))
PAGES = frozenset((messages.Scan, messages.History))
VALUELESS = frozenset((messages.Set, messages.Delete, messages.Touch, messages.Ttl, messages.Ping))
UNPREDICTABLE = frozenset(
    (
        *(messages.Hello, messages.Log, messages.Metrics, messages.Exposition, messages.Status, messages.Reload),
        *(messages.SlowLog, messages.Largest, messages.Hottest),
    )
)
WRITING = frozenset((messages.Set, messages.Delete, messages.Increment, messages.Commit, messages.Touch))
# Their handlers check the right to administer.
ADMINISTRATIVE = frozenset(
    (
        *(messages.Reload, messages.Access, messages.SlowLog, messages.Largest, messages.Hottest),
        *(messages.Checkpoint, messages.Backup, messages.Shutdown),
    )
)
ELSEWHERE = ADMINISTRATIVE | {
    *(messages.Hello, messages.Attach, messages.Ping, messages.Begin, messages.End, messages.VersionAt),
    *(messages.Metrics, messages.Exposition, messages.Status),
}


def is_costly(request: AnyRequest) -> bool:
    """Whether a request of few keys may take a millisecond or more."""
    match request:
        case messages.GetMany() | messages.Fetch():
            return request.at is not None
        case messages.Commit():
            return bool(request.ranges)
    return type(request) not in FIXED | KEYED


def sees_all(request: AnyRequest) -> bool:
    """Whether a request may show keys that it does not name."""
    kind = type(request)
    return kind in SEES_ALL or (kind is messages.Commit and bool(request.ranges))  # type: ignore[union-attr]


def written_keys(request: AnyRequest) -> Collection[str]:
    """The keys that a request may change."""
    match request:
        case messages.Set():
            return request.entries
        case messages.Commit():
            return request.writes
        case messages.Delete() | messages.Touch():
            return request.keys
        case messages.Increment():
            return (request.key,)
    return ()


def named_keys(request: AnyRequest) -> Collection[str]:
    """The keys that a request reads or may change, one by one."""
    match request:
        case messages.Get() | messages.History():
            return (request.key,)
        case messages.GetMany() | messages.Fetch() | messages.Ttl():
            return request.keys
        case messages.Commit():
            return [*request.writes, *(request.reads or ())]
    return written_keys(request)


def quoted_keys(request: AnyRequest) -> Collection[str]:
    """The keys that the slow log shows."""
    match request:
        case messages.Scan() | messages.Largest():
            return (request.start,) if request.start else ()
        case messages.Watch():
            return (request.prefix,) if request.prefix else ()
    return named_keys(request)


def may_run(request: AnyRequest, grant: Grant) -> bool:
    """Whether every key that a request reads, writes or reveals is allowed."""
    match request:
        case messages.Get() | messages.History():
            return grant.may(READ, (request.key,))
        case messages.GetMany() | messages.Fetch() | messages.Ttl():
            return grant.may(READ, request.keys)
        case messages.Set():
            return grant.may(WRITE, request.entries)
        case messages.Delete() | messages.Touch():
            return grant.may(WRITE, request.keys)
        case messages.Increment():
            return grant.may(WRITE, (request.key,)) and grant.may(READ, (request.key,))
        case messages.Commit():
            return (
                grant.may(WRITE, request.writes)
                and grant.may(READ, request.reads or ())
                and all(grant.may_range(READ, *each) for each in request.ranges or ())
            )
        case messages.Scan():
            return grant.may_range(READ, request.start, request.end)
        case messages.Log():
            return grant.may_range(READ, "", None)
        case messages.Watch():
            return grant.may_prefix(WATCH, request.prefix)
    return type(request) in ELSEWHERE
