"""Files of earlier versions are read, and mean what they meant: the fixtures of every format so far.

What each holds stands beside it in ``expected.json``, written by hand when it was made (``fixtures/make.py``).
"""

import io
import json
import pathlib
from typing import Any

import msgspec
import pytest

from kvd.engine.database import Database
from kvd.engine.replay import Replay
from kvd.journal.backup_file import BackupReader, load_backup
from kvd.journal.disk import Disk
from kvd.journal.records import FORMAT
from kvd.journal.recovery import Recovered, prepare_tail
from kvd.store.history import commits_from, versions
from kvd.store.window import WindowLimits
from tests.journal.disks import MemoryDisk
from tests.journal.running import WALL_US, Running, recovered

FOLDERS = sorted(path.parent for path in pathlib.Path(__file__).parent.glob("fixtures/format-*/*/expected.json"))
DIRECTORIES = [folder for folder in FOLDERS if folder.name != "backup"]
BACKUPS = [folder for folder in FOLDERS if folder.name == "backup"]
LIMITS = WindowLimits(max_commits=2)


def name(folder: pathlib.Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


def expected_of(folder: pathlib.Path) -> Any:  # noqa: ANN401 - JSON
    return json.loads((folder / "expected.json").read_text())


def files(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "expected.json"}


def recovered_from(disk: MemoryDisk, limits: WindowLimits | None = None) -> tuple[Database, Recovered]:
    return recovered(disk, limits, lambda: WALL_US, lambda: 10**9)


def values(database: Database) -> dict[str, list[object]]:
    return {item.key: [list(item.value or b""), item.version] for item in database.store.scan("", None, 99).items}


def deadlines(database: Database) -> dict[str, int]:
    left = {key: database.time_to_live_us(key) for key in values(database)}
    return {key: WALL_US + us for key, us in left.items() if us is not None}


def test_there_are_fixtures_of_the_present_format() -> None:
    kinds = {folder.name for folder in FOLDERS if folder.parent.name == f"format-{FORMAT}"}
    assert kinds == {"stopped", "torn", "checkpointed", "backup"}


@pytest.mark.parametrize("folder", DIRECTORIES, ids=name)
def test_a_directory_is_read(folder: pathlib.Path) -> None:
    expected = expected_of(folder)
    limits = LIMITS if folder.name == "checkpointed" else None
    database, found = recovered_from(MemoryDisk(files(folder)), limits)
    database.store.drop_history(100)
    assert (found.version, found.clean) == (expected["version"], expected["clean"])
    assert (found.torn is not None) == expected["torn"]
    assert found.store_id == b"a store!"
    assert values(database) == expected["values"]
    assert deadlines(database) == expected["deadlines"]
    oldest = database.store.window.oldest_readable
    assert oldest == expected["oldest"]
    commits = commits_from(database.store, oldest + 1, 99, 1 << 20)
    shown = [[each.version, msgspec.to_builtins(each.author), sorted(each.keys)] for each in commits]
    assert shown == expected["commits"]
    for scope, id_, answer in expected["ids"]:
        assert database.outcomes.lookup(scope, bytes.fromhex(id_), None, found.version) == answer


@pytest.mark.parametrize("folder", DIRECTORIES, ids=name)
def test_a_directory_can_be_written_to(folder: pathlib.Path) -> None:
    """It is started, written to, and started again; ephemeral keys are deleted at the first start."""
    expected = expected_of(folder)
    disk = MemoryDisk(files(folder))
    running = Running(disk)
    new = running.set({"new": b"1"})
    running.write()
    assert new > expected["version"]
    again, found = recovered_from(MemoryDisk(disk.contents()))
    prepare_tail(disk, found)
    kept = {key: value for key, value in expected["values"].items() if key not in expected["ephemeral"]}
    assert values(again) == {**kept, "new": [[49], new]}


@pytest.mark.parametrize("folder", BACKUPS, ids=name)
def test_a_backup_is_read(folder: pathlib.Path) -> None:
    expected = expected_of(folder)
    contents = Replay(clock=lambda: WALL_US, timer=lambda: 10**9)
    load_backup(BackupReader(io.BytesIO(files(folder)["kvd.backup"]), "x"), contents, lambda done: None)
    database = Database(contents=contents)
    assert database.store.version == expected["version"]
    assert values(database) == expected["values"]
    assert deadlines(database) == expected["deadlines"]


# ---------------------------------------------------------------------- a directory of a daemon of format 1

# kvd 0.1.0 was started with segments of 64 KiB, and killed after this:
#   set plain=1 other=two, set plain=3, set ttl=lives for 36,000 days, touch ttl for 30,000 days, del other,
#   lock alock and unlock it, checkpoint, set after=checkpoint, set touched=value, touch it for 30,000 days, lock held
SERVED = pathlib.Path(__file__).parent / "fixtures" / "daemon-0.1.0"
DAYS_30_000 = 30_000 * 24 * 3600 * 10**6
SERVED_VALUES = {
    "after": ([*b"checkpoint"], 8),
    "plain": ([*b"3"], 2),
    "touched": ([*b"value"], 10),
    "ttl": ([*b"lives"], 4),
}


def test_a_directory_of_a_daemon_of_format_1_is_read() -> None:
    database, found = recovered_from(MemoryDisk(files(SERVED)))
    assert (found.version, found.clean, found.torn) == (11, False, None)
    held = {key: value for key, value in values(database).items() if key.startswith("lock/held/")}
    assert len(held) == 1, "the lock of a process that was alive"
    assert values(database) == {key: [*value] for key, value in SERVED_VALUES.items()} | held
    commits = commits_from(database.store, 1, 99, 1 << 20)
    assert [commit.version for commit in commits] == [*range(1, 12)]
    assert [commit.keys for commit in commits[:5]] == [["plain", "other"], ["plain"], ["ttl"], ["ttl"], ["other"]]
    assert [each.value for each in versions(database.store, "touched", 9, None, 1 << 20)] == [b"value", b"value"]
    assert database.store.get_many(["plain", "other"], 1) == [b"1", b"two"]
    # As long as they had when they were written: the clock of this test is behind that.
    assert lives_of(database) == pytest.approx(dict.fromkeys(("ttl", "touched"), DAYS_30_000), abs=10**6)


def lives_of(database: Database) -> dict[str, int]:
    return {key: us for key in values(database) if (us := database.time_to_live_us(key)) is not None}


def test_a_directory_of_a_daemon_of_format_1_goes_on_in_the_present_format(tmp_path: pathlib.Path) -> None:
    for name_, data in files(SERVED).items():
        (tmp_path / name_).write_bytes(data)
    running = Running(Disk(str(tmp_path)))
    assert running.set({"new": b"1"}) == 13, "after the deletion of the lock"
    running.write()
    running.log.close()
    again, found = recovered(Disk(str(tmp_path)))
    assert found.clean
    assert values(again) == {key: [*value] for key, value in SERVED_VALUES.items()} | {"new": [[49], 13]}
    newest = max(tmp_path.glob("*.log")).read_bytes()
    assert newest[8] == FORMAT > 1, "which a daemon of format 1 refuses by its number"
