"""Which connection holds which snapshots: limited in number and in time, and released when the connection ends.

The history window keeps a pinned version readable, up to a limit of bytes of its own (``kvd/store/window.py``). A
released snapshot is readable for as long as the history happens to reach back to it; after that a read fails with
``snapshot_gone``.
"""

from collections import OrderedDict
from collections.abc import Hashable

from kvd.engine.clocks import Clock
from kvd.engine.errors import EngineError
from kvd.engine.scheduler import Scheduler
from kvd.store.store import Store

# Idle snapshots are looked for this often at least, because a reload may lower the limit.
MAX_LOOK_S = 2.0
IDLE_US = 60_000_000
# One look releases at most this many idle snapshots; the next look follows at once.
RELEASED = 1_024


class SnapshotPin:
    """How often a connection has begun one version, and when it last read at it."""

    __slots__ = ("count", "used_us")

    def __init__(self, used_us: int) -> None:
        self.count = 1
        self.used_us = used_us


class Snapshots:
    """The snapshots that connections hold. ``timer`` returns microseconds.

    ``idle_us`` may be set anew: a snapshot that was not read at for so long is released.
    """

    def __init__(self, store: Store, timer: Clock, scheduler: Scheduler, idle_us: int = IDLE_US) -> None:
        self._store = store
        self._timer = timer
        self._scheduler = scheduler
        self.idle_us = idle_us
        self._is_armed = False
        self._held: dict[Hashable, dict[int, SnapshotPin]] = {}
        self._count: dict[Hashable, int] = {}  # of each owner; one version held twice counts as two
        self._by_use: OrderedDict[tuple[Hashable, int], SnapshotPin] = OrderedDict()  # the one idle for longest first

    def __len__(self) -> int:
        return sum(self._count.values())

    def begin(self, owner: Hashable, limit: int) -> int:
        """Hold the current version for ``owner``, who may hold ``limit`` of them; return it. Raises EngineError."""
        count = self._count.get(owner, 0)
        if count >= limit:
            raise EngineError("too_large", f"a connection holds at most {limit} snapshots; end some first")
        if not self._is_armed:
            self._arm()
        self._count[owner] = count + 1
        version = self._store.pin()
        pins = self._held.setdefault(owner, {})
        if version in pins:
            pins[version].count += 1
            self.used(owner, version)
        else:
            pins[version] = self._by_use[owner, version] = SnapshotPin(self._timer())
        return version

    def end(self, owner: Hashable, version: int) -> bool:
        """Give back one hold of ``version``. Return whether there was one."""
        pins = self._held.get(owner, {})
        pin = pins.get(version)
        if pin is None:
            return False
        pin.count -= 1
        if pin.count == 0:
            del pins[version], self._by_use[owner, version]
        self._unpin(owner, version, 1)
        return True

    def used(self, owner: Hashable, version: int) -> None:
        """Note that ``owner`` reads at ``version``."""
        pin = self._held.get(owner, {}).get(version)
        if pin is not None:
            pin.used_us = self._timer()
            self._by_use.move_to_end((owner, version))

    def release(self, owner: Hashable) -> None:
        """Give back all that ``owner`` holds."""
        for version in list(self._held.get(owner, ())):
            self._release(owner, version)

    def release_idle(self, idle_us: int) -> bool:
        """Release the snapshots not read at for ``idle_us``, up to RELEASED. Return whether any are still held."""
        for _ in range(RELEASED):
            if not self._has_idle(idle_us):
                break
            self._release(*next(iter(self._by_use)))
        return bool(self._held)

    def _has_idle(self, idle_us: int) -> bool:
        pin = next(iter(self._by_use.values()), None)
        return pin is not None and pin.used_us <= self._timer() - idle_us

    def _arm(self, delay_s: float | None = None) -> None:
        self._is_armed = True
        if delay_s is None:
            delay_s = min(self.idle_us / 1_000_000 / 4, MAX_LOOK_S)
        self._scheduler.call_later(delay_s, self._look)

    def _look(self) -> None:
        """Release what is idle; while nothing is held, no timer runs."""
        self._is_armed = False
        if self.release_idle(self.idle_us):
            self._arm(0 if self._has_idle(self.idle_us) else None)

    def _release(self, owner: Hashable, version: int) -> None:
        del self._by_use[owner, version]
        self._unpin(owner, version, self._held[owner].pop(version).count)

    def _unpin(self, owner: Hashable, version: int, count: int) -> None:
        for _ in range(count):
            self._store.unpin(version)
        self._count[owner] -= count
        if not self._count[owner]:
            del self._count[owner], self._held[owner]
