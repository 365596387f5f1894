"""Clients with a near cache: each is handed the table of generations, and the table's lease is kept up for them.

Nothing of this exists before the first client attaches. From then on every commit bumps generations, also while no
client is attached, because a client that has gone may still trust its lease; only the heartbeat rests. Before the first
client is answered, ``begin_leases`` notes for the next daemon that there are leases (``kvd/service/restart_fence.py``).
"""

import logging
import time
from collections.abc import Callable, Hashable

from kvd.engine.errors import EngineError
from kvd.engine.generations import SLOTS, Generations, GenerationTable
from kvd.engine.scheduler import Handle, NullHandle, Scheduler
from kvd.protocol.near_cache import HEARTBEAT_MS, LEASE_MS, clock_id

logger = logging.getLogger(__name__)

_HEARTBEAT_S = HEARTBEAT_MS / 1000


class NearCaches:
    """The clients with a near cache. ``slots`` is the size of the table to be created.

    ``begin_leases`` raises OSError or EngineError if there can be no near caches. ``notes_changes``: clients learn
    what has changed last; not where a read of that would wait for the disk.
    """

    def __init__(
        self,
        generations: Generations,
        scheduler: Scheduler,
        begin_leases: Callable[[], None],
        slots: int = SLOTS,
        *,
        notes_changes: bool,
    ) -> None:
        self._generations = generations
        self._scheduler = scheduler
        self._begin_leases = begin_leases
        self._slots = slots
        self._notes_changes = notes_changes
        self._attached: set[Hashable] = set()
        self._heartbeat: Handle = NullHandle()
        self._is_beating = False
        self._is_closed = False

    @property
    def table(self) -> GenerationTable | None:
        """The table of generations, once a client has attached."""
        return self._generations.table

    def attach(self, owner: Hashable) -> tuple[tuple[int, int, int, int], int]:
        """Attach the connection ``owner``. Return the reply to it and a descriptor to be sent with the reply.

        The reply: slots, lease in ms, the time in µs, and the id of the clock. The caller closes the descriptor.
        Raises EngineError.
        """
        if self._is_closed:
            raise EngineError("shutting_down", "there is no near cache here")
        try:
            table = self._generations.table or self._create_table()
            descriptor = table.open_read_only()
        except OSError as error:
            logger.error("a near cache cannot be had: %s", error)
            raise EngineError("internal", f"a near cache cannot be had: {error.strerror}") from None
        self._attached.add(owner)
        if not self._is_beating:
            self._keep_lease()
        return (table.slots, LEASE_MS, time.monotonic_ns() // 1000, clock_id()), descriptor

    def invalidate_all(self) -> None:
        """Have every client fetch everything again."""
        if (table := self._generations.table) is not None:
            table.bump_all()

    def detach(self, owner: Hashable) -> None:
        """Detach the connection ``owner``, which has ended."""
        self._attached.discard(owner)

    @property
    def table_bytes(self) -> int:
        """What the table takes, once a client has attached."""
        return self._generations.table_bytes

    @property
    def clients(self) -> int:
        """How many clients are attached."""
        return len(self._attached)

    def close(self) -> None:
        """End the lease: no client trusts the table from now on. To be called after the last reply."""
        self._is_closed = True
        self._heartbeat.cancel()
        if (table := self._generations.table) is not None:
            table.end_lease()

    def _create_table(self) -> GenerationTable:
        self._begin_leases()
        return self._generations.create(self._slots, notes_changes=self._notes_changes)

    def _keep_lease(self) -> None:
        """Extend the lease from the loop, so that it runs out if the loop hangs. Without clients, stop doing so."""
        table = self._generations.table
        self._is_beating = bool(self._attached) and table is not None
        if table is not None and self._is_beating:
            table.extend_lease()
            self._heartbeat = self._scheduler.call_later(_HEARTBEAT_S, self._keep_lease)
