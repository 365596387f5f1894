"""The budget for what all connections buffer: input that has not run, frames in work, replies that were not taken.

        report ──▶ the user's account ──over its share──────▶ close the connection of that user that holds most
              └──▶ the total ─────────over the budget───────▶ close the connection of all that holds most

A connection that is within its share is never closed for another user's buffers, unless all shares together are too
much: then the one that holds most goes, whoever owns it. Data is never evicted for buffers, and no write is refused.

Only what stays over a turn is charged: a connection reports what it keeps when it keeps it, so a frame that comes in
one read and whose reply the kernel takes costs nothing. Up to HIGH_WATER_BYTES of replies may stay unreported, unless
so many connections are open that they could matter (``Server.is_crowded``): then each one reports after its input,
and the sweep of ``server.py`` looks at all of them once a second.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable

from kvd.protocol.limits import Limits
from kvd.requests.errors import error_reply
from kvd.server.connection import Connection

logger = logging.getLogger(__name__)

# The part of memory.max_bytes that all buffers may take, and the part of that for one user.
_BUDGET_PART = 8
_USER_PART = 4
# A connection that holds less is not charged.
SMALL_BYTES = 4 * 1024

# A uid, the name of a token or certificate, or that of a peer without an identity.
Account = int | str


class BufferBudget:
    """The accounts of all users. ``max_memory_bytes`` and ``limits`` return what is in force."""

    def __init__(
        self,
        max_memory_bytes: Callable[[], int],
        limits: Callable[[], Limits],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._max_memory_bytes = max_memory_bytes
        self._limits = limits
        self._loop = loop
        self._held: dict[Connection, tuple[Account, int]] = {}
        self._of_account: Counter[Account] = Counter()
        self._is_due = False
        self.total_bytes = 0
        self.closed = 0  # connections, for what they held

    @property
    def max_bytes(self) -> int:
        """What all connections may hold together; never less than one frame and one reply."""
        limits = self._limits()
        return max(self._max_memory_bytes() // _BUDGET_PART, limits.max_frame_bytes + limits.max_reply_bytes)

    @property
    def max_user_bytes(self) -> int:
        """What the connections of one user may hold; never less than one frame and one reply."""
        limits = self._limits()
        return max(self.max_bytes // _USER_PART, limits.max_frame_bytes + limits.max_reply_bytes)

    def report(self, connection: Connection) -> None:
        """Charge a connection for what it holds now; close what is over the budget, perhaps this connection itself.

        It must be the last thing that a callback of the connection does.
        """
        if self._charge(connection):
            self._enforce()

    def report_soon(self, connection: Connection) -> None:
        """Charge a connection that is in the middle of its work; what is over the budget is closed in a later step."""
        if self._charge(connection) and not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._enforce)

    def report_all(self, connections: Iterable[Connection]) -> None:
        """Charge all connections, also for what they did not report."""
        for connection in connections:
            self._charge(connection)
        self._enforce()

    def release(self, connection: Connection) -> None:
        """Forget a connection that has ended, or holds nothing."""
        account, held_bytes = self._held.pop(connection, ("", 0))
        if held_bytes:
            self.total_bytes -= held_bytes
            self._of_account[account] -= held_bytes
            if self._of_account[account] <= 0:
                del self._of_account[account]

    def holds(self, connection: Connection) -> bool:
        """Whether a connection is charged."""
        return connection in self._held

    def _charge(self, connection: Connection) -> bool:
        """Replace what a connection is charged for; return whether that is more than before."""
        before = self._held.get(connection, ("", 0))[1]
        self.release(connection)
        held_bytes = connection.buffer_bytes
        if held_bytes < SMALL_BYTES:
            return False
        account = account_of(connection)
        self._held[connection] = account, held_bytes
        self._of_account[account] += held_bytes
        self.total_bytes += held_bytes
        return held_bytes > before

    def _enforce(self) -> None:
        self._is_due = False
        max_user_bytes = self.max_user_bytes
        while self._of_account:
            account, account_bytes = max(self._of_account.items(), key=lambda item: item[1])
            if account_bytes > max_user_bytes:
                victims = {each: held for each, (owner, held) in self._held.items() if owner == account}
            elif self.total_bytes > self.max_bytes:
                victims = {each: held for each, (_, held) in self._held.items()}
            else:
                return
            self._close(max(victims, key=victims.__getitem__))

    def _close(self, connection: Connection) -> None:
        """Close with `busy`; at once, without a word, if its peer does not even take what it was sent."""
        self.closed += 1
        self.release(connection)
        logger.warning("closed %s: its user's connections, or all, hold too much", connection.peer.name)
        if connection.buffer_bytes and connection.transport.get_write_buffer_size():
            connection.abort()
            return
        text = "the daemon buffers too much for this user's connections, or for all; send and ask for less at once"
        connection.close_with_error(error_reply("busy", text))
        if connection.buffer_bytes >= SMALL_BYTES + connection.transport.get_write_buffer_size():
            connection.abort()


def account_of(connection: Connection) -> Account:
    """Return the account that a connection is charged to: strangers share one."""
    peer = connection.peer
    if peer.uid is not None:
        return peer.uid
    return peer.identity.certificate or peer.identity.token or ("a token" if peer.token else "")
