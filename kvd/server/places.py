"""Who has a place among the connections, and whose turn it is to go when places are short.

        max_connections ├── the last RESERVED_PART   root and the daemon's own user alone
                        ├── a quarter at most        strangers: TCP peers that have not shown who they are
                        └── the rest                 everyone else, each user up to max_connections_per_uid

When the strangers' share is full, the oldest of them goes for the newest (sshd's MaxStartups refuses at random): a
client that shows its token at once gets in however many silent connections are opened. A peer of an open HTTP port is
a stranger for as long as it is connected.
"""

from collections import Counter
from collections.abc import Callable

from kvd.protocol.limits import Limits
from kvd.server.connection import Connection

_RESERVED_PART = 8
_MAX_RESERVED = 64
_STRANGERS_PART = 4
# How many connections without a place may read why.
_MAX_REJECTED = 128


class Places:
    """The places of all connections. ``limits`` returns the limits in force."""

    def __init__(self, limits: Callable[[], Limits]) -> None:
        self._limits = limits
        self._of_uid: Counter[int] = Counter()
        self._strangers: dict[Connection, None] = {}  # the oldest first
        self._rejected: set[Connection] = set()

    @property
    def reserved(self) -> int:
        """How many of the places are for root and the daemon's own user alone."""
        return min(self._limits().max_connections // _RESERVED_PART, _MAX_RESERVED)

    @property
    def max_strangers(self) -> int:
        """How many strangers may be connected at the same time."""
        return max(self._limits().max_connections // _STRANGERS_PART, 1)

    def add(self, connection: Connection, *, is_open: bool) -> None:
        """Count a new connection. ``is_open``: on TCP it never has to show who it is."""
        peer = connection.peer
        if peer.uid is not None:
            self._of_uid[peer.uid] += 1
        elif is_open or not peer.is_authenticated:
            self._strangers[connection] = None

    def note_authenticated(self, connection: Connection) -> None:
        """Count a connection no more as a stranger's."""
        self._strangers.pop(connection, None)

    def reject(self, connection: Connection) -> bool:
        """Give no place to a connection that reads its last frame; return whether it may: there can be many of them."""
        self._strangers.pop(connection, None)
        self._rejected.add(connection)
        return len(self._rejected) <= _MAX_REJECTED

    @property
    def rejected(self) -> int:
        """How many connections have no place."""
        return len(self._rejected)

    def remove(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self._strangers.pop(connection, None)
        self._rejected.discard(connection)
        uid = connection.peer.uid
        if uid is not None:
            self._of_uid[uid] -= 1
            if self._of_uid[uid] <= 0:
                del self._of_uid[uid]

    def refusal(self, connection: Connection, count: int) -> str:
        """Return why a new connection has no place among ``count``, itself included; "" if it has one."""
        limits, peer = self._limits(), connection.peer
        if count > self.max_for(is_trusted=peer.is_trusted):
            return f"{limits.max_connections} connections are open, which is the limit"
        if peer.uid is not None and self._of_uid[peer.uid] > limits.max_connections_per_uid and not peer.administrator:
            return f"uid {peer.uid} has {limits.max_connections_per_uid} connections open"
        return ""

    def max_for(self, *, is_trusted: bool) -> int:
        """How many connections there may be with one more of such a peer."""
        return self._limits().max_connections - (0 if is_trusted else self.reserved)

    def make_room_for_strangers(self) -> None:
        """Close the oldest strangers that are more than their share."""
        while len(self._strangers) > self.max_strangers:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.transport.abort()
