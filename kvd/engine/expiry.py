"""Keys expire at their deadlines: by a timer, and before any request that could still see an expired key.

        nothing due                                  the common case, which costs one comparison
        little due      expire_due_bounded ─▶ one commit of up to EXPIRED_KEYS keys, before the requests run
        much due        the timer goes on, commit by commit; requests expire the keys they name (expire_named), and
                        those that show all keys wait for what was due when they came (expire_due_at): for no more, or
                        a client that goes on writing keys of a short life would keep them waiting

Deadlines go by a clock that runs evenly and that a suspended machine does not stop (CLOCK_BOOTTIME). The scheduler's
clock may stop then, so a timer is never set far ahead.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping

from kvd.engine.clocks import Clock
from kvd.engine.scheduler import Handle, Scheduler
from kvd.store.lifetimes import Expiry, Lifetimes

# One commit of expiries deletes no more keys than this.
EXPIRED_KEYS = 256
# A timer is set for no longer than this, and for a little after the deadline.
MAX_TIMER_S = 60.0
TIMER_GRAIN_S = 0.001


class Expirer:
    """Finds keys that are due and has them deleted: ``delete`` does it in one commit. ``timer`` gives µs."""

    def __init__(
        self, lifetimes: Lifetimes, timer: Clock, scheduler: Scheduler, delete: Callable[[list[str]], None]
    ) -> None:
        self._lifetimes = lifetimes
        self._timer = timer
        self._scheduler = scheduler
        self._delete = delete
        self._handle: Handle | None = None
        self._next_look: int | None = None
        self._is_behind = False  # whether more is due than can expire in one step
        self.note_deadline()

    def expiry(
        self, ttl_us: int | None, *, keep: bool, owner: Hashable, ttls_us: Mapping[str, int] | None = None
    ) -> Expiry:
        """What a write says about when its keys expire, from now on; ``ttls_us`` of keys with a TTL of their own."""
        now = self._timer()
        deadlines = {key: now + ttl for key, ttl in (ttls_us or {}).items()}
        return Expiry(deadline=None if ttl_us is None else now + ttl_us, deadlines=deadlines, keep=keep, owner=owner)

    # ------------------------------------------------------------------ what is due

    def expire_all_due(self) -> None:
        """Expire every key that is due."""
        while not self.expire_step():
            pass

    def expire_due_bounded(self) -> bool:
        """Expire what is due, if it is not much. Return whether that was all. To be called before each frame.

        If much is due, the timer goes on with it step by step. Until then a key that is due may still be there, so the
        caller passes the keys that it reads or writes to ``expire_named``.
        """
        if self._next_look is None or self._timer() < self._next_look:
            return True
        if not self._is_behind:
            if self.expire_step():
                return True
            self._is_behind = True
            self._schedule(0)
        return False

    def expire_step(self) -> bool:
        """Expire up to EXPIRED_KEYS keys that are due. Return whether these were all."""
        if self._next_look is None or (now := self._timer()) < self._next_look:
            return True
        self._expire(self._lifetimes.take_due(now, EXPIRED_KEYS))
        look = self._lifetimes.next_wake_at
        if look is not None and look <= now:
            return False
        self._is_behind = False
        self._next_look = None
        self.note_deadline()
        return True

    def expire_due_at(self, time: int) -> bool:
        """Expire up to EXPIRED_KEYS of the keys that were due at ``time``. Return whether these were all."""
        self._expire(self._lifetimes.take_due(time, EXPIRED_KEYS))
        look = self._lifetimes.next_wake_at
        return look is None or look > time

    def backlog(self) -> Callable[[], bool]:
        """Return what expires, in as many calls as are needed, all that is due at its first call; True at the end."""
        since: int | None = None

        def expire() -> bool:
            nonlocal since
            if since is None:
                since = self._timer()
            is_done = self.expire_due_at(since)
            if is_done:
                since = None
            return is_done

        return expire

    def expire_named(self, keys: Iterable[str]) -> None:
        """Expire those of ``keys`` that are due."""
        self._expire(self._lifetimes.take_due_of(list(keys), self._timer()))

    def _expire(self, due: list[str]) -> None:
        if due:
            self._delete(due)

    # ------------------------------------------------------------------ when to look

    def time_to_live_us(self, key: str) -> int | None:
        """How long ``key`` has still to live; None if it does not expire."""
        deadline = self._lifetimes.deadline_of(key)
        return None if deadline is None else max(0, deadline - self._timer())

    def next_look_us(self) -> int | None:
        """In how many microseconds a key may be due; None without any deadline."""
        return None if self._next_look is None else max(0, self._next_look - self._timer())

    def note_deadline(self) -> None:
        """Set the timer anew if a deadline has come that is earlier than all others."""
        look = self._lifetimes.next_wake_at
        if look is not None and (self._next_look is None or look < self._next_look):
            self._next_look = look
            self._schedule(max(0, look - self._timer()))

    def _schedule(self, delay_us: int) -> None:
        if self._handle is not None:
            self._handle.cancel()
        delay_s = min(delay_us / 1_000_000, MAX_TIMER_S) + TIMER_GRAIN_S
        self._handle = self._scheduler.call_later(delay_s, self._look)

    def _look(self) -> None:
        self._handle = None
        if not self.expire_step():
            self._scheduler.call_later(0, self._look)  # after the clients' turn
            return
        due_us = self.next_look_us()
        if due_us is not None and self._handle is None:
            self._schedule(due_us)
