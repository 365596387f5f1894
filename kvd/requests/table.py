"""One row for each kind of request: every decision of the daemon that depends on the kind is read from here.

        which handler runs it              run
        which rights it needs              reads, writes, ranges, right
        which keys it names                reads, writes
        what it may cost                   cost, counts, sees_all
        what its reply waits for           shows
        how large its reply can become     reply, may_conflict
        what telemetry samples             hot_reads, writes; quotes

A kind without a row does not run. By default a kind is costly and its reply has an unpredictable size. So a new kind is
slow until its row states its cost, and it never bypasses a limit.

Three classes of cost: the same whatever the request says (``fixed``); a time for each key (``each_key``, and those that
count entries); and anything (``unbounded``, the default). A costly request runs alone and in steps (``sliced.py``).

To add a request: a struct in ``kvd/protocol/messages.py``, its handler, its row here, its line in docs/protocol.md.
"""

import enum
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

from kvd.protocol import messages as m
from kvd.protocol.ranges import prefix_end
from kvd.requests.access import ADMINISTER, CACHE, READ, WATCH
from kvd.requests.admin import AdminHandlers
from kvd.requests.authentication import Authentication
from kvd.requests.peer import Peer
from kvd.requests.reads import ReadHandlers
from kvd.requests.streams import StreamHandlers
from kvd.requests.writes import WriteHandlers

Keys = Callable[[Any], Collection[str]]
Ranges = Callable[[Any], Iterable[tuple[int, str, str | None]]]
Predicate = Callable[[Any], bool]
Cost = Callable[[Any], int]
Handler = Callable[[Any, Peer], Any]


class Shows(enum.Enum):
    """What a reply reveals, and so how durable the store must be before the reply may leave."""

    NOTHING = enum.auto()
    KEYS = enum.auto()  # the versions of the keys that it reads
    VERSION = enum.auto()  # the current version


class ReplySize(enum.Enum):
    """How the size of a reply is bounded."""

    FIXED = enum.auto()  # small: the reply holds no value
    VALUES = enum.auto()  # one value for each key that the request names
    PAGE = enum.auto()  # a page; its last value may overshoot
    FREE = enum.auto()  # not bounded by anything in the request


def no_keys(_: Any) -> Collection[str]:  # noqa: ANN401 - any request
    """No key."""
    return ()


def no_ranges(_: Any) -> Iterable[tuple[int, str, str | None]]:  # noqa: ANN401
    """No range."""
    return ()


def no_counts(_: Any) -> Collection[int]:  # noqa: ANN401
    """Nothing that is counted."""
    return ()


# A request that may take longer than this, in microseconds, is costly.
CHEAP_US = 500


def unbounded(_: Any) -> int:  # noqa: ANN401
    """The cost of a request that may take any time."""
    return 1 << 20


def fixed(cost_us: int) -> Cost:
    """The cost of a request that always takes about the same time."""
    return lambda _: cost_us


def each_key(cost_us: int) -> Cost:
    """The cost of a request that takes this long for each of its ``keys``."""
    return lambda request: 2 + cost_us * len(request.keys)


def always(_: Any) -> bool:  # noqa: ANN401
    """True, whatever the request says."""
    return True


def never(_: Any) -> bool:  # noqa: ANN401
    """False, whatever the request says."""
    return False


class Row(NamedTuple):
    """The properties of one kind of request.

    ``reads`` and ``writes``: the single keys that it reads, and the keys that it may change; each key needs that right.
    ``ranges``: the ranges that it touches, as (right needed, first key, first key after the range or None). ``right``:
    a right that the client must have (see ``Grant.has``); a refusal names ``asks_for``. ``cost``: how many microseconds
    it may take, roughly. ``counts``: how many keys, or ranges, it names; they are limited before anything else is
    computed from them. ``sees_all``: it may show keys that it does not name. ``hot_reads``: the keys that count as read
    for ``kv top-keys``. ``quotes``: the keys that the slow log prints; by default the keys that it names.
    """

    run: Callable[[Any, Any, Peer], Any]
    reads: Keys = no_keys
    writes: Keys = no_keys
    ranges: Ranges = no_ranges
    right: int = 0
    asks_for: str = ""
    cost: Cost = unbounded
    counts: Callable[[Any], Collection[int]] = no_counts
    sees_all: Predicate = never
    shows: Shows = Shows.VERSION
    reply: ReplySize = ReplySize.FREE
    may_conflict: bool = False
    hot_reads: Keys = no_keys
    quotes: Keys = no_keys

    def named_keys(self, request: Any) -> Collection[str]:  # noqa: ANN401
        """The single keys that ``request`` reads or may change."""
        if self.reads is no_keys or self.reads is self.writes:
            return self.writes(request)
        return self.reads(request) if self.writes is no_keys else [*self.writes(request), *self.reads(request)]


