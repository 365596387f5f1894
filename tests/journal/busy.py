"""A busy database: random commits of every kind, written, synced and checkpointed in any order; and a model of it.

The model knows nothing of the store or the journal: for each version it has the state of every key.
"""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvd.engine.database import Database
from kvd.journal.checkpoint import CheckpointFile, remove_superseded, slices
from kvd.journal.disk import Disk
from kvd.journal.records import Header, Heads
from kvd.store.errors import VersionLost
from kvd.store.history import commits_from
from kvd.store.lifetimes import NO_EXPIRY
from kvd.store.prefixes import PrefixRule, PrefixRules
from kvd.store.window import WindowLimits
from tests.journal.crashes import RecordingDisk
from tests.journal.running import ME, WALL_US, Running

KEYS = [f"key{number}" for number in range(10)]
# The number of commits in the history: each run has one of these.
HISTORIES = (0, 4, 14)
# Every other run forgets superseded values below this prefix after a millisecond.
SHORT = PrefixRule(prefix="key", history_ms=1)
SLICE_KEYS = 3


class Now(NamedTuple):
    """The state of a key. ``deadline`` is in wall-clock µs."""

    value: bytes
    version: int
    deadline: int | None
    owner: str | None


class Commit(NamedTuple):
    """An entry that the history should have."""

    version: int
    time: int
    author: str
    keys: frozenset[str]


State = dict[str, Now]


class Model:
    """The state at each version, and the commits between them."""

    def __init__(self) -> None:
        self.at: dict[int, State] = {0: {}}
        self.commits: list[Commit] = []
        self.ids: dict[bytes, tuple[int, object]] = {}
        self.version = 0

    @property
    def state(self) -> State:
        """The newest state."""
        return self.at[self.version]

    def commit(self, version: int, time: int, author: str, writes: dict[str, Now | None]) -> None:
        """Make the next commit."""
        state = {**self.state, **writes}
        self.at[version] = {key: now for key, now in state.items() if now is not None}
        self.commits.append(Commit(version, time, author, frozenset(writes)))
        self.version = version

    def lose(self, version: int) -> None:
        """Lose everything after ``version``."""
        self.at = {each: state for each, state in self.at.items() if each <= version}
        self.commits = [commit for commit in self.commits if commit.version <= version]
        self.ids = {id_: made for id_, made in self.ids.items() if made[0] <= version}
        self.version = version


