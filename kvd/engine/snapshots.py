"""Which connection holds which snapshots: limited in number and in time, and released when it ends.

The history window keeps a pinned version readable, up to a limit of bytes of its own (``kvd/store/window.py``). A
snapshot that is let go, for whatever reason, is readable for as long as the history happens to reach back to it; after
that a reader is told that it has gone.
"""

from collections.abc import Callable, Hashable

from kvd.engine.errors import EngineError
from kvd.store.store import Store


class SnapshotPin:
    """How often a connection has begun one version, and when it last read at it."""

    __slots__ = ("count", "used_us")

    def __init__(self, used_us: int) -> None:
        self.count = 1
        self.used_us = used_us


class Snapshots:
    """The snapshots that connections hold. ``timer`` returns microseconds."""

    def __init__(self, store: Store, timer: Callable[[], int]) -> None:
        self._store = store
        self._timer = timer
        self._held: dict[Hashable, dict[int, SnapshotPin]] = {}
        self._count: dict[Hashable, int] = {}  # how many each of them holds, one version held twice counting as two
        # Called once, when the first one is held: from then on there is something to let go.
        self.on_first: Callable[[], None] | None = None

    def __len__(self) -> int:
        return sum(self._count.values())

    def begin(self, peer: Hashable, most: int) -> int:
        """Hold the current version for ``peer``, who may hold ``most``. Raises Refusal."""
        count = self._count.get(peer, 0)
        if count >= most:
            raise EngineError("too_large", f"a connection holds at most {most} snapshots; end some first")
        if self.on_first is not None:
            call, self.on_first = self.on_first, None
            call()
        self._count[peer] = count + 1
        version = self._store.pin()
        holds = self._held.setdefault(peer, {})
        if version in holds:
            holds[version].count += 1
            holds[version].used_us = self._timer()
        else:
            holds[version] = SnapshotPin(self._timer())
        return version

    def end(self, peer: Hashable, version: int) -> bool:
        """Give back one hold; whether there was one."""
        holds = self._held.get(peer, {})
        hold = holds.get(version)
        if hold is None:
            return False
        hold.count -= 1
        if hold.count == 0:
            del holds[version]
        self._given_back(peer, version, 1)
        return True

    def used(self, peer: Hashable, version: int) -> None:
        """``peer`` reads at ``version``."""
        hold = self._held.get(peer, {}).get(version)
        if hold is not None:
            hold.used_us = self._timer()

    def release(self, peer: Hashable) -> None:
        """Give back all that ``peer`` holds."""
        for version in list(self._held.get(peer, ())):
            self._release(peer, version)

    def let_go(self, idle_us: int) -> bool:
        """Release those not read at for ``idle_us``; whether any are still held."""
        latest = self._timer() - idle_us
        idle = [(peer, v) for peer, holds in self._held.items() for v, hold in holds.items() if hold.used_us <= latest]
        for peer, version in idle:
            self._release(peer, version)
        return bool(self._held)

    def _release(self, peer: Hashable, version: int) -> None:
        self._given_back(peer, version, self._held[peer].pop(version).count)

    def _given_back(self, peer: Hashable, version: int, count: int) -> None:
        for _ in range(count):
            self._store.unpin(version)
        self._count[peer] -= count
        if not self._count[peer]:
            del self._count[peer], self._held[peer]