def _key(request: Any) -> Collection[str]:  # noqa: ANN401
    return (request.key,)


def _keys(request: Any) -> Collection[str]:  # noqa: ANN401
    keys: list[str] = request.keys
    return keys


def _entries(request: m.Set) -> Collection[str]:
    return request.entries


def _commit_writes(request: m.Commit) -> Collection[str]:
    return request.writes


def _commit_reads(request: m.Commit) -> Collection[str]:
    return request.reads or ()


def _commit_ranges(request: m.Commit) -> Iterable[tuple[int, str, str | None]]:
    return ((READ, start, end) for start, end in request.ranges or ())


def _has_ranges(request: m.Commit) -> bool:
    return bool(request.ranges)


def _count_keys(request: Any) -> Collection[int]:  # noqa: ANN401
    return (len(request.keys),)


def _count_entries(request: m.Set) -> Collection[int]:
    return len(request.entries), _count_ttls(request.how)


def _count_commit(request: m.Commit) -> Collection[int]:
    return len(request.writes), len(request.reads or ()), len(request.ranges or ()), _count_ttls(request.how)


def _count_ttls(how: m.WriteOptions | None) -> int:
    return 0 if how is None or how.ttls is None else len(how.ttls)


def _cost_of_reads(request: m.GetMany) -> int:
    return unbounded(request) if request.at is not None else 2 + len(request.keys)  # a key may have many versions


def _cost_of_fetch(request: m.Fetch) -> int:
    return 2 * _cost_of_reads(request)  # type: ignore[arg-type]


def _cost_of_set(request: m.Set) -> int:
    return 2 + 2 * len(request.entries) + _count_ttls(request.how)


def _cost_of_commit(request: m.Commit) -> int:
    if request.ranges:
        return unbounded(request)
    return 5 + 4 * len(request.writes) + 2 * len(request.reads or ()) + _count_ttls(request.how)


def _scanned(request: m.Scan) -> Iterable[tuple[int, str, str | None]]:
    return ((READ, request.start, request.end),)


def _all_keys(_: m.Log) -> Iterable[tuple[int, str, str | None]]:
    return ((READ, "", None),)


def _watched(request: m.Watch) -> Iterable[tuple[int, str, str | None]]:
    return ((WATCH, request.prefix, prefix_end(request.prefix)),)


def _start(request: m.Scan | m.Largest) -> Collection[str]:
    return (request.start,) if request.start else ()


def _prefix(request: m.Watch) -> Collection[str]:
    return (request.prefix,) if request.prefix else ()


_FIXED, _VALUES, _PAGE = ReplySize.FIXED, ReplySize.VALUES, ReplySize.PAGE

