"""History that grows too old while no client writes is dropped by a timer; commits drop the rest themselves.

first commit ──▶ timer ──▶ drop some ──┬─ more to drop ──▶ again after UPKEEP_PAUSE_S
                                       ├─ not old enough ─▶ again when the oldest commit is due
                                       └─ history is empty: no timer, until the next commit

Below a prefix with a shorter history, the next commit may be due before the oldest one. So while such a prefix has no
commit that is still to be visited, the next commit arms the timer anew.
"""

from kvd.engine.clocks import Clock
from kvd.engine.commit_clock import CommitClock
from kvd.engine.scheduler import Handle, NullHandle, Scheduler
from kvd.store.store import Store

# One step looks at this many keys, which takes a millisecond or two, and the next one follows after this pause.
UPKEEP_KEYS = 2_000
UPKEEP_PAUSE_S = 0.005
# What is old enough to go but pinned by a snapshot is looked at again after this time.
PINNED_PAUSE_S = 1.0


class HistoryUpkeep:
    """Drops old history of ``store``. ``is_armed``: a timer runs that is early enough for the next commit, too."""

    def __init__(self, store: Store, clock: Clock, commit_clock: CommitClock, scheduler: Scheduler) -> None:
        self._store = store
        self._clock = clock
        self._commit_clock = commit_clock
        self._scheduler = scheduler
        self._timer: Handle = NullHandle()
        self.is_armed = False
        if store.window.oldest is not None:
            self.arm()

    def arm(self, delay_s: float = UPKEEP_PAUSE_S) -> None:
        """Look at the history after ``delay_s``, instead of any look that was due."""
        self._timer.cancel()
        self.is_armed = True
        self._timer = self._scheduler.call_later(delay_s, self._look)

    def _look(self) -> None:
        if self.drop_old(UPKEEP_KEYS):
            self.arm()
        elif (due_us := self.due_us()) is not None:
            self.arm(due_us / 1_000_000 + UPKEEP_PAUSE_S if due_us else PINNED_PAUSE_S)
            self.is_armed = not self._store.retention.awaits_commit()
        else:
            self.is_armed = False

    def drop_old(self, budget_keys: int) -> bool:
        """Drop about ``budget_keys`` keys of history that is over its limits. Return whether there may be more."""
        self._commit_clock.advance()
        return self._store.drop_history(budget_keys) > 0

    def due_us(self) -> int | None:
        """In how many microseconds the oldest commit, or value, is too old; None without any history."""
        window = self._store.window
        if window.oldest is None:
            return None
        due_at = window.present_time(window.oldest) + window.limits.max_age_us
        forgotten_at = self._store.retention.due_at()
        if forgotten_at is not None:
            due_at = min(due_at, forgotten_at)
        return max(0, due_at - self._clock())

    def age_us(self) -> int:
        """How many microseconds ago the oldest commit of the history was made; 0 without any history."""
        window = self._store.window
        return 0 if window.oldest is None else max(0, self._clock() - window.present_time(window.oldest))
