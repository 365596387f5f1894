"""The database: the store with its clocks, and what is remembered about commits beside it.

The one place that says what happens around a commit, and in which order:

1. whatever is due expires, so that nobody reads or validates a key after its time;
2. a write whose id has committed before gets its first answer; room is found for it in memory, and if that means to
   evict keys, these go in a commit before it;
3. what a transaction read is validated;
4. room for it is reserved in the commit log, if there is one;
5. near caches are told that the keys change: the generations of their slots are raised;
6. the change is made in memory, at the time of its batch, and added to the commit log in the same step;
7. its answer is remembered under its id, in memory and in the log;
8. whoever watches is told, and the answer leaves, when what they show is as durable as was promised
   (``kvd/engine/durability.py``).

Reads run step 1 too, through ``expire_due_bounded``. Expiry and the end of ephemeral keys do not stop at step 4: on a
full
disk they act in memory, and reach the log when there is room.

Step 5 comes before 6 so that whatever goes wrong between them costs a fetch and no more. Both happen in one step of
the loop, so nobody ever reads the new value with the old generation, or the old one with the new. With a commit log a
change is in memory before it may be shown. A near cache notices nothing of that: its entries are void from step 5 on,
earlier than necessary; and who fetches the new value meanwhile gets it, and with it the generation that makes it an
entry, in an answer that is held back by step 8. An answer that was computed before step 5 and arrives behind it brings
a generation that is not the slot's any more, and makes no entry.
"""

import os
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from kvd.engine.memory import MemoryManager
from kvd.engine.recovered_lives import ReplayedExpiry
from kvd.journal.commit_log import GROUP_BYTES, ID_BYTES, KEY_BYTES
from kvd.journal.errors import NoSpace
from kvd.journal.records import Group, Header
from kvd.store.authors import RESTARTED, Author
from kvd.store.errors import OutcomeUnknown
from kvd.store.heads import Head
from kvd.store.isolation import Range, validate
from kvd.store.lifetimes import KEEP_TTL, NO_EXPIRY, Expiry
from kvd.store.outcomes import IdempotencyCache
from kvd.store.store import Store
from kvd.store.window import WindowLimits

if TYPE_CHECKING:
    from kvd.journal.commit_log import CommitLog
    from kvd.store.window import Group as CommittedGroup

GROWTH_KEYS = 65_536
# One commit of expiries deletes no more keys than this.
EXPIRED_KEYS = 256
# After replaying so many keys it is time to drop history.
REPLAYED_KEYS = 1_024
REMEMBERED_WRITES = 65_536
_MAX_NUMBER = b"%d" % -(2**63)

Answer = TypeVar("Answer")