class Busy:
    """A run on a recording disk. ``shows_early``: answers do not wait for syncs."""

    def __init__(
        self,
        disk: RecordingDisk,
        seed: int,
        *,
        model: Model | None = None,
        now: int = 0,
        shows_early: bool | None = None,
        running: Callable[..., Running] = Running,
        remove: Callable[[Disk, dict[int, int], int], list[str]] = remove_superseded,
        file: type[CheckpointFile] = CheckpointFile,
    ) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - a test that can be repeated
        self.disk = disk
        self.model = model or Model()
        self.limits = WindowLimits(max_commits=self.chance.choice(HISTORIES))
        self.shows_early = self.chance.random() < 0.5 if shows_early is None else shows_early
        self.now = now
        self.did: dict[str, int] = {}
        self._running_type, self._remove, self._file_type = running, remove, file
        self._checkpoint: tuple[int, CheckpointFile, Iterator[Heads] | None] | None = None
        self._rules = PrefixRules([SHORT] if seed % 2 else [])
        self._owner = 0
        self.start()

    # ------------------------------------------------------------------ a process

    def start(self) -> None:
        """Start on what is on the disk."""
        self._checkpoint = None
        self._owner += 1
        self.running = self._running_type(
            self.disk, limits=self.limits, segment_bytes=1024, seed=self.chance.getrandbits(32), now=lambda: self.now
        )
        self.running.database.memory.set_rules(self._rules)
        self.model.lose(self.running.found.version)
        orphans: dict[str, Now | None] = {key: None for key, now in self.model.state.items() if now.owner is not None}
        if orphans:
            self._commit("restarted", orphans)
        if self.shows_early:
            self.running.log.raise_ceiling(self.running.database.store.version + 20)
        self.say()

    def kill_and_start(self) -> None:
        """Kill the process: what was written survives, what was only added does not."""
        self.start()

    def stop_and_start(self) -> None:
        """Stop cleanly."""
        self._drop_checkpoint()
        self.running.write(sync=False)  # the log syncs it before it says that nothing follows
        self.say()
        self.running.log.close()
        self.start()

    def say(self) -> None:
        """Record the facts that hold from here on, whatever happens."""
        log, window = self.running.log, self.running.database.store.window
        for fact, value in (
            ("synced", log.synced),
            ("written", log.written),
            ("shown", max(log.synced, min(log.written, log.ceiling)) if self.shows_early else log.synced),
            ("oldest", window.oldest_readable),
        ):
            self.disk.say(fact, value)

    # ------------------------------------------------------------------ steps

    def step(self) -> None:
        """Take a random step."""
        name = self.chance.choices(list(STEPS), list(STEPS.values()))[0]
        self.did[name] = self.did.get(name, 0) + 1
        self.time_passes(self.chance.randrange(1000))
        getattr(self, name)()
        self.say()

    def _commit(self, author: str, writes: dict[str, Now | None], version: int | None = None) -> None:
        store = self.running.database.store
        version = store.version if version is None else version
        stamped = {key: None if now is None else now._replace(version=version) for key, now in writes.items()}
        self.model.commit(version, store.time, author, stamped)

    def time_passes(self, us: int) -> None:
        """Let time pass; due keys expire."""
        self.now += us
        self.running.database.expire_all_due()
        now = WALL_US + self.now
        due = [key for key, each in self.model.state.items() if each.deadline is not None and each.deadline <= now]
        if due:
            self._commit("expired", dict.fromkeys(due))

    def _keys(self, most: int = 3) -> list[str]:
        return self.chance.sample(KEYS, self.chance.randint(1, most))

    def _value(self) -> bytes:
        return self.chance.randbytes(self.chance.choice((0, 1, 5, 30, 200)))

    def set(self) -> None:
        """Make one commit of some keys, now and then with an id, a deadline or an owner."""
        entries = {key: self._value() for key in self._keys()}
        ttl = self.chance.choice((None, None, 2_000, 9_000_000))
        owner = self.chance.choice((None, None, None, f"owner{self._owner}"))
        database = self.running.database
        expiry = NO_EXPIRY if ttl is None and owner is None else database.expiry(ttl, keep=False, owner=owner)
        id_ = self.chance.randbytes(16) if self.chance.random() < 0.5 else None
        version = self.running.set(entries, expiry, id_=id_)
        deadline = None if ttl is None else WALL_US + self.now + ttl
        self._commit("test", {key: Now(value, 0, deadline, owner) for key, value in entries.items()})
        if id_ is not None:
            self.model.ids[id_] = version, version

    def set_each(self) -> None:
        """Make several commits in one step."""
        batch = [{key: self._value()} for key in self._keys(5)]
        ids: list[tuple[bytes, int | None]] = [(self.chance.randbytes(16), None) for _ in batch]
        versions = self.running.database.set_each_once(1000, ids, batch, ME)
        assert versions is not None
        for entries, version, (id_, _) in zip(batch, versions, ids, strict=True):
            self._commit("test", {key: Now(value, 0, None, None) for key, value in entries.items()}, version)
            self.model.ids[id_] = version, version

    def delete(self) -> None:
        """Delete existing keys, or none."""
        keys = [key for key in self._keys() if key in self.model.state]
        self.running.database.delete(keys, ME, missing_ok=True)
        if keys:
            self._commit("test", dict.fromkeys(keys))

    def txn(self) -> None:
        """Store and delete in one commit."""
        writes = {key: self._value() if self.chance.random() < 0.5 else None for key in self._keys()}
        self.running.database.commit(writes, {}, [], 0, ME)
        done = {
            key: None if value is None else Now(value, 0, None, None)
            for key, value in writes.items()
            if value is not None or key in self.model.state
        }
        if done:
            self._commit("test", done)

    def touch(self) -> None:
        """Give keys another deadline, and keep their values."""
        keys, ttl = self._keys(), self.chance.choice((None, 3_000, 9_000_000))
        self.running.database.touch(keys, ttl, ME)
        deadline = None if ttl is None else WALL_US + self.now + ttl
        writes: dict[str, Now | None] = {
            key: self.model.state[key]._replace(deadline=deadline) for key in keys if key in self.model.state
        }
        if writes:
            self._commit("test", writes)

    def bury(self) -> None:
        """Close the connection of this run's ephemeral keys."""
        owner = f"owner{self._owner}"
        self.running.database.delete_owned(owner, ME)
        keys = [key for key, now in self.model.state.items() if now.owner == owner]
        if keys:
            self._commit("test", dict.fromkeys(keys))

    def write(self) -> None:
        """Write and sync."""
        self.running.write()

    def write_only(self) -> None:
        """Write without a sync."""
        self.running.write(sync=False)

    def sync(self) -> None:
        """Sync, and perhaps write something during the sync."""
        self.running.write(sync=False)
        if self.chance.random() < 0.5 and self.running.log.fits_now():
            self.set()
            if self.running.log.fits_now():
                self.disk.during_sync = self.write_only
        self.running.log.sync()

    def mark(self) -> None:
        """Write a mark."""
        self.running.log.mark()

    def raise_ceiling(self) -> None:
        """Raise the ceiling."""
        if self.shows_early:
            self.running.log.raise_ceiling(self.running.database.store.version + 20)

    def checkpoint(self) -> None:
        """Take the next step of a checkpoint; the first begins it, the last removes the files that it supersedes."""
        if self._checkpoint is None:
            number = self.running.rotate()
            version = self.running.log.written
            header = Header(self.chance.getrandbits(64), number, version, version, self.running.store_id)
            self._checkpoint = number, self._file_type(self.disk, header), None
            return
        number, file, records = self._checkpoint
        if records is None:
            records = slices(self.running.database, SLICE_KEYS)
        elif (record := next(records, None)) is not None:
            file.write(record)
        else:
            self._finish(number, file)
            return
        self._checkpoint = number, file, records

    def _finish(self, number: int, file: CheckpointFile) -> None:
        end, time = self.running.log.added, self.running.database.store.time
        self.running.write()
        file.finish(end, time)
        self._checkpoint = None
        self.running.ends[number] = end
        self.did["finished"] = self.did.get("finished", 0) + 1
        if self.chance.random() < 0.5:
            self.set()  # so that a commit leaves the history
            self.remove()

    def remove(self) -> None:
        """Remove the files that nothing needs."""
        self.say()
        removed = self._remove(self.disk, self.running.ends, self.running.database.store.window.oldest_readable)
        self.did["removed"] = self.did.get("removed", 0) + len(removed)

    def _drop_checkpoint(self) -> None:
        if self._checkpoint is not None:
            self._checkpoint[1].abandon()
            self._checkpoint = None