TABLE: dict[type[m.Request], Row] = {
    m.Hello: Row(Authentication.hello, cost=fixed(5)),
    m.Attach: Row(StreamHandlers.attach, right=CACHE, cost=fixed(20), shows=Shows.NOTHING, reply=_VALUES),
    m.Ping: Row(AdminHandlers.ping, cost=fixed(1), shows=Shows.NOTHING, reply=_FIXED),
    m.Get: Row(ReadHandlers.get, reads=_key, cost=fixed(1), shows=Shows.KEYS, reply=_VALUES, hot_reads=_key),
    m.GetMany: Row(
        ReadHandlers.get_many,
        reads=_keys,
        cost=_cost_of_reads,
        counts=_count_keys,
        shows=Shows.KEYS,
        reply=_VALUES,
        hot_reads=_keys,
    ),
    m.Fetch: Row(
        ReadHandlers.fetch,
        reads=_keys,
        cost=_cost_of_fetch,
        counts=_count_keys,
        shows=Shows.KEYS,
        reply=_VALUES,
        hot_reads=_keys,
    ),
    m.Set: Row(WriteHandlers.set, writes=_entries, cost=_cost_of_set, counts=_count_entries, reply=_FIXED),
    m.Delete: Row(WriteHandlers.delete, writes=_keys, cost=each_key(4), counts=_count_keys, reply=_FIXED),
    m.Increment: Row(WriteHandlers.increment, reads=_key, writes=_key, cost=fixed(5), reply=_VALUES),
    m.Commit: Row(
        WriteHandlers.commit,
        reads=_commit_reads,
        writes=_commit_writes,
        ranges=_commit_ranges,
        cost=_cost_of_commit,
        counts=_count_commit,
        sees_all=_has_ranges,
        reply=_VALUES,
        may_conflict=True,
    ),
    m.Begin: Row(ReadHandlers.begin, cost=fixed(5), sees_all=always, reply=_VALUES),
    m.End: Row(ReadHandlers.end, cost=fixed(5), reply=_VALUES),
    m.Scan: Row(ReadHandlers.scan, ranges=_scanned, sees_all=always, reply=_PAGE, quotes=_start),
    m.Touch: Row(WriteHandlers.touch, writes=_keys, cost=each_key(8), counts=_count_keys, reply=_FIXED),
    m.Ttl: Row(ReadHandlers.ttl, reads=_keys, cost=each_key(4), counts=_count_keys, reply=_FIXED),
    m.History: Row(ReadHandlers.history, reads=_key, reply=_PAGE),
    m.Log: Row(ReadHandlers.log, ranges=_all_keys),
    m.VersionAt: Row(ReadHandlers.version_at, reply=_VALUES),
    m.Watch: Row(StreamHandlers.watch, ranges=_watched, reply=_VALUES, quotes=_prefix),
    m.Metrics: Row(AdminHandlers.metrics),
    m.Exposition: Row(AdminHandlers.exposition),
    m.Status: Row(AdminHandlers.status),
    m.Reload: Row(AdminHandlers.reload, right=ADMINISTER, asks_for="reload"),
    m.Access: Row(AdminHandlers.explain_access, right=ADMINISTER, asks_for="access", reply=_VALUES),
    m.SlowLog: Row(AdminHandlers.list_slow_frames, right=ADMINISTER, asks_for="slowlog"),
    m.Largest: Row(
        AdminHandlers.list_largest_keys, right=ADMINISTER, asks_for="the largest keys", sees_all=always, quotes=_start
    ),
    m.Hottest: Row(AdminHandlers.list_hottest_keys, right=ADMINISTER, asks_for="the hottest keys"),
    m.Checkpoint: Row(AdminHandlers.checkpoint, right=ADMINISTER, asks_for="checkpoint", reply=_VALUES),
    m.Backup: Row(StreamHandlers.backup, right=ADMINISTER, asks_for="backup", reply=_VALUES),
    m.Shutdown: Row(AdminHandlers.shutdown, right=ADMINISTER, asks_for="shutdown", reply=_VALUES),
}

# The hot paths ask a set, not rows.
MAY_SEE_ALL = frozenset(kind for kind, row in TABLE.items() if row.sees_all is not never)
# The replies to these hold the values of keys that they name.
GIVING_VALUES = frozenset((m.Get, m.GetMany, m.Fetch))


def cost_us(request: m.AnyRequest) -> int:
    """How many microseconds a request may take, roughly."""
    return TABLE[type(request)].cost(request)


def is_costly(request: m.AnyRequest) -> bool:
    """Whether a request may take so long that it runs alone, and in slices."""
    return TABLE[type(request)].cost(request) > CHEAP_US


def sees_all(request: m.AnyRequest) -> bool:
    """Whether a request may show keys that it does not name."""
    kind = type(request)
    return kind in MAY_SEE_ALL and TABLE[kind].sees_all(request)


def named_keys(request: m.AnyRequest) -> Collection[str]:
    """The single keys that a request reads or may change; keys of ranges are not included."""
    return TABLE[type(request)].named_keys(request)


def written_keys(request: m.AnyRequest) -> Collection[str]:
    """The keys that a request may change."""
    return TABLE[type(request)].writes(request)


def sampled_keys(request: m.AnyRequest) -> tuple[Collection[str], Collection[str]]:
    """The keys that count as read by a request, and those that count as written, for ``kv top-keys``."""
    row = TABLE[type(request)]
    return row.hot_reads(request), row.writes(request)


def quoted_keys(request: m.AnyRequest) -> Collection[str]:
    """The keys by which people recognise a request in the slow log."""
    row = TABLE[type(request)]
    return row.named_keys(request) if row.quotes is no_keys else row.quotes(request)


def bind_handlers(*groups: object) -> dict[type, Handler]:
    """Return the handler of each kind of request, bound to the object of ``groups`` that has it as a method.

    Raises LookupError for a row whose handler belongs to none of them.
    """
    return {kind: _bound(row.run, groups) for kind, row in TABLE.items()}


def _bound(run: Callable[[Any, Any, Peer], Any], groups: tuple[object, ...]) -> Handler:
    for group in groups:
        if getattr(type(group), run.__name__, None) is run:
            handler: Handler = run.__get__(group)
            return handler
    raise LookupError(f"no object has the handler {run.__qualname__}")
