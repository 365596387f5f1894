"""The database: the store with its clocks, and what is remembered about commits beside it.

Before any request, whatever is due expires (``expiry.py``), so that no client reads or validates a key after its time.
A write whose id has committed before gets its first answer again (``run_once``). Every other change runs through the
steps of ``commit.py``, in one order. Its answer is remembered under its id, in memory and in the log, and leaves when
what it shows is as durable as was promised (``durability.py``).

With a commit log a change is in memory before it may be shown. A near cache does not notice: its entries are void from
the bump of their generations on, earlier than necessary. A client that fetches the new value meanwhile gets the new
generation with it, which makes it an entry, in an answer that is held back until the commit is durable. An answer that
was computed before the bump and arrives after it brings an old generation, and makes no entry.
"""

import os
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from functools import partial
from typing import TypeVar

from kvd.engine.burial import Burial
from kvd.engine.clocks import Clock, boot_clock_us, wall_clock_us
from kvd.engine.commit import CommitPipeline
from kvd.engine.expiry import Expirer
from kvd.engine.generations import Generations
from kvd.engine.journal import Journal, MemoryJournal
from kvd.engine.memory import MemoryManager
from kvd.engine.records import RecordMaker
from kvd.engine.replay import Replay
from kvd.engine.scheduler import NullScheduler, Scheduler
from kvd.engine.upkeep import HistoryUpkeep
from kvd.engine.wakeups import Wakeups
from kvd.engine.writes import Batch, Writes
from kvd.journal.records import Group, Heads
from kvd.store.authors import EVICTED, EXPIRED, RESTARTED, Author
from kvd.store.draft import Draft
from kvd.store.errors import OutcomeUnknown
from kvd.store.heads import Head
from kvd.store.isolation import Range, Validation, validate
from kvd.store.lifetimes import KEEP_TTL, NO_EXPIRY, Expiry
from kvd.store.steps import Steps
from kvd.store.window import Group as CommittedGroup
from kvd.store.window import WindowLimits

_MAX_NUMBER = b"%d" % -(2**63)
# Both are without state, so that all databases can share them.
_MEMORY_JOURNAL = MemoryJournal()
_NO_TIMERS = NullScheduler()

Answer = TypeVar("Answer")


def _ignore() -> None:
    """Do nothing about growth."""


def _no_buffers() -> int:
    """No connection holds anything."""
    return 0


