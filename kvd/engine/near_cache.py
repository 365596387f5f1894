"""Clients with a near cache: they are handed the table of generations, and its lease is kept up while there are any.

Nothing of this exists before the first one attaches. From then on every commit raises generations, also while nobody is
attached, for there may be clients that still trust their lease; only the heartbeat rests. Before the first is
answered, ``before_first`` notes for our successor that leases are about (``kvd/service/restart_fence.py``).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable

from kvd.engine.database import Database
from kvd.engine.errors import EngineError
from kvd.engine.generations import SLOTS, GenerationTable
from kvd.protocol.near_cache import HEARTBEAT_MS, LEASE_MS, clock_id, table_bytes

logger = logging.getLogger(__name__)

_HEARTBEAT_S = HEARTBEAT_MS / 1000


class NearCaches:
    """Who reads from memory of their own. ``slots`` is the size of the table to be made."""

    def __init__(self, database: Database, slots: int = SLOTS) -> None:
        self._database = database
        self._slots = slots
        self.table: GenerationTable | None = None
        # Raises OSError if there can be no near caches. Without it there are none.
        self.before_first: Callable[[], None] | None = None
        # Whether clients are told what has changed lately. Not where a read of that would wait for the disk.
        self.tells_changes = True
        self._attached: set[Hashable] = set()
        self._beat: asyncio.TimerHandle | None = None
        self._closed = False

    def attach(self, peer: Hashable) -> tuple[tuple[int, int, int, int], int]:
        """Have the table handed to ``peer`` with this reply: slots, lease in ms, the time in µs, whose time it is.

        Raises Refusal.
        """
        if self.before_first is None or self._closed:
            raise EngineError("shutting_down" if self._closed else "bad_request", "there is no near cache here")
        try:
            table = self.table or self._make_table(self.before_first)
            descriptor = table.open_read_only()
        except OSError as error:
            logger.error("no near cache: %s", error)
            raise EngineError("internal", f"a near cache cannot be had: {error.strerror}") from None
        self._attached.add(peer)
        if self._beat is None:
            self._keep_lease()
        return (table.slots, LEASE_MS, time.monotonic_ns() // 1000, clock_id()), descriptor

    def invalidate_all(self) -> None:
        """Have every client ask again for everything."""
        if self.table is not None:
            self.table.bump_all()

    def detach(self, peer: Hashable) -> None:
        """The connection of ``peer`` has ended."""
        self._attached.discard(peer)

    @property
    def table_bytes(self) -> int:
        """What the table takes, once somebody has attached."""
        return 0 if self.table is None else table_bytes(self.table.slots)

    @property
    def clients(self) -> int:
        """How many are attached."""
        return len(self._attached)

    def close(self) -> None:
        """From now on no client trusts the table. To be called behind the last reply."""
        self._closed = True
        if self._beat is not None:
            self._beat.cancel()
        if self.table is not None:
            self.table.end_lease()

    def _make_table(self, before_first: Callable[[], None]) -> GenerationTable:
        before_first()
        self.table = table = GenerationTable(self._slots)
        table.notes_changes = self.tells_changes
        self._database.on_change = table.bump
        return table

    def _keep_lease(self) -> None:
        """From the loop, so that a loop that hangs lets it run out; while nobody is attached nothing wakes up."""
        self._beat = None
        if self._attached and self.table is not None:
            self.table.extend_lease()
            self._beat = asyncio.get_running_loop().call_later(_HEARTBEAT_S, self._keep_lease)
