"""What a frame may cost, judged before anything is computed from it: whether it runs at once, or in steps.

Its kinds and the number of its requests come first, for most frames nothing else; then their costs by the table; then
the size of the values that they read, where any value is large.
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from operator import attrgetter
from typing import Any

from kvd.engine.database import Database
from kvd.engine.memory import QUICK_BYTES
from kvd.protocol import messages
from kvd.protocol.messages import AnyRequest
from kvd.requests.limits import LimitChecker
from kvd.requests.peer import Peer
from kvd.requests.table import CHEAP_US, GIVING_VALUES, cost_us, named_keys, unbounded

# No more requests run in one step.
PIECE_REQUESTS = 256
# A set of so many keys is cheap, whatever its options.
SMALL_SET = 128
# A frame of this size with nothing but gets and sets is cheap, whatever it holds; larger ones are looked at.
SMALL_FRAME_BYTES = 8 * 1024
# So many bytes of values may be sent in one step.
PIECE_VALUE_BYTES = 512 * 1024
# So many versions of a key are passed over in a microsecond.
_VERSIONS_A_US = 32
_GETS = {messages.Get}
_GETS_AND_SETS = {messages.Get, messages.Set}
_READS_OF_PAST = {messages.GetMany, messages.Fetch}
# What requests write.
_ENTRIES: dict[type, Callable[[Any], Mapping[str, bytes | None]]] = {
    messages.Set: attrgetter("entries"),
    messages.Commit: attrgetter("writes"),
}


class Costs:
    """Judges the requests to a database. ``needs_room``: whether room has to be made for what is written."""

    def __init__(
        self, database: Database, limits: LimitChecker, needs_room: Callable[[Mapping[str, bytes | None]], bool]
    ) -> None:
        self._store = database.store
        self._memory = database.memory
        self._limits = limits
        self._needs_room = needs_room

    def may_take_long(
        self, requests: Sequence[AnyRequest], kinds: AbstractSet[type], peer: Peer, frame_bytes: int
    ) -> bool:
        """Whether a frame has to run in steps. Of most frames only the kinds and the number of requests are looked at.

        The first frame of a peer that must authenticate runs in steps, too: only after hello its other requests may see
        anything, so they are expired for and judged then.
        """
        count = len(requests)
        if count == 1 and type(request := requests[0]) is messages.Set:
            return len(request.entries) > SMALL_SET or (
                (frame_bytes > QUICK_BYTES or self._memory.is_shrinking) and self._needs_room(request.entries)
            )
        if count == 1 and type(request) is messages.GetMany and request.at is None:
            key_count = len(request.keys)
            if key_count <= CHEAP_US and key_count * self._store.largest_value_bytes <= PIECE_VALUE_BYTES:
                return False
        if count > PIECE_REQUESTS and peer.is_authenticated:
            return count <= self._limits.limits.max_requests_per_frame
        if not peer.is_authenticated:
            return count > 1 and messages.Hello in kinds
        if (frame_bytes > QUICK_BYTES or self._memory.is_shrinking) and not kinds.isdisjoint(_ENTRIES):
            own = [_ENTRIES[type(request)](request) for request in requests if type(request) in _ENTRIES]
            if any(map(self._needs_room, own)):
                return True
        if kinds == _GETS:
            cost = count
        elif frame_bytes > SMALL_FRAME_BYTES or not kinds <= _GETS_AND_SETS:
            cost = sum(map(cost_us, requests))
            if cost > CHEAP_US and not kinds.isdisjoint(_READS_OF_PAST):
                cost = sum(self._by_versions(request, peer) for request in requests)
            if cost > CHEAP_US:
                return True
        else:
            cost = count
        if kinds.isdisjoint(GIVING_VALUES):
            return False
        largest_bytes = self._store.largest_value_bytes
        if not kinds <= GIVING_VALUES:
            largest_bytes = max(largest_bytes, frame_bytes)
        if cost * largest_bytes <= PIECE_VALUE_BYTES:
            return False
        return sum(map(self.value_bytes, requests)) > PIECE_VALUE_BYTES or not kinds <= GIVING_VALUES

    def value_bytes(self, request: AnyRequest) -> int:
        """How large the values are together that a cheap request reads."""
        if type(request) not in GIVING_VALUES:
            return 0
        heads = map(self._store.find, named_keys(request))
        return sum(len(head.value) for head in heads if head is not None and head.value is not None)

    def of(self, request: AnyRequest, peer: Peer) -> int:
        """How many microseconds a request may take, with the values that it reads as they are now."""
        cost = self._by_versions(request, peer)
        if cost <= CHEAP_US and (kind := type(request)) in _ENTRIES and self._needs_room(_ENTRIES[kind](request)):
            return unbounded(request)
        if cost <= CHEAP_US and cost * self._store.largest_value_bytes > PIECE_VALUE_BYTES:
            cost += self.value_bytes(request) * CHEAP_US // PIECE_VALUE_BYTES
        return cost

    def _by_versions(self, request: AnyRequest, peer: Peer) -> int:
        """The cost by the table; of a read of the past, by how many versions a key may have since then."""
        if type(request) not in _READS_OF_PAST or request.at is None:  # type: ignore[union-attr]
            return cost_us(request)
        newest, at = self._store.version, request.at  # type: ignore[union-attr]
        if at == messages.BEGUN:
            at = newest if peer.last_snapshot is None else peer.last_snapshot
        return (2 + len(request.keys)) * (1 + max(0, newest - at) // _VERSIONS_A_US)  # type: ignore[union-attr]