class Database:
    """What requests work on. ``clock`` gives the times of commits, ``timer`` those of deadlines; both in µs.

    ``contents``: what a recovery has found, with its clocks; without it the database is empty. ``buffer_bytes`` says
    what the connections hold in memory. ``on_growth`` is called each time the store has grown a lot.
    """

    def __init__(
        self,
        limits: WindowLimits | None = None,
        clock: Clock = wall_clock_us,
        timer: Clock = boot_clock_us,
        *,
        contents: Replay | None = None,
        journal: Journal = _MEMORY_JOURNAL,
        scheduler: Scheduler = _NO_TIMERS,
        store_id: str = "",
        buffer_bytes: Callable[[], int] = _no_buffers,
        on_growth: Callable[[], None] = _ignore,
    ) -> None:
        contents = contents or Replay(limits, clock, timer)
        self.store = store = contents.store
        self.outcomes = contents.outcomes
        self.timer = contents.timer
        # Tells clients that what they remember of versions belongs to another store: memory starts anew each time.
        self.store_id = store_id or os.urandom(8).hex()
        self.journal = journal
        self.scheduler = scheduler
        self.generations = Generations()
        self.wakeups = Wakeups()
        self.memory = MemoryManager(
            store,
            self.outcomes,
            self._evict,
            lambda: self.visible,
            buffer_bytes,
            lambda: self.generations.table_bytes + self.journal.outstanding_bytes,
            scheduler,
        )
        self._commit_clock = contents.commit_clock
        self.upkeep = HistoryUpkeep(store, contents.clock, contents.commit_clock, self.scheduler)
        self.expirer = Expirer(store.lifetimes, self.timer, self.scheduler, self._expire)
        self._records = RecordMaker(store.lifetimes, contents.clock, self.timer)
        self._burial = Burial(store.lifetimes, scheduler, self._bury)
        self._orphans = contents.orphans
        self._run = CommitPipeline(
            store,
            contents.commit_clock,
            memory=self.memory,
            journal=self.journal,
            expirer=self.expirer,
            generations=self.generations,
            upkeep=self.upkeep,
            wakeups=self.wakeups,
            on_growth=on_growth,
        ).run
        # Bound here because it runs before every frame, and a method of this class would be one call more.
        self.expire_due_bounded: Callable[[], bool] = self.expirer.expire_due_bounded
        self.journal.subscribe(self._on_visible)

    @property
    def visible(self) -> int:
        """The newest version that a client may be shown."""
        return self.journal.visible(self.store.version)

    def _on_visible(self) -> None:
        """More may be shown than before."""
        if self.memory.unshown_bytes:
            self.memory.release_history()
        if self.wakeups.wakers:
            self.wakeups.wake()

    # ------------------------------------------------------------------ writing

    def set(self, entries: Mapping[str, bytes], author: Author, expiry: Expiry = NO_EXPIRY) -> int:
        """Store all entries in one commit; return its version."""
        return self._run(entries, author, expiry, self.store.set)

    def set_each(self, batch: list[dict[str, bytes]], author: Author) -> list[int]:
        """Store each mapping in a commit of its own; return their versions."""
        return self._run(Batch(batch), author, NO_EXPIRY, self._set_each, len(batch))

    def _set_each(self, batch: Batch, author: Author, _: Expiry) -> list[int]:
        return self.store.set_each(batch.commits, author)

    def delete(self, keys: Iterable[str], author: Author, *, missing_ok: bool) -> tuple[int, int]:
        """Delete all keys in one commit; return its version and how many there were. Raises KeysNotFound."""
        return self._run(
            dict.fromkeys(keys),
            author,
            NO_EXPIRY,
            lambda keys, author, _: self.store.delete(keys, author, missing_ok=missing_ok),
            takes_memory=False,
            releases=True,
        )

    def increment(self, key: str, by: int, author: Author, expiry: Expiry = KEEP_TTL) -> tuple[int, int]:
        """Add to a number; return the sum and the version. Raises NotANumber."""
        return self._run(
            {key: _MAX_NUMBER},
            author,
            expiry,
            lambda _, author, expiry: self.store.increment(key, by, author, expiry),
        )

    def touch(self, keys: list[str], ttl_us: int | None, author: Author) -> list[bool]:
        """Let keys expire ``ttl_us`` from now, or never, in one commit; return whether each exists."""
        deadline = None if ttl_us is None else self.timer() + ttl_us
        return self._run(
            dict.fromkeys(keys),  # the log repeats no value
            author,
            KEEP_TTL,
            lambda _, author, __: self.store.touch(keys, deadline, author),
            reserve_memory=partial(self.memory.reserve_deadlines, keys),
            takes_memory=ttl_us is not None,
            releases=True,
        )

    def commit(
        self,
        writes: Mapping[str, bytes | None],
        reads: Mapping[str, int],
        ranges: list[Range],
        snapshot: int,
        author: Author,
        expiry: Expiry = NO_EXPIRY,
    ) -> int:
        """Make the writes if nothing that was read has changed; return the version. Raises Conflict, SnapshotGone."""
        check = partial(validate, self.store, reads, ranges, snapshot)
        return self._run(writes, author, expiry, self.store.write, validate=check, releases=True)

    def set_in_steps(
        self, entries: Mapping[str, bytes], author: Author, expiry: Expiry, once: Callable[[Callable[[], int]], int]
    ) -> Steps[int]:
        """As ``set``, of very many keys, or where room has to be made; ``once`` runs the commit, which is one step."""
        with Draft(self.store, entries) as draft:
            yield from draft.prepare()
            yield from self._make_room(entries, expiry)
            version = draft.commit(lambda: once(lambda: self.set(entries, author, expiry)))
        yield from self.store.flush_in_steps()
        return version

    def delete_in_steps(self, keys: Collection[str], delete: Callable[[], Answer]) -> Steps[Answer]:
        """Call ``delete``, which is to delete ``keys`` in one step, when this is prepared."""
        with Draft(self.store, dict.fromkeys(keys)) as draft:
            yield from draft.prepare()
            answer = draft.commit(delete)
        yield from self.store.flush_in_steps()
        return answer

    def touch_in_steps(self, keys: list[str], ttl_us: int | None, touch: Callable[[], Answer]) -> Steps[Answer]:
        """Call ``touch``, which is to touch ``keys`` in one step, when this is prepared. Raises OutOfMemory."""
        with Draft(self.store, dict.fromkeys(keys)) as draft:
            yield from draft.prepare()
            if ttl_us is not None and self.memory.is_under_pressure:
                yield from self.memory.make_room_for_deadlines(keys)
            return draft.commit(touch)

    def _make_room(self, writes: Writes, expiry: Expiry) -> Steps[None]:
        if self.memory.is_under_pressure:
            yield from self.memory.make_room(writes, with_expiry=expiry is not NO_EXPIRY and expiry is not KEEP_TTL)

    def commit_in_steps(
        self,
        writes: Mapping[str, bytes | None],
        reads: Mapping[str, int],
        ranges: list[Range],
        snapshot: int,
        author: Author,
        expiry: Expiry,
        once: Callable[[Callable[[], int]], int],
    ) -> Steps[int]:
        """As ``commit``: validate and make room in steps, and commit in the last one, which ``once`` runs."""
        with Validation(self.store, reads, ranges, snapshot) as validation, Draft(self.store, writes) as draft:
            yield from validation.run()
            yield from draft.prepare()
            yield from self._make_room(writes, expiry)
            check = validation.check

            def commit() -> int:
                return self._run(writes, author, expiry, self.store.write, validate=check, releases=True)

            version = draft.commit(lambda: once(commit))
        yield from self.store.flush_in_steps()
        return version

    # ------------------------------------------------------------------ deletions that must happen

    def delete_owned(self, owner: Hashable, author: Author) -> None:
        """Delete the ephemeral keys of ``owner``, whose connection has ended; if they are many, turn by turn."""
        self._burial.bury(owner, author)

    def _bury(self, keys: list[str], author: Author) -> None:
        self.expirer.expire_named(keys)
        keys = list(filter(self.store.lifetimes.is_owned, keys))
        if keys:
            self._force(keys, author, lambda: self.store.delete(keys, author, missing_ok=True))

    def delete_orphaned_ephemerals(self) -> None:
        """Delete the ephemeral keys of connections that were open when the daemon ended."""
        orphans = list(filter(self.store.exists, self._orphans))
        self._orphans = []
        if orphans:
            self._force(orphans, RESTARTED, lambda: self.store.delete(orphans, RESTARTED, missing_ok=True))

    def _evict(self, heads: list[Head]) -> None:
        """Delete the keys of ``heads`` to make room."""
        self._force([head.key for head in heads], EVICTED, lambda: self.store.evict(heads))

    def _expire(self, due: list[str]) -> None:
        """Delete keys that are due."""
        self._force(due, EXPIRED, lambda: self.store.expire(due), releases=True)

    def _force(self, keys: list[str], author: Author, delete: Callable[[], object], *, releases: bool = False) -> None:
        self._run(
            dict.fromkeys(keys),
            author,
            NO_EXPIRY,
            lambda *_: delete(),
            takes_memory=False,
            is_forced=True,
            releases=releases,
        )

    # ------------------------------------------------------------------ exactly once

    def run_once(self, scope: Hashable, id_: bytes, since: int | None, write: Callable[[], Answer]) -> Answer:
        """Run ``write`` unless a write with this id has committed; return its answer. Raises OutcomeUnknown."""
        before = self.store.version
        known = self.outcomes.lookup(scope, id_, since, before)
        if known is not None:
            return known  # type: ignore[return-value]  # a client that sends an id again sends the same write
        answer = write()
        if self.store.version > before:
            self._remember(scope, id_, self.store.version, answer)
        return answer

    def is_known(self, scope: Hashable, id_: bytes, since: int | None) -> bool:
        """Whether a write with this id has committed. Raises OutcomeUnknown."""
        return self.outcomes.lookup(scope, id_, since, self.store.version) is not None

    def set_each_once(
        self, scope: Hashable, ids: list[tuple[bytes, int | None]], batch: list[dict[str, bytes]], author: Author
    ) -> list[int] | None:
        """Store each mapping in a commit of its own, under ids none of which has committed; else do nothing: None."""
        if len({id_ for id_, _ in ids}) < len(ids) or not all(batch):
            return None
        outcomes, version = self.outcomes, self.store.version
        try:
            if any(outcomes.lookup(scope, id_, since, version) is not None for id_, since in ids):
                return None
        except OutcomeUnknown:
            return None
        versions = self.set_each(batch, author)
        for (id_, _), answer in zip(ids, versions, strict=True):
            self._remember(scope, id_, answer, answer)
        return versions

    def _remember(self, scope: Hashable, id_: bytes, version: int, answer: object) -> None:
        self.outcomes.remember(scope, id_, version, answer)
        self.journal.remember(scope, id_, version, answer)

    # ------------------------------------------------------------------ expiry

    def expiry(
        self, ttl_us: int | None, *, keep: bool, owner: Hashable, ttls_us: Mapping[str, int] | None = None
    ) -> Expiry:
        """What a write says about when its keys expire, from now on; ``ttls_us`` of keys with a TTL of their own."""
        return self.expirer.expiry(ttl_us, keep=keep, owner=owner, ttls_us=ttls_us)

    def expire_all_due(self) -> None:
        """Expire every key that is due."""
        self.expirer.expire_all_due()

    def expire_step(self) -> bool:
        """Expire some of the keys that are due. Return whether these were all."""
        return self.expirer.expire_step()

    def expire_due_at(self, time: int) -> bool:
        """Expire some of the keys that were due at ``time``. Return whether these were all."""
        return self.expirer.expire_due_at(time)

    def expire_named(self, keys: Iterable[str]) -> None:
        """Expire those of ``keys`` that are due."""
        self.expirer.expire_named(keys)

    def time_to_live_us(self, key: str) -> int | None:
        """How long ``key`` has still to live; None if it does not expire."""
        return self.expirer.time_to_live_us(key)

    def next_look_us(self) -> int | None:
        """In how many microseconds a key may be due; None without any deadline."""
        return self.expirer.next_look_us()

    def count_deadlines(self) -> int:
        """How many keys will expire."""
        return self.store.lifetimes.count

    def count_owned(self, owner: Hashable) -> int:
        """How many ephemeral keys ``owner`` has."""
        return self.store.lifetimes.count_owned(owner)

    # ------------------------------------------------------------------ records and figures

    def parts(self) -> list[dict[str, Head]]:
        """All current heads, in dicts that are small enough to be listed in one step."""
        return self.store.parts()

    def record_of_values(self, heads: list[Head]) -> Heads:
        """Current values as a checkpoint has them; none of ``heads`` is a tombstone."""
        return self._records.values(heads)

    def record_of_commits(self, group: CommittedGroup) -> Group:
        """Commits of the history window as the log has them, with the expiries that their keys have now."""
        return self._records.commits(group)

    def recorded_version(self) -> int:
        """The newest version that a later start will find; later ones are expiries for which the log had no space."""
        return self.journal.recorded(self.store.version)

    def version_at(self, time: int) -> int:
        """The version that was current at ``time``, in µs since the epoch. Raises SnapshotGone, ClockWasSet."""
        self._commit_clock.look()
        return self.store.window.version_at(time)

    def history_age_us(self) -> int:
        """How many microseconds ago the oldest commit of the history was made; 0 without any history."""
        return self.upkeep.age_us()

    def metrics(self) -> list[tuple[str, int]]:
        """Name and value; the first five are those of the original daemon."""
        store = self.store
        counters, window = store.counters, store.window
        return [
            ("keys_stored", counters.keys),
            ("value_bytes_stored", counters.value_bytes),
            ("set_operations", counters.set_operations),
            ("get_operations", counters.get_operations),
            ("delete_operations", counters.delete_operations),
            ("version", store.version),
            ("oldest_readable_version", window.oldest_readable),
            ("history_commits", window.commits),
            ("history_bytes", window.bytes),
            ("keys_with_deadline", store.lifetimes.count),
            ("memory_bytes", self.memory.used_bytes()),
            ("memory_bytes_max", self.memory.max_bytes),
            ("expired_keys", counters.expired_keys),
            ("evicted_keys", counters.evicted_keys),
        ]