def wall_clock_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def boot_clock_us() -> int:
    """Microseconds since the machine started, sleep included; nobody can set this clock (clock_gettime(2))."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class Database:
    """What the commands work on. ``clock`` gives the times of commits, ``timer`` those of deadlines; both in µs."""

    def __init__(
        self,
        limits: WindowLimits | None = None,
        clock: Callable[[], int] = wall_clock_us,
        timer: Callable[[], int] = boot_clock_us,
    ) -> None:
        self.store = Store(limits)
        self.room = MemoryManager(self.store, self._evict, lambda: self.visible)
        self.outcomes = IdempotencyCache(REMEMBERED_WRITES)
        self.room.remembered_writes = self.outcomes.__len__
        # Tells clients that what they remember of versions belongs to another store: memory starts anew each time.
        self.store_id = os.urandom(8).hex()
        self._clock = clock
        self.timer = timer
        self._lifetimes = self.store.lifetimes
        # Called each time the store has grown by GROWTH_KEYS beyond what it ever held.
        self.on_growth: Callable[[], None] | None = None
        self._grown_at = GROWTH_KEYS
        # Called once, when the first commit enters an empty history: from then on there is something to grow old.
        self.on_history: Callable[[], None] | None = None
        # Called when a deadline comes earlier than all that were known, with the µs until then.
        self.on_deadline: Callable[[int], None] | None = None
        self._next_look: int | None = None
        self._is_behind = False  # whether more is due than can expire in one step
        self._lives = ReplayedExpiry()
        self._loaded = 0, 0
        self._authors: dict[tuple[int | None, int | None, str], Author] = {}
        self._replayed_keys = 0  # since history was dropped last
        # Deletions that happened in memory although the log had no room; they go before the next commit.
        self._backlog: list[Group] = []
        self._backlog_bytes = 0
        self._is_deferred = False
        self._reserved = 0
        # Called when there are commits that may be shown, while somebody watches.
        self.on_commit: Callable[[], None] | None = None
        self.log: CommitLog | None = None
        self._before = 0  # the version before the commits that are being made
        # Called with the keys that are about to change, while there may be near caches that have them.
        self.on_change: Callable[[Iterable[str]], None] | None = None
        # Called when something was added to the commit log.
        self.on_logged: Callable[[], None] | None = None
        # The newest version that may be shown, if there is a commit log; whoever writes the log moves it.
        self.shown = 0

    @property
    def visible(self) -> int:
        """The newest version that anybody may be shown."""
        return self.store.version if self.log is None else self.shown

    # ------------------------------------------------------------------ writing

    def set(self, entries: Mapping[str, bytes], author: Author, life: Expiry = NO_EXPIRY) -> int:
        """Store all entries in one commit; its version."""
        if self.room.is_under_pressure:
            self.room.admit(entries, entries.values(), with_expiry=life is not NO_EXPIRY)
        self._reserve(entries, entries.values())
        self._begin(entries)
        version = self.store.set(entries, author, life)
        self._committed(life)
        return version

    def set_each(self, batch: list[dict[str, bytes]], author: Author) -> list[int]:
        """Store each mapping in a commit of its own; their versions."""
        if self.room.is_under_pressure:
            self.room.admit(list(chain.from_iterable(batch)), list(chain.from_iterable(map(dict.values, batch))))
        if self.log is not None:
            keys = list(chain.from_iterable(batch))
            self._reserve(keys, chain.from_iterable(map(dict.values, batch)), len(batch))
        self._begin(chain.from_iterable(batch))
        versions = self.store.set_each(batch, author)
        self._committed(NO_EXPIRY)
        return versions

    def delete(self, keys: Iterable[str], author: Author, *, missing_ok: bool) -> tuple[int, int]:
        """Delete all keys in one commit; its version and how many there were. Raises KeysNotFound."""
        keys = list(keys)
        self._reserve(keys)
        self._begin(keys)
        answer = self.store.delete(keys, author, missing_ok=missing_ok)
        self._committed(NO_EXPIRY)
        if self.room.is_under_pressure:
            self.room.release_history()
        return answer

    def increment(self, key: str, by: int, author: Author, life: Expiry = KEEP_TTL) -> tuple[int, int]:
        """Add to a number; the sum and the version. Raises NotANumber."""
        if self.room.is_under_pressure:
            self.room.admit([key], [_MAX_NUMBER], with_expiry=life is not KEEP_TTL)
        self._reserve([key])
        self._begin([key])
        answer = self.store.increment(key, by, author, life)
        self._committed(life)
        return answer

    def touch(self, keys: list[str], ttl_us: int | None, author: Author) -> list[bool]:
        """Give keys ``ttl_us`` from now, or life without end, in one commit; whether each exists."""
        if ttl_us is not None and self.room.is_under_pressure:
            self.room.admit_deadlines(keys)
        self._reserve(keys, (head.value for key in keys if (head := self.store.find(key)) is not None))
        self._begin(keys)
        found = self.store.touch(keys, None if ttl_us is None else self.timer() + ttl_us, author)
        self._committed(KEEP_TTL)
        if self.room.is_under_pressure:
            self.room.release_history()
        return found

    def commit(
        self,
        writes: Mapping[str, bytes | None],
        reads: Mapping[str, int],
        ranges: list[Range],
        snapshot: int,
        author: Author,
        life: Expiry = NO_EXPIRY,
    ) -> int:
        """Make the writes if nothing that was read has changed; the version. Raises Conflict, SnapshotGone."""
        # Before it is validated: an eviction may be of what it read.
        if self.room.is_under_pressure:
            self.room.admit(writes, writes.values(), with_expiry=life is not NO_EXPIRY)
        validate(self.store, reads, ranges, snapshot)
        self._reserve(writes, writes.values())
        self._begin(writes)
        version = self.store.write(writes, author, life)
        self._committed(life)
        if self.room.is_under_pressure:  # for what it deletes
            self.room.release_history()
        return version

    def once(self, scope: Hashable, id_: bytes, since: int | None, write: Callable[[], Answer]) -> Answer:
        """Do ``write`` unless one with this id has committed; its answer either way. Raises OutcomeUnknown."""
        before = self.store.version
        known = self.outcomes.find(scope, id_, since, before)
        if known is not None:
            return known  # type: ignore[return-value]  # whoever chose the id asks for the same thing
        answer = write()
        if self.store.version > before:
            self._remember(scope, id_, self.store.version, answer)
        return answer

    def set_each_once(
        self, scope: Hashable, ids: list[tuple[bytes, int | None]], batch: list[dict[str, bytes]], author: Author
    ) -> list[int] | None:
        """Store each mapping in a commit of its own, under ids none of which has committed; else do nothing: None."""
        if len({id_ for id_, _ in ids}) < len(ids) or not all(batch):
            return None
        outcomes, version = self.outcomes, self.store.version
        try:
            if any(outcomes.find(scope, id_, since, version) is not None for id_, since in ids):
                return None
        except OutcomeUnknown:
            return None
        versions = self.set_each(batch, author)
        for (id_, _), answer in zip(ids, versions, strict=True):
            self._remember(scope, id_, answer, answer)
        return versions

    def life(
        self, ttl_us: int | None, *, keep: bool, owner: Hashable, ttls_us: Mapping[str, int] | None = None
    ) -> Expiry:
        """What a write says about its keys' lives, from now on; ``ttls_us`` of keys with one of their own."""
        now = self.timer()
        deadlines = {key: now + ttl for key, ttl in (ttls_us or {}).items()}
        return Expiry(deadline=None if ttl_us is None else now + ttl_us, deadlines=deadlines, keep=keep, owner=owner)

    def delete_owned(self, owner: Hashable, author: Author) -> None:
        """Delete the keys that die with ``owner``."""
        if self._lifetimes.count_owned(owner):
            self.expire_named(self._lifetimes.owned(owner))
            owned = self._lifetimes.owned(owner)
            self._reserve_if_possible(owned)
            self._begin(owned)
            self.store.bury(owner, author)
            self._committed(NO_EXPIRY)

    def _evict(self, heads: list[Head]) -> None:
        """Delete the keys of these, as nobody needs them enough."""
        keys = [head.key for head in heads]
        self._reserve_if_possible(keys)
        self._begin(keys)
        self.store.evict(heads)
        self._committed(NO_EXPIRY)

    def count_owned(self, owner: Hashable) -> int:
        """How many keys die with ``owner``."""
        return self._lifetimes.count_owned(owner)

    def _begin(self, keys: Iterable[str]) -> None:
        """What comes before any change: ``keys`` are those that change, or some more."""
        if self.on_change is not None:
            self.on_change(keys)
        self.store.advance(self._clock())
        self._before = self.store.version
        if self.on_history is not None:
            call, self.on_history = self.on_history, None
            call()
        if self.store.counters.keys >= self._grown_at and self.on_growth is not None:
            self._grown_at = self.store.counters.keys + GROWTH_KEYS
            self.on_growth()

    def _committed(self, life: Expiry) -> None:
        if life is not NO_EXPIRY:
            self._note_deadline()
        if self.room.tracks_commits:
            self.room.committed(self.store.window.behind(self._before))
        if self.log is not None:
            self._add_to_log(self.log)
        elif self.on_commit is not None:
            self.on_commit()

    # ------------------------------------------------------------------ the commit log

    def _reserve(self, keys: Collection[str], values: Iterable[bytes | None] = (), commits: int = 1) -> None:
        """Make sure that what is about to be written fits into the commit log. Raises NoSpace."""
        if self.log is not None:
            self._reserved = _max_bytes(keys, values) + commits * ID_BYTES + self._backlog_bytes
            self.log.reserve(self._reserved)
            self._is_deferred = False

    def _reserve_if_possible(self, keys: Collection[str]) -> None:
        """The same for what has to happen anyway: if there is no room it reaches the log with a later commit."""
        try:
            self._reserve(keys)
        except NoSpace:
            self._backlog_bytes += _max_bytes(keys, ()) + ID_BYTES
            self._is_deferred = True

    def _add_to_log(self, log: "CommitLog") -> None:
        recorded = _last_version(self._backlog[-1]) if self._backlog else log.added
        groups = [self.record_of(group) for group in self.store.window.behind(recorded)]
        if self._is_deferred:
            self._is_deferred = False
            self._backlog += groups
            return
        size = self._reserved
        for group in self._backlog + groups:
            log.add(group, size)
            size = 0  # it was for all of them
        self._backlog, self._backlog_bytes = [], 0
        if self.on_logged is not None:
            self.on_logged()

    def record_of(self, group: "CommittedGroup") -> Group:
        """Commits of the window as the log has them, with the lives that their keys have now."""
        heads, author = group.heads, group.author
        keys = [head.key for head in heads]
        deadlines, ephemeral, wall = self.expiries_of(keys) if self._lifetimes else (None, None, None)
        who = (author.uid, author.pid, author.name)
        values = [head.value for head in heads]
        return Group(heads[0].version, group.time, who, group.commits, keys, values, deadlines, ephemeral, wall=wall)

    def _remember(self, scope: Hashable, id_: bytes, version: int, answer: object) -> None:
        self.outcomes.remember(scope, id_, version, answer)
        if self.log is not None:
            group = self.log.group_of(version)
            group.ids = group.ids or []
            group.ids.append((scope, id_, version, answer))  # type: ignore[arg-type]  # scopes are uids

    def expiries_of(self, keys: list[str]) -> tuple[dict[str, int] | None, list[str] | None, int | None]:
        """The deadlines of ``keys`` as wall-clock times, which die with a connection, and what the wall clock says.

        None instead of the first and the last if there are no deadlines, and of the second if none dies.
        """
        lifetimes = self._lifetimes
        ephemeral = [key for key in keys if lifetimes.is_owned(key)] if lifetimes.has_owners else None
        found = zip(keys, lifetimes.deadlines_of(keys), strict=True)
        deadlines = {key: deadline for key, deadline in found if deadline is not None}
        if not deadlines:
            return None, ephemeral, None
        wall = self._clock()
        offset = wall - self.timer()
        return {key: deadline + offset for key, deadline in deadlines.items()}, ephemeral, wall

    # ------------------------------------------------------------------ recovery

    def begin_load(self, header: Header) -> None:
        """A checkpoint begins; what it holds is all that is needed of it."""

    def load(
        self,
        keys: list[str],
        values: list[bytes],
        versions: list[int],
        deadlines: dict[str, int] | None,
        ephemeral: list[str] | None,
        wall: int | None = None,
    ) -> None:
        """Take in a piece of a checkpoint."""
        self.store.load(keys, values, versions)
        self._lives.written(keys, deadlines, ephemeral, wall)

    def end_of_load(self, version: int, time: int) -> None:
        """The checkpoint ended at ``version``; up to there, the log only tells what is newer than what was loaded."""
        self._loaded = version, time

    def begin_segment(self, header: Header, *, is_first: bool) -> None:
        """A segment of the log begins; which ids committed before the first is not known any more."""
        if is_first:
            self.outcomes.forget(header.watermark)

    def replay(self, group: Group) -> None:
        """Make a group of the log again."""
        writes = list(zip(group.keys, group.values, strict=True))
        last = _last_version(group)
        if last <= self._loaded[0]:
            self.store.catch_up(group.version, writes, 0 if group.commits == 1 else 1)
        else:
            if self.store.version < self._loaded[0]:
                self.store.begin_history(*self._loaded)
            author = self._authors.get(group.author)
            if author is None:
                author = self._authors[group.author] = Author(*group.author)
            self.store.replay(group.version, group.time, author, group.commits, writes)
            self._replayed_keys += len(writes)
            if self._replayed_keys >= REPLAYED_KEYS:
                self.store.drop_history(2 * self._replayed_keys)
                self._replayed_keys = 0
        if self._lives or group.deadlines or group.ephemeral:
            self._lives.written(
                group.keys, group.deadlines, group.ephemeral, group.time if group.wall is None else group.wall
            )
        for scope, id_, version, answer in group.ids or ():
            self.outcomes.remember(scope, id_, version, answer)

    def end_of_replay(self, version: int) -> None:
        """All is there; the next commit goes behind ``version``. Ephemeral keys end: their connections have."""
        if self.store.version < self._loaded[0]:
            self.store.begin_history(*self._loaded)
        self.store.version = max(self.store.version, version)
        now, wall = self.timer(), self._clock()
        for key, (deadline, ttl) in self._lives.deadlines.items():
            left = deadline - wall if ttl is None else min(deadline - wall, ttl)
            self._lifetimes.touched([key], now + max(0, left))
        self._note_deadline()

    def delete_orphaned_ephemerals(self) -> None:
        """Delete the ephemeral keys of connections that were open when the server ended."""
        orphans = [key for key in self._lives.ephemeral if self.store.exists(key)]
        self._lives = ReplayedExpiry()
        if orphans:
            self._reserve_if_possible(orphans)
            self._begin(orphans)
            self.store.delete(orphans, RESTARTED, missing_ok=True)
            self._committed(NO_EXPIRY)

    # ------------------------------------------------------------------ time

    def settle(self) -> None:
        """Let everything expire that is due."""
        while not self.expire_step():
            pass

    def expire_due_bounded(self) -> bool:
        """Let expire what is due, if it is not much; whether that was all. To be called before a batch of requests.

        If it is much, whoever was told by ``on_deadline`` goes on with ``expire_step``, piece by piece. Until then a
        key that is due may still be there: ``expire_named`` goes before whatever reads or writes it.
        """
        if self._next_look is None or self.timer() < self._next_look:
            return True
        if not self._is_behind:
            if self.expire_step():
                return True
            self._is_behind = True
            if self.on_deadline is not None:
                self.on_deadline(0)
        return False

    def expire_step(self) -> bool:
        """Let up to EXPIRED_KEYS keys expire that are due; whether these were all."""
        if self._next_look is None or (now := self.timer()) < self._next_look:
            return True
        self._expire(self._lifetimes.take_due(now, EXPIRED_KEYS))
        look = self._lifetimes.next_look
        if look is not None and look <= now:
            return False
        self._is_behind = False
        self._next_look = None
        self._note_deadline()
        return True

    def expire_named(self, keys: Iterable[str]) -> None:
        """Let those of ``keys`` expire that are due."""
        self._expire(self._lifetimes.take_due_of(list(keys), self.timer()))

    def _expire(self, due: list[str]) -> None:
        if due:
            self._reserve_if_possible(due)
            self._begin(due)
            self.store.expire(due)
            self._committed(NO_EXPIRY)
            if self.room.is_under_pressure:
                self.room.release_history()

    def time_to_live_us(self, key: str) -> int | None:
        """How long ``key`` has still to live; None without an end."""
        deadline = self._lifetimes.deadline_of(key)
        return None if deadline is None else max(0, deadline - self.timer())

    def next_look_us(self) -> int | None:
        """In how many microseconds something may be due; None without any deadline."""
        return None if self._next_look is None else max(0, self._next_look - self.timer())

    def _note_deadline(self) -> None:
        look = self._lifetimes.next_look
        if look is not None and (self._next_look is None or look < self._next_look):
            self._next_look = look
            if self.on_deadline is not None:
                self.on_deadline(max(0, look - self.timer()))

    def history_due_us(self) -> int | None:
        """In how many microseconds the oldest commit, or value, will be too old; None without any."""
        window = self.store.window
        if window.oldest is None:
            return None
        due_at, forgotten_at = window.oldest.time + window.limits.max_age_us, self.store.retention.due_at()
        if forgotten_at is not None:
            due_at = min(due_at, forgotten_at)
        return max(0, due_at - self._clock())

    def history_age_us(self) -> int:
        """How many microseconds ago the oldest commit in the history was made; 0 without any."""
        oldest = self.store.window.oldest
        return 0 if oldest is None else max(0, self._clock() - oldest.time)

    def tidy(self, budget_keys: int) -> bool:
        """Drop history that has grown too old while nobody wrote; whether there may be more to drop."""
        self.store.advance(self._clock())
        return self.store.drop_history(budget_keys) > 0

    # ------------------------------------------------------------------ counters

    def count_deadlines(self) -> int:
        """How many keys will expire."""
        return self._lifetimes.count

    def metrics(self) -> list[tuple[str, int]]:
        """Name and value, the five that the original had first."""
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
            ("keys_with_deadline", self._lifetimes.count),
            ("memory_bytes", self.room.used_bytes()),
            ("memory_bytes_max", self.room.max_bytes),
            ("expired_keys", counters.expired_keys),
            ("evicted_keys", counters.evicted_keys),
        ]


def _max_bytes(keys: Collection[str], values: Iterable[bytes | None]) -> int:
    """The most that a group of these takes in the commit log.

    A character has four bytes at most, and a key is named three times if it has a deadline and dies with a connection.
    """
    stored = sum(map(len, filter(None, values)))
    return GROUP_BYTES + len(keys) * KEY_BYTES + 12 * sum(map(len, keys)) + stored


def _last_version(group: Group) -> int:
    return group.version + group.commits - 1