# Each with its weight.
STEPS = {
    "set": 30,
    "set_each": 8,
    "delete": 6,
    "txn": 6,
    "touch": 4,
    "bury": 2,
    "write": 20,
    "write_only": 14,
    "sync": 6,
    "mark": 2,
    "raise_ceiling": 2,
    "checkpoint": 24,
    "remove": 6,
    "kill_and_start": 1,
    "stop_and_start": 1,
}


def differences(database: Database, version: int, model: Model, now: int) -> str | None:
    """Return the difference of a recovered database from the model, before orphans are deleted; or None."""
    if version not in model.at:
        return f"version {version} never was"
    page = database.store.scan("", None, 10**6)
    found = {item.key: (item.value, item.version) for item in page.items}
    state = model.at[version]
    if found != {key: (now.value, now.version) for key, now in state.items()}:
        return "the values"
    counters = database.store.counters
    if (counters.keys, counters.value_bytes) != (len(state), sum(len(now.value) for now in state.values())):
        return "the counters"
    left = {key: database.time_to_live_us(key) for key in state}
    expected = {k: None if n.deadline is None else max(0, n.deadline - WALL_US - now) for k, n in state.items()}
    if left != expected:
        return "the deadlines"
    return _other_history(database, version, model) or _other_ids(database, version, model)


def _other_history(database: Database, version: int, model: Model) -> str | None:
    oldest = database.store.window.oldest_readable
    found = [
        Commit(commit.version, commit.time, commit.author.name, frozenset(commit.keys))
        for commit in commits_from(database.store, oldest + 1, 10**6, 1 << 40)
    ]
    if found != [commit for commit in model.commits if oldest < commit.version <= version]:
        return "the history"
    for at in {oldest, (oldest + version) // 2, max(oldest, version - 1)}:
        known = max((each for each in model.at if each <= at), default=0)
        was_lost = at != oldest and model.at.keys().isdisjoint((at, at + 1))  # in a crash; the last one has a state
        try:
            values = database.store.get_many(KEYS, at=at)
        except VersionLost:
            if was_lost:
                continue
            raise
        if was_lost:
            return f"version {at}, which a crash took, can be read"
        if values != [model.at[known][key].value if key in model.at[known] else None for key in KEYS]:
            return f"the values as of version {at}"
    return None


def _other_ids(database: Database, version: int, model: Model) -> str | None:
    oldest = database.store.window.oldest_readable
    for id_, (made, answer) in model.ids.items():
        found = database.outcomes.lookup(1000, id_, None, version)
        if made > version and found is not None:
            return "an id of a commit that is not there"
        if oldest < made <= version and found != answer:
            return "the answer to an id"
    return None
