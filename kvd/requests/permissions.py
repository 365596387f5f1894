"""Who may run which request, judged by its row in the table."""

import logging
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from operator import attrgetter
from typing import TypeVar

from kvd.protocol import messages
from kvd.protocol.messages import AnyRequest
from kvd.requests.access import ADMINISTER, READ, RIGHTS, WRITE, Grant
from kvd.requests.errors import RequestError
from kvd.requests.peer import Peer
from kvd.requests.table import TABLE, Row, no_keys, no_ranges
from kvd.requests.turns import Steps

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_GETS, _SETS = {messages.Get}, {messages.Set}
_key = attrgetter("key")
_entries = attrgetter("entries")
# How many keys, or ranges, are checked in one step.
_STEP = 256
# How much of a key a denial shows.
_SHOWN_CHARACTERS = 100


def permits_all(requests: Sequence[AnyRequest], grant: Grant) -> bool:
    """Whether ``grant`` permits all of ``requests``: ``permits`` for each, but fast for many gets or many sets."""
    if len(requests) == 1:
        return permits(requests[0], grant)
    if requests:
        kinds = set(map(type, requests))
        if kinds == _GETS:
            return grant.may(READ, list(map(_key, requests)))
        if kinds == _SETS:
            return grant.may(WRITE, list(chain.from_iterable(map(_entries, requests))))
    return all(permits(request, grant) for request in requests)


def permits(request: AnyRequest, grant: Grant) -> bool:
    """Whether ``grant`` permits every key that ``request`` reads, writes or reveals, and the right that it needs.

    A kind without a row is denied, so that a new kind cannot be forgotten.
    """
    kind = type(request)
    if kind is messages.Get:  # the most common kinds first
        return grant.may(READ, (request.key,))  # type: ignore[union-attr]
    if kind is messages.Set:
        return grant.may(WRITE, request.entries)  # type: ignore[union-attr]
    row = TABLE.get(kind)
    if row is None or (row.right and not grant.has(row.right)):
        return False
    if row.writes is not no_keys and not grant.may(WRITE, row.writes(request)):
        return False
    if row.reads is not no_keys and not grant.may(READ, row.reads(request)):
        return False
    return row.ranges is no_ranges or all(grant.may_range(*each) for each in row.ranges(request))


def check(request: AnyRequest, peer: Peer) -> None:
    """Raise RequestError unless ``peer`` may make ``request``. A denial does not reveal which keys exist."""
    _check_right(request, peer)
    if peer.is_restricted and not permits(request, peer.grant):
        row, grant = TABLE[type(request)], peer.grant
        for right, keys in ((WRITE, row.writes(request)), (READ, row.reads(request))):
            if not grant.may(right, keys):
                raise _denied_key(right, keys, peer)
        raise _denied_range(row.ranges(request), peer)


def check_in_steps(request: AnyRequest, peer: Peer) -> Steps[None]:
    """As ``check``, for a request of many keys or ranges."""
    row = _check_right(request, peer)
    if not peer.is_restricted:
        return
    grant = peer.grant
    for right, keys in ((WRITE, row.writes(request)), (READ, row.reads(request))):
        for some in _batched(keys):
            if not grant.may(right, some):
                raise _denied_key(right, some, peer)
            yield
    for ranges in _batched(row.ranges(request)):
        if not all(grant.may_range(*each) for each in ranges):
            raise _denied_range(ranges, peer)
        yield


def _batched(items: Iterable[Item]) -> Iterable[list[Item]]:
    iterator = iter(items)
    while some := list(islice(iterator, _STEP)):
        yield some


def _check_right(request: AnyRequest, peer: Peer) -> Row:
    row = TABLE.get(type(request))
    if row is None:
        raise RequestError("forbidden", f"{type(request).__name__.lower()} is not a request that this server runs")
    if row.right and not peer.grant.has(row.right):
        raise _lacks_right(row.right, row.asks_for, peer)
    return row


def _denied_key(right: int, keys: Iterable[str], peer: Peer) -> RequestError:
    """The denial of the first of ``keys`` to which the right is missing. It says what the rules say, and no more."""
    key = next((key for key in islice(keys, _STEP) if not peer.grant.may(right, (key,))), None)
    return _denied(right, "one of the keys" if key is None else _quoted(key), peer)


def _denied_range(ranges: Iterable[tuple[int, str, str | None]], peer: Peer) -> RequestError:
    right, start, end = next(each for each in ranges if not peer.grant.may_range(*each))
    bounds = f"from {_quoted(start)} on" if end is None else f"from {_quoted(start)} to {_quoted(end)}"
    return _denied(right, f"all keys {bounds}", peer)


def _denied(right: int, what: str, peer: Peer) -> RequestError:
    name = next(name for name, bit in RIGHTS.items() if bit == right)
    return RequestError("forbidden", f"permission denied: {peer.identity.text} may not {name} {what}; it did not run")


def _quoted(key: str) -> str:
    return repr(key if len(key) <= _SHOWN_CHARACTERS else key[: _SHOWN_CHARACTERS - 1] + "…")


def _lacks_right(right: int, asks_for: str, peer: Peer) -> RequestError:
    if right != ADMINISTER:
        return RequestError("forbidden", f"permission denied: {peer.identity.text} may not use a near cache")
    logger.warning("refused %s: may not ask for %s", peer.name, asks_for)
    text = f"{asks_for} needs the right to administer: root and the daemon's own user have it, others only by a rule"
    return RequestError("forbidden", text)
