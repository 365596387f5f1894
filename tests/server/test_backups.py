"""A backup is everything as of its end, whatever is committed, expires or goes while it is taken."""

import io
import random
from typing import Any

import pytest

from kvd.engine import backup as backups_module
from kvd.engine.backup import Backup
from kvd.engine.database import Database
from kvd.engine.replay import Replay
from kvd.journal.backup_file import BackupReader, load_backup
from kvd.journal.errors import Damaged, NewerFormat
from kvd.store.prefixes import PrefixRule, PrefixRules
from kvd.store.window import WindowLimits
from tests.harness.in_memory import build_database
from tests.journal.busy import Busy, differences
from tests.journal.crashes import RecordingDisk
from tests.journal.running import BOOT_US, ME, WALL_US

SEEDS = range(40)
COMMITS = ("set", "set_each", "delete", "txn", "touch", "bury")


class Taken:
    """A backup that somebody takes, event by event."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.feed = Backup(database, 4711)
        self.data = bytearray()
        self.end: tuple[int, int, int] | None = None
        self.failure: str | None = None

    @property
    def is_over(self) -> bool:
        return self.end is not None or self.failure is not None

    def take(self) -> int:
        """One turn; how many events came."""
        events = self.feed.next_events()
        for event in events:
            self._take(*event)
        return len(events)

    def _take(self, kind: str, *told: Any) -> None:  # noqa: ANN401
        assert not self.is_over
        if kind == "data":
            self.data += told[0]
        elif kind == "end":
            self.end = told[0], told[1], told[2]
        else:
            self.failure = told[0]

    def rest(self) -> None:
        """All that there is without waiting."""
        while not self.feed.is_drained:
            self.take()


def loaded(data: bytes, now: int = 0) -> Database:
    contents = Replay(clock=lambda: WALL_US + now, timer=lambda: 3 * BOOT_US + now)
    load_backup(BackupReader(io.BytesIO(data), "x"), contents, lambda done: None)
    return Database(contents=contents)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key a slice, and a few keys of commits, so that there is much between two pieces."""
    monkeypatch.setattr(backups_module, "SLICE_KEYS", 1)
    monkeypatch.setattr(backups_module, "COMMITS_KEYS", 2)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_happens_meanwhile(seed: int) -> None:
    """Random commits between the pieces, each durable later; the file is what the model says of its end."""
    busy = Busy(RecordingDisk(), seed)
    chance = random.Random(seed)  # noqa: S311 - a test that can be repeated
    for _ in range(30):
        busy.step()
    busy.write()
    database = busy.running.database
    busy.running.progress.shown = database.store.version
    taken = Taken(database)
    for turn in range(1000):
        for _ in range(chance.randrange(5) if turn < 40 else 0):
            busy.time_passes(chance.randrange(1000))
            getattr(busy, chance.choice(COMMITS))()
        if chance.random() < 0.5:
            busy.write()
            busy.running.progress.shown = busy.running.log.synced
        shown = taken.take()
        assert not shown or taken.end is None or taken.end[0] <= database.visible
        if taken.is_over:
            break
    assert taken.failure is None
    assert taken.end is not None
    version, time, keys = taken.end
    copy = loaded(bytes(taken.data), busy.now)
    assert differences(copy, version, busy.model, busy.now) is None
    assert (copy.store.version, copy.store.time) == (version, time)
    assert keys == len(busy.model.at[version])


@pytest.mark.usefixtures("small_pieces")
def test_what_is_evicted_meanwhile() -> None:
    """A value that went before its commit was told: that it went is told too."""
    database = build_database(clock=lambda: WALL_US)
    database.memory.configure(100_000, 0, 100_000)
    database.memory.set_rules(PrefixRules([PrefixRule(prefix="", evict=True)]))
    database.set({"a": b"1"}, ME)
    taken = Taken(database)
    taken.take()
    for number in range(8):
        database.set_each([{f"k{number}": bytes(10_000)}, {f"l{number}": bytes(10_000)}], ME)
    taken.rest()
    assert taken.end is not None
    copy = loaded(bytes(taken.data))
    assert copy.store.scan("", None, 100).items == database.store.scan("", None, 100).items
    assert database.store.counters.evicted_keys >= 5


@pytest.mark.usefixtures("small_pieces")
def test_nothing_is_told_before_it_may_be_shown() -> None:
    busy = Busy(RecordingDisk(), 3)
    database = busy.running.database
    busy.set()
    busy.running.progress.shown = 0
    taken = Taken(database)
    taken.rest()
    assert (bytes(taken.data), taken.is_over) == (b"", False)
    busy.running.progress.shown = database.store.version
    taken.rest()
    assert taken.end is not None


def test_of_an_empty_store() -> None:
    taken = Taken(build_database(clock=lambda: WALL_US))
    taken.rest()
    assert taken.end == (0, 0, 0)
    assert loaded(bytes(taken.data)).store.counters.keys == 0


def test_a_backup_taken_too_slowly_says_so() -> None:
    limits = WindowLimits(max_bytes=1000, max_commits=5, max_pinned_bytes=2000)
    database = build_database(limits, clock=lambda: WALL_US)
    database.set({"a": b""}, ME)
    taken = Taken(database)
    taken.take()
    for number in range(100):
        database.set({f"k{number}": bytes(100)}, ME)
    taken.rest()
    assert taken.end is None
    assert taken.failure is not None
    assert "too slowly" in taken.failure


def test_a_backup_that_is_given_up_lets_the_history_go() -> None:
    database = build_database(WindowLimits(max_commits=3), clock=lambda: WALL_US)
    taken = Taken(database)
    taken.feed.close()
    for number in range(10):
        database.set({"k": b"%d" % number}, ME)
    assert database.store.window.oldest_readable > 0
    assert taken.feed.is_drained
    assert taken.feed.next_events() == []


def of_some_keys() -> bytes:
    database = build_database(clock=lambda: WALL_US)
    for number in range(20):
        database.set({f"key{number}": b"v" * number}, ME)
    taken = Taken(database)
    taken.rest()
    return bytes(taken.data)


def test_a_backup_that_was_cut_is_refused_wherever() -> None:
    data = of_some_keys()
    for size in range(len(data)):
        with pytest.raises(Damaged):
            loaded(data[:size])


def test_a_backup_with_a_flipped_byte_is_refused_wherever() -> None:
    data = of_some_keys()
    for at in range(len(data)):
        with pytest.raises((Damaged, NewerFormat)):
            loaded(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])


def test_a_backup_with_something_behind_it_is_refused() -> None:
    with pytest.raises(Damaged, match="end here"):
        loaded(of_some_keys() + b"\0")
