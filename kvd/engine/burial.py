"""The end of ephemeral keys: they are deleted when the connection that wrote them has ended.

The first BURIED_KEYS of a connection are deleted at once, in one commit, so a lock is free at once. If it has more,
they are deleted in later turns of the loop, as many in each. The connections take turns: none waits for all of
another's.
"""

from collections import deque
from collections.abc import Callable, Hashable

from kvd.engine.scheduler import Scheduler
from kvd.store.authors import Author
from kvd.store.lifetimes import Lifetimes

# One step deletes at most this number of ephemeral keys.
BURIED_KEYS = 512


class Burial:
    """Deletes the keys of owners that have gone: ``delete`` does it in one commit, as their author."""

    def __init__(self, lifetimes: Lifetimes, scheduler: Scheduler, delete: Callable[[list[str], Author], None]) -> None:
        self._lifetimes = lifetimes
        self._scheduler = scheduler
        self._delete = delete
        self._gone: deque[tuple[Hashable, Author]] = deque()

    def bury(self, owner: Hashable, author: Author) -> None:
        """Delete the keys of ``owner``, who writes none any more: the first now, the others in later turns."""
        was_idle = not self._gone
        self._bury_some(owner, author)
        if was_idle and self._gone:
            self._scheduler.call_later(0, self._step)

    def _step(self) -> None:
        self._bury_some(*self._gone.popleft())
        if self._gone:
            self._scheduler.call_later(0, self._step)

    def _bury_some(self, owner: Hashable, author: Author) -> None:
        keys = self._lifetimes.owned(owner, BURIED_KEYS)
        if keys:
            self._delete(keys, author)
        if self._lifetimes.count_owned(owner):
            self._gone.append((owner, author))
