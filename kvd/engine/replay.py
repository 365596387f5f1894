"""The target of a recovery: fills an empty store from a data directory or a backup, before there is a database.

        checkpoint ─▶ load ──┐
        commit log ─▶ replay ┴─▶ store, idempotency cache, deadlines ─▶ Database(contents=…)

Deadlines are kept aside until the end, because only a key's last write decides when the key expires.
"""

from collections.abc import Iterable

from kvd.engine.clocks import Clock, boot_clock_us, wall_clock_us
from kvd.engine.commit_clock import CommitClock
from kvd.journal.records import Clock as ClockRecord
from kvd.journal.records import Group, Header
from kvd.store.authors import Author
from kvd.store.idempotency import IdempotencyCache
from kvd.store.store import Store
from kvd.store.window import ClockStep, WindowLimits

# History over its limits is dropped each time this many keys have been replayed.
REPLAYED_KEYS = 1_024
REMEMBERED_WRITES = 65_536


class ReplayedExpiry:
    """When keys expire, as far as the log has been read. Deadlines are wall-clock µs since the epoch."""

    def __init__(self) -> None:
        # key → (deadline, how far it was away when it was written; None if that is not known)
        self.deadlines: dict[str, tuple[int, int | None]] = {}
        self.ephemeral: set[str] = set()

    def __bool__(self) -> bool:
        """Whether any key expires or is ephemeral."""
        return bool(self.deadlines or self.ephemeral)

    def record_write(
        self, keys: Iterable[str], deadlines: dict[str, int] | None, ephemeral: list[str] | None, time: int | None
    ) -> None:
        """Replace what is known of ``keys``, which were written or deleted at ``time``."""
        if self.deadlines:
            for key in self.deadlines.keys() & keys:
                del self.deadlines[key]
        if self.ephemeral:
            self.ephemeral.difference_update(keys)
        for key, deadline in (deadlines or {}).items():
            self.deadlines[key] = deadline, None if time is None else max(0, deadline - time)
        self.ephemeral.update(ephemeral or ())


class Replay:
    """The contents of a database, as ``kvd.journal.recovery.Target``; empty until a recovery fills them.

    ``clock`` gives the wall-clock time, ``timer`` the time that deadlines go by; both in µs. ``boot`` identifies the
    boot of ``timer``.
    """

    def __init__(
        self,
        limits: WindowLimits | None = None,
        clock: Clock = wall_clock_us,
        timer: Clock = boot_clock_us,
        boot: bytes = b"",
    ) -> None:
        self.store = Store(limits)
        self.outcomes = IdempotencyCache(REMEMBERED_WRITES)
        self.clock = clock
        self.timer = timer
        self.commit_clock = CommitClock(self.store, clock, timer, boot)
        self._clock_found: tuple[bytes, int | None] = b"", None  # boot and offset, as far as the log has been read
        # Ephemeral keys of connections that were open when the daemon ended.
        self.orphans: list[str] = []
        self._expiries = ReplayedExpiry()
        self._loaded = 0, 0  # version and time at which the checkpoint ended
        self._authors: dict[tuple[int | None, int | None, str], Author] = {}
        self._replayed_keys = 0  # since history was dropped last

    def count_keys(self) -> int:
        """How many keys have a value."""
        return self.store.counters.keys

    def count_lasting_keys(self) -> int:
        """How many keys have a value, after the recovery, without those of connections that have ended."""
        return self.store.counters.keys - len(self.orphans)

    def leave_out_orphans(self) -> None:
        """Leave the keys of connections that have ended out of what was recovered, without a commit."""
        self.store.lifetimes.clear(self.orphans)
        self.store.catch_up(self.store.version + 1, [(key, None) for key in self.orphans], 0)
        self.orphans = []

    def begin_load(self, header: Header) -> None:
        """Begin a checkpoint. Its header holds nothing that is needed."""

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
        self._expiries.record_write(keys, deadlines, ephemeral, wall)

    def end_of_load(self, version: int, time: int) -> None:
        """End the checkpoint at ``version``: up to there the log adds only what is newer than the loaded values."""
        self._loaded = version, time

    def begin_segment(self, header: Header, *, is_first: bool) -> None:
        """Begin a segment of the log. The ids of commits before the first segment are not known."""
        if is_first:
            self.outcomes.forget_through(header.watermark)

    def note_clock(self, record: ClockRecord) -> None:
        """Note how the clock went when a segment was begun."""
        self._clock_found = record.boot, record.offset
        self.store.window.set_steps(ClockStep(*step) for step in record.steps)

    def replay(self, group: Group) -> None:
        """Make a group of commits again. Raises ValueError if it cannot have been made."""
        if group.step is not None:
            self._clock_found = self._clock_found[0], group.step[0]
        if group.version + group.commits - 1 <= self._loaded[0]:
            self._catch_up(group)
        else:
            self._replay_commits(group)
        if self._expiries or group.deadlines or group.ephemeral:
            time = group.time if group.wall is None else group.wall
            self._expiries.record_write(group.keys, group.deadlines, group.ephemeral, time)
        for scope, id_, version, answer in group.ids or ():
            self.outcomes.remember(scope, id_, version, answer)

    def _catch_up(self, group: Group) -> None:
        if group.keeps:
            self.store.catch_up_kept(group.version, group.keys)
        else:
            writes = list(zip(group.keys, group.values, strict=True))
            self.store.catch_up(group.version, writes, 0 if group.commits == 1 else 1)

    def _replay_commits(self, group: Group) -> None:
        if self.store.version < self._loaded[0]:
            self.store.begin_history(*self._loaded)
        author = self._authors.get(group.author)
        if author is None:
            author = self._authors[group.author] = Author(*group.author)
        if group.step is not None:
            self.store.go_on_at(group.version - 1)
            self.store.note_step(group.time, group.step[1])
        if group.keeps:
            self.store.replay_kept(group.version, group.time, author, group.keys)
        else:
            writes = list(zip(group.keys, group.values, strict=True))
            self.store.replay(group.version, group.time, author, group.commits, writes)
        self._replayed_keys += len(group.keys)
        if self._replayed_keys >= REPLAYED_KEYS:
            self.store.drop_history(2 * self._replayed_keys)
            self._replayed_keys = 0

    def end_of_replay(self, version: int) -> None:
        """End the recovery. Go on at ``version``, which no client has seen; deadlines go by ``timer`` from now on."""
        if self.store.version < self._loaded[0]:
            self.store.begin_history(*self._loaded)
        self.store.go_on_at(version)
        self.commit_clock.resume(*self._clock_found)
        now, wall = self.timer(), self.clock()
        for key, (deadline, ttl) in self._expiries.deadlines.items():
            left = deadline - wall if ttl is None else min(deadline - wall, ttl)
            self.store.lifetimes.set_deadline([key], now + max(0, left))
        self.orphans = [key for key in self._expiries.ephemeral if self.store.exists(key)]
        self._expiries = ReplayedExpiry()
