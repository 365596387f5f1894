"""What each request needs the right to. The one place that decides whether somebody may have it run."""

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter

from kvd.protocol import messages
from kvd.protocol.messages import AnyRequest
from kvd.requests.access import CACHE, READ, WATCH, WRITE, Grant
from kvd.requests.errors import RequestError
from kvd.requests.keys import written_keys

_OF_ALL_KEYS = "", None
# What says nothing of any key, and what is checked where it runs: administrators' requests, and attaching.
_ELSEWHERE = frozenset(
    (
        messages.Hello, messages.Attach, messages.Ping, messages.Begin, messages.End, messages.VersionAt,
        messages.Metrics, messages.Exposition, messages.Status, messages.Reload, messages.Access, messages.SlowLog,
        messages.Largest, messages.Hottest, messages.Checkpoint, messages.Backup, messages.Shutdown,
    )
)  # fmt: skip
_GETS, _SETS = {messages.Get}, {messages.Set}
_key = attrgetter("key")
_entries = attrgetter("entries")


def may_run_all(requests: Sequence[AnyRequest], grant: Grant) -> bool:
    """Whether all of ``requests`` may run: as ``may_run`` of each, but quick for many gets, or many sets."""
    if len(requests) == 1:
        return may_run(requests[0], grant)
    if requests:
        kinds = set(map(type, requests))
        if kinds == _GETS:
            return grant.may(READ, list(map(_key, requests)))
        if kinds == _SETS:
            return grant.may(WRITE, list(chain.from_iterable(map(_entries, requests))))
    return all(may_run(request, grant) for request in requests)


def may_run(request: AnyRequest, grant: Grant) -> bool:
    """Whether every key that ``request`` reads, writes or tells of is allowed to whom ``grant`` is for.

    Nothing is that is not named here, so that a new kind of request cannot be forgotten.
    """
    if type(request) is messages.Get:  # the commonest first: a match looks at one pattern after the other
        return grant.may(READ, (request.key,))
    if type(request) is messages.Set:
        return grant.may(WRITE, request.entries)
    match request:
        case messages.History():
            return grant.may(READ, (request.key,))
        case messages.GetMany() | messages.Fetch() | messages.Ttl():
            return grant.may(READ, request.keys)
        case messages.Delete() | messages.Touch():
            return grant.may(WRITE, written_keys(request))
        case messages.Increment():  # its answer is what was there, and more
            return grant.may(WRITE, (request.key,)) and grant.may(READ, (request.key,))
        case messages.Commit():
            return (
                grant.may(WRITE, request.writes)
                and grant.may(READ, request.reads or ())
                and all(grant.may_range(READ, *span) for span in request.ranges or ())
            )
        case messages.Scan():
            return grant.may_range(READ, request.start, request.end)
        case messages.Log():
            return grant.may_range(READ, *_OF_ALL_KEYS)
        case messages.Watch():
            return grant.may_prefix(WATCH, request.prefix)
    return type(request) in _ELSEWHERE


def check(request: AnyRequest, grant: Grant | None) -> None:
    """Raise Refusal unless ``request`` may run. None: everything may. What is denied is never told to exist or not."""
    if grant is not None and not may_run(request, grant):
        raise RequestError("forbidden", f"no right to what {type(request).__name__.lower()} asks for; it did not run")


def may_keep(grant: Grant | None, keys: list[str]) -> list[bool]:
    """Which of ``keys`` a near cache may keep."""
    return [grant is None or bool(grant.rights(key) & CACHE) for key in keys]
