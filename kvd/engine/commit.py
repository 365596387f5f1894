"""The one way to change the store: every change runs through ``CommitPipeline.run``, which alone knows the order.

1. **Memory** is reserved for what is written; if that means to evict keys, these go in a commit before.
2. What a transaction read is **validated**, after step 1, because an eviction may be of what it read.
3. **Space** is reserved in the commit log.
4. **Near caches** are invalidated: the generations of the keys are bumped.
5. The **change** is made in memory, at the time of its batch.
6. The commit is **noted**: its deadlines, its quotas, and in the commit log.
7. Watches are **woken**, at once without a log, and else when the commit is as durable as was promised.
8. History that takes too much memory is **released**, for changes that reserve none.

A change that must happen (expiry, eviction, the end of ephemeral keys) reserves no memory, and does not stop at step 3.

Step 4 comes before 5, so that whatever goes wrong between them costs a fetch and no more. Both happen in one step of
the loop, so no client ever reads the new value with the old generation, or the old value with the new generation.
"""

from collections.abc import Callable
from typing import TypeVar

from kvd.engine.commit_clock import CommitClock
from kvd.engine.expiry import Expirer
from kvd.engine.generations import Generations
from kvd.engine.journal import Journal
from kvd.engine.memory import MemoryManager
from kvd.engine.upkeep import HistoryUpkeep
from kvd.engine.wakeups import Wakeups
from kvd.engine.writes import Writes
from kvd.store.authors import Author
from kvd.store.lifetimes import KEEP_TTL, NO_EXPIRY, Expiry
from kvd.store.store import Store

# ``on_growth`` is called each time the store has grown by this many keys beyond its largest size so far.
GROWTH_KEYS = 65_536

Written = TypeVar("Written", bound=Writes)
Result = TypeVar("Result")


class CommitPipeline:
    """Makes changes to ``store``. ``clock`` gives it the times of commits."""

    def __init__(
        self,
        store: Store,
        clock: CommitClock,
        *,
        memory: MemoryManager,
        journal: Journal,
        expirer: Expirer,
        generations: Generations,
        upkeep: HistoryUpkeep,
        wakeups: Wakeups,
        on_growth: Callable[[], None],
    ) -> None:
        self._store = store
        self._advance = clock.advance
        self._memory = memory
        self._journal = journal
        self._expirer = expirer
        self._generations = generations
        self._upkeep = upkeep
        self._wakeups = wakeups
        self._on_growth = on_growth
        self._grown_at = GROWTH_KEYS

    def run(
        self,
        writes: Written,
        author: Author,
        expiry: Expiry,
        change: Callable[[Written, Author, Expiry], Result],
        commits: int = 1,
        validate: Callable[[], None] | None = None,
        reserve_memory: Callable[[], None] | None = None,
        takes_memory: bool = True,
        is_forced: bool = False,
        releases: bool = False,
    ) -> Result:
        """Make a change, ``change(writes, author, expiry)``, with all that belongs around it; return its result.

        ``writes`` are the keys that change, or some more, and their values. ``takes_memory``: memory is reserved for
        them, by ``reserve_memory`` if it is given. ``is_forced``: the change must happen. ``releases``: history is
        released after it. Raises OutOfMemory, NoSpace, and what ``validate`` and ``change`` raise.
        """
        memory, store = self._memory, self._store
        if takes_memory and memory.is_under_pressure:
            if reserve_memory is None:
                memory.reserve(writes, with_expiry=expiry is not NO_EXPIRY and expiry is not KEEP_TTL)
            else:
                reserve_memory()
        if validate is not None:
            validate()
        self._journal.reserve(writes, commits, is_forced)
        if (table := self._generations.table) is not None:
            table.bump(writes)
        self._advance()
        if not self._upkeep.is_armed:
            self._upkeep.arm()
        if store.counters.keys >= self._grown_at:
            self._grown_at = store.counters.keys + GROWTH_KEYS
            self._on_growth()
        before = store.version
        result = change(writes, author, expiry)
        if expiry is not NO_EXPIRY:
            self._expirer.note_deadline()
        if memory.tracks_commits:
            memory.on_commit(store.window.newest_since(before))
        if self._journal.add(before) and self._wakeups.wakers:
            self._wakeups.wake()
        if releases and memory.is_under_pressure:
            memory.release_history(len(writes))
        return result
