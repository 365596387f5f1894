"""A backup is the state as of its end, whatever is committed, expires or is deleted meanwhile."""

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


class Receiver:
    """A client that receives a backup, event by event."""

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
        """Receive one batch of events. Return how many there were."""
        events = self.feed.next_events()
        for event in events:
            self._take(*event)
        return len(events)

    def _take(self, kind: str, *fields: Any) -> None:  # noqa: ANN401
        assert not self.is_over
        if kind == "data":
            self.data += fields[0]
        elif kind == "end":
            self.end = fields[0], fields[1], fields[2]
        else:
            self.failure = fields[0]

    def take_all(self) -> None:
        """Receive all events that there are without waiting."""
        while not self.feed.is_drained:
            self.take()


def loaded(data: bytes, now: int = 0) -> Database:
    contents = Replay(clock=lambda: WALL_US + now, timer=lambda: 3 * BOOT_US + now)
    load_backup(BackupReader(io.BytesIO(data), "x"), contents, lambda done: None)
    return Database(contents=contents)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """One key a slice and two keys of commits a piece, so that much happens between two pieces."""
    monkeypatch.setattr(backups_module, "SLICE_KEYS", 1)
    monkeypatch.setattr(backups_module, "COMMITS_KEYS", 2)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_backup_has_the_state_of_its_end_whatever_happens_meanwhile(seed: int) -> None:
    """Random commits between the pieces, each durable later. The file equals the model's state at its end."""
    busy = Busy(RecordingDisk(), seed)
    chance = random.Random(seed)  # noqa: S311 - a test that can be repeated
    for _ in range(30):
        busy.step()
    busy.write()
    database = busy.running.database
    busy.running.progress.shown = database.store.version
    backup = Receiver(database)
    for round_ in range(1000):
        for _ in range(chance.randrange(5) if round_ < 40 else 0):
            busy.time_passes(chance.randrange(1000))
            getattr(busy, chance.choice(COMMITS))()
        if chance.random() < 0.5:
            busy.write()
            busy.running.progress.shown = busy.running.log.synced
        shown = backup.take()
        assert not shown or backup.end is None or backup.end[0] <= database.visible
        if backup.is_over:
            break
    assert backup.failure is None
    assert backup.end is not None
    version, time, keys = backup.end
    copy = loaded(bytes(backup.data), busy.now)
    assert differences(copy, version, busy.model, busy.now) is None
    assert (copy.store.version, copy.store.time) == (version, time)
    assert keys == len(busy.model.at[version])


@pytest.mark.usefixtures("small_pieces")
def test_a_backup_has_what_is_evicted_meanwhile_as_evicted() -> None:
    """A value may be evicted before its commit is sent. Then its eviction is sent too."""
    database = build_database(clock=lambda: WALL_US)
    database.memory.configure(100_000, 0, 100_000)
    database.memory.set_rules(PrefixRules([PrefixRule(prefix="", evict=True)]))
    database.set({"a": b"1"}, ME)
    backup = Receiver(database)
    backup.take()
    for number in range(8):
        database.set_each([{f"k{number}": bytes(10_000)}, {f"l{number}": bytes(10_000)}], ME)
    backup.take_all()
    assert backup.end is not None
    copy = loaded(bytes(backup.data))
    assert copy.store.scan("", None, 100).items == database.store.scan("", None, 100).items
    assert database.store.counters.evicted_keys >= 5


@pytest.mark.usefixtures("small_pieces")
def test_a_backup_contains_nothing_that_may_not_be_shown_yet() -> None:
    busy = Busy(RecordingDisk(), 3)
    database = busy.running.database
    busy.set()
    busy.running.progress.shown = 0
    backup = Receiver(database)
    backup.take_all()
    assert (bytes(backup.data), backup.is_over) == (b"", False)
    busy.running.progress.shown = database.store.version
    backup.take_all()
    assert backup.end is not None


def test_a_backup_of_an_empty_store() -> None:
    backup = Receiver(build_database(clock=lambda: WALL_US))
    backup.take_all()
    assert backup.end == (0, 0, 0)
    assert loaded(bytes(backup.data)).store.counters.keys == 0


def test_a_backup_taken_too_slowly_says_so() -> None:
    limits = WindowLimits(max_bytes=1000, max_commits=5, max_pinned_bytes=2000)
    database = build_database(limits, clock=lambda: WALL_US)
    database.set({"a": b""}, ME)
    backup = Receiver(database)
    backup.take()
    for number in range(100):
        database.set({f"k{number}": bytes(100)}, ME)
    backup.take_all()
    assert backup.end is None
    assert backup.failure is not None
    assert "too slowly" in backup.failure


def test_a_cancelled_backup_releases_the_history() -> None:
    database = build_database(WindowLimits(max_commits=3), clock=lambda: WALL_US)
    backup = Receiver(database)
    backup.feed.close()
    for number in range(10):
        database.set({"k": b"%d" % number}, ME)
    assert database.store.window.oldest_readable > 0
    assert backup.feed.is_drained
    assert backup.feed.next_events() == []


def small_backup() -> bytes:
    database = build_database(clock=lambda: WALL_US)
    for number in range(20):
        database.set({f"key{number}": b"v" * number}, ME)
    backup = Receiver(database)
    backup.take_all()
    return bytes(backup.data)


def test_a_backup_that_is_cut_anywhere_is_rejected() -> None:
    data = small_backup()
    for size in range(len(data)):
        with pytest.raises(Damaged):
            loaded(data[:size])


def test_a_backup_with_a_flipped_byte_anywhere_is_rejected() -> None:
    data = small_backup()
    for at in range(len(data)):
        with pytest.raises((Damaged, NewerFormat)):
            loaded(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])


def test_a_backup_with_trailing_bytes_is_rejected() -> None:
    with pytest.raises(Damaged, match="end here"):
        loaded(small_backup() + b"\0")
