"""The time of commits: what the wall clock says, and a note in the store each time it was set.

The wall clock and the clock since the boot run alike until somebody sets the first. So their difference, the *offset*,
says at each commit whether that has happened. The offset stands in the log, too: a later start on the same boot
compares it. After a reboot only a wall clock that is behind the last commit tells that it was set.

The log of the daemon has a line for each step, because commit times and questions by time depend on it.
"""

import logging

from kvd.engine.clocks import Clock
from kvd.journal.records import Clock as ClockRecord
from kvd.store.store import Store

logger = logging.getLogger(__name__)

# Less is not noticed: it is the leap second, and what two looks at two clocks may differ by.
STEP_US = 1_000_000
# After this time without a commit, both clocks are read.
_SOON_US = 250_000
# Both clocks are read again if reading them took longer than this.
_READ_US = 100_000
_MAX_READS = 100


class CommitClock:
    """Gives ``store`` the times of commits. ``boot`` identifies the boot of ``timer``; empty if that is not known."""

    def __init__(self, store: Store, clock: Clock, timer: Clock, boot: bytes = b"") -> None:
        self._store = store
        self._clock = clock
        self._timer = timer
        self._boot = boot
        self.offset: int | None = None  # None before the first look

    def advance(self) -> None:
        """Set the time of the next commits, once before each batch of them."""
        now = self._clock()
        # Soon after the last commit only one clock is read. If the clock was set back by as long as no client wrote,
        # that is noticed later: by the next look, and before any question by time.
        if not 0 <= now - self._store.time < _SOON_US or self.offset is None:
            self._look(now)
        self._store.advance(now)

    def look(self) -> None:
        """Note in the store whether the clock was set, before a question by time."""
        if self.offset is not None:
            self._look(self._clock())

    def _look(self, now: int) -> None:
        if self.offset is None or abs(now - self._timer() - self.offset) > STEP_US:
            self._look_closer()

    def _look_closer(self) -> None:
        """Note a step if there was one, and not only a long time between two looks."""
        for _ in range(_MAX_READS):
            before, now, after = self._timer(), self._clock(), self._timer()
            if after - before <= _READ_US:
                break
        offset = now - after
        if self.offset is None:
            self.offset = offset
        elif abs(offset - self.offset) > STEP_US:
            by, self.offset = offset - self.offset, offset
            self._note(now, by)

    def _note(self, now: int, by: int) -> None:
        store = self._store
        text = "the clock was set by %+.1f s; no question by a time before that can be answered from now on"
        logger.warning(text, by / 1e6)
        earlier = sum(step.by for step in store.window.steps if step.version == store.version)
        store.note_step(now, earlier + by)

    def resume(self, boot: bytes, offset: int | None) -> None:
        """Go on after a recovery, which has found the offset of an earlier run, on this boot or another one."""
        if offset is not None and boot and boot == self._boot:
            self.offset = offset
            self.look()
        elif self._store.time and (by := self._clock() - self._store.time) < -STEP_US:
            self._note(self._store.time + by, by)

    def record(self) -> ClockRecord:
        """What the log keeps at the beginning of each segment."""
        offset = self._clock() - self._timer() if self.offset is None else self.offset
        return ClockRecord(self._boot, offset, [(*step,) for step in self._store.window.steps])
