"""How large replies are on the wire, and how large they can become, without encoding what may be gigabytes."""

from collections.abc import Set as AbstractSet
from typing import Any

from kvd.protocol import messages
from kvd.protocol.messages import AnyRequest, encode_replies
from kvd.requests.limits import PAGE_BYTES
from kvd.requests.table import TABLE, ReplySize

VALUE_HEAD_BYTES = ARRAY_BYTES = 5  # the longest head in MessagePack
# What fetch adds to each value, at most. An error reply takes less than this for each byte of its request.
VERSION_BYTES = 33
# The part of VERSION_BYTES that serves near caches, if there are any.
SLOT_BYTES = 12
FETCHED_BYTES = VALUE_HEAD_BYTES + VERSION_BYTES - SLOT_BYTES
ABSENT_BYTES = 6  # for a key that fetch did not find
# A page counts the bytes of keys and values. With version and heads, an item of one byte takes about twenty.
PAGE_OVERHEAD = 20
# A conflict names up to a hundred keys, each with versions, time and author. The keys have up to 4,096 characters in
# all, but the last one may overshoot.
CONFLICT_BYTES = 112 * 1024


def _kinds_with(size: ReplySize) -> frozenset[type]:
    return frozenset(kind for kind, row in TABLE.items() if row.reply is size)


_FIXED, _PAGES, _FREE = map(_kinds_with, (ReplySize.FIXED, ReplySize.PAGE, ReplySize.FREE))
_MAY_CONFLICT = frozenset(kind for kind, row in TABLE.items() if row.may_conflict)


def may_exceed(budget_bytes: int, kinds: AbstractSet[type], count: int, frame_bytes: int, largest_bytes: int) -> bool:
    """Whether the replies to ``count`` requests of these kinds may exceed the budget, without a look at each request.

    Each value in them costs its request at least one byte of ``frame_bytes``, and none is larger than
    ``largest_bytes``: the largest ever stored, or the frame. The last value of a page may overshoot it.
    """
    if kinds <= _FIXED:
        largest_bytes = 0
    total_bytes = frame_bytes * (largest_bytes + VERSION_BYTES)
    if not kinds.isdisjoint(_MAY_CONFLICT):
        total_bytes += count * CONFLICT_BYTES
    if not kinds.isdisjoint(_PAGES):
        total_bytes += count * (PAGE_BYTES * PAGE_OVERHEAD + largest_bytes)
    return total_bytes > budget_bytes or not kinds.isdisjoint(_FREE)


def reply_bytes(request: AnyRequest, reply: Any) -> int:  # noqa: ANN401 - a reply may be anything
    """How many bytes a reply takes."""
    if type(reply) is bytes:
        return len(reply) + VALUE_HEAD_BYTES
    if type(request) is messages.GetMany and type(reply) is list:
        return sum(len(value or b"") + VALUE_HEAD_BYTES for value in reply) + ARRAY_BYTES
    if type(request) is messages.Fetch and type(reply) is list:
        return sum(map(fetched_bytes, reply)) + ARRAY_BYTES
    return len(encode_replies(reply))  # small, or a page


def fetched_bytes(item: tuple[bytes | None, int, int | None, int | None, int | None]) -> int:
    """How many bytes an item of the reply to fetch takes, at most."""
    value, slot = item[0], item[2]
    size = ABSENT_BYTES if value is None else len(value) + FETCHED_BYTES
    return size if slot is None else size + SLOT_BYTES
