"""``kv restore`` to a point, and what check and restore say: through the command, on real files."""

import json
import pathlib
import time
from typing import BinaryIO

import pytest

from kvd.engine.backup import Backup
from kvd.engine.database import Database
from kvd.journal.disk import Disk
from kvd.protocol import exits
from kvd.service.errors import StartError
from kvd.service.offline import check, check_backup, restore
from tests.journal.running import ME, WALL_US, Running

HOUR = 3600 * 10**6


def nothing(done: int, size: int) -> None:
    """Show no progress."""


def opened(path: str) -> BinaryIO:
    return open(path, "rb")


class Machine:
    """A data directory, written by a daemon whose clock the test sets."""

    def __init__(self, directory: pathlib.Path) -> None:
        directory.mkdir(mode=0o700)
        self.even, self.wall = 0, WALL_US
        self.running = Running(Disk(str(directory)), now=lambda: self.even, wall=lambda: self.wall)

    def set(self, key: str) -> None:
        self.running.set({key: b"x"})
        self.running.write()

    def pass_(self, us: int) -> None:
        self.even += us
        self.wall += us


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "data"


@pytest.fixture
def target(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "restored")


def test_a_time_before_the_data_began_is_an_error_that_says_when_they_began(source: pathlib.Path, target: str) -> None:
    Machine(source).set("a")
    with pytest.raises(StartError) as error:
        restore(str(source), target, None, WALL_US - 1, opened, nothing)
    assert error.value.exit_code == exits.FAILURE
    shown = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(WALL_US // 10**6))
    assert f"begins with version 1 of {shown}" in error.value.text
    assert not pathlib.Path(target).exists()


def test_the_version_before_the_first_is_an_error_too(source: pathlib.Path, target: str) -> None:
    Machine(source).set("a")
    with pytest.raises(StartError, match="begins with version 1"):
        restore(str(source), target, 0, None, opened, nothing)


def test_a_restore_says_how_many_keys_there_are(source: pathlib.Path, target: str) -> None:
    machine = Machine(source)
    for key in ("a", "b", "c"):
        machine.set(key)
        machine.pass_(HOUR)
    found = restore(str(source), target, None, WALL_US + HOUR, opened, nothing)
    assert (found.version, found.time, found.keys) == (2, WALL_US + HOUR, 2)
    assert check(target, nothing).keys == 2


@pytest.mark.parametrize("by", [-10 * HOUR, 10 * HOUR])
def test_a_time_before_the_clock_was_set_is_an_error(source: pathlib.Path, target: str, by: int) -> None:
    machine = Machine(source)
    machine.set("a")
    machine.wall += by
    machine.set("b")
    machine.pass_(HOUR)
    machine.set("c")
    with pytest.raises(StartError) as error:
        restore(str(source), target, None, WALL_US + by - 1, opened, nothing)
    assert error.value.exit_code == exits.FAILURE
    assert "the clock was set" in error.value.text
    assert "after version 1" in error.value.text
    found = restore(str(source), target, None, WALL_US + by, opened, nothing)
    assert (found.version, found.time, found.keys) == (2, WALL_US + by, 2)


def test_a_version_before_the_clock_was_set_is_restored(source: pathlib.Path, target: str) -> None:
    machine = Machine(source)
    machine.set("a")
    machine.wall -= HOUR
    machine.set("b")
    assert restore(str(source), target, 1, None, opened, nothing).keys == 1


def test_check_and_restore_say_the_same_of_a_backup_with_keys_of_connections(
    tmp_path: pathlib.Path, target: str
) -> None:
    """Its own version, and the keys that a start will have; and so does the check of what was restored."""
    database = Database(clock=lambda: WALL_US, timer=lambda: 5)
    database.set({"a": b"1"}, ME)
    database.set({"held": b"1"}, ME, database.expiry(None, keep=False, owner="a connection"))
    feed, data = Backup(database, 7), b""
    while not feed.is_drained:
        for event in feed.next_events():
            data += event[1] if event[0] == "data" else b""  # type: ignore[operator]
    file = tmp_path / "kvd.backup"
    file.write_bytes(data)
    checked, made = check_backup(str(file), opened, nothing), restore(str(file), target, None, None, opened, nothing)
    assert json.dumps([checked.version, checked.time, checked.keys]) == json.dumps([2, WALL_US, 1])
    assert (made.version, made.time, made.keys) == (2, WALL_US, 1)
    report = check(target, nothing)
    assert report.recovered is not None
    assert (report.recovered.version, report.keys) == (2, 1)


def test_a_directory_with_a_key_of_a_connection_is_counted_without_it(source: pathlib.Path, target: str) -> None:
    machine = Machine(source)
    machine.set("a")
    database = machine.running.database
    database.set({"held": b"1"}, ME, database.expiry(None, keep=False, owner="a connection"))
    machine.running.write()
    assert check(str(source), nothing).keys == 1
    assert restore(str(source), target, None, None, opened, nothing).keys == 1
