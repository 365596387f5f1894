"""The calls to the system; and the disk in memory that other tests use does the same."""

import errno
import os
import pathlib
import random

import pytest

from kvd.journal.disk import Disk, check_owner
from tests.journal.disks import MemoryDisk

CALLS = ("create", "write", "write", "allocate", "truncate", "close", "rename", "remove", "sync")


@pytest.fixture
def disk(tmp_path: pathlib.Path) -> Disk:
    return Disk(str(tmp_path))


def some_calls(disk: Disk, seed: int) -> list[object]:
    """Random calls, and what is there after each; errors by their number."""
    chance = random.Random(seed)  # noqa: S311 - a test that can be repeated
    seen: list[object] = []
    descriptors: list[int] = []
    for _ in range(60):
        name, other = chance.choice("abc"), chance.choice("abc")
        size = chance.randrange(1, 3000)
        descriptor = chance.choice(descriptors) if descriptors else None
        try:
            match chance.choice(
                ["create", "write", "write", "allocate", "truncate", "close", "rename", "remove", "sync"]
            ):
                case "create":
                    descriptors.append(disk.create(name))
                case "rename":
                    disk.rename(name, other)
                case "remove":
                    disk.remove(name)
                case kind if descriptor is None:
                    seen.append(kind)
                case "write":
                    disk.write(descriptor, chance.randbytes(size), chance.randrange(3000))
                case "allocate":
                    disk.allocate(descriptor, size)
                case "truncate":
                    disk.truncate(descriptor, size)
                case "sync":
                    disk.sync(descriptor)
                    disk.sync_directory()
                case "close":
                    descriptors.remove(descriptor)
                    disk.close_file(descriptor)
        except OSError as error:
            seen.append(error.errno)
        seen.append([(each, disk.size(each), disk.read(each)) for each in disk.names()])
    for descriptor in descriptors:
        disk.close_file(descriptor)
    return seen


@pytest.mark.parametrize("seed", range(10))
def test_the_disk_in_memory_does_what_a_real_one_does(disk: Disk, seed: int) -> None:
    assert some_calls(MemoryDisk(), seed) == some_calls(disk, seed)


@pytest.mark.parametrize("call", ["read", "size", "remove"])
def test_what_is_not_there_raises(disk: Disk, call: str) -> None:
    for each in (disk, MemoryDisk()):
        with pytest.raises(FileNotFoundError):
            getattr(each, call)("missing")


def test_names_are_those_of_files_only(disk: Disk, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    assert disk.names() == ["file"]


def test_a_link_is_not_followed(disk: Disk, tmp_path: pathlib.Path) -> None:
    """Somebody else's file would be cut to nothing."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to("precious")
    for call in (disk.create, disk.read):
        with pytest.raises(OSError, match="symbolic links"):
            call("link")
    assert (tmp_path / "precious").read_text() == "precious"


def test_files_are_for_their_owner_only_and_not_inherited(disk: Disk, tmp_path: pathlib.Path) -> None:
    descriptor = disk.create("file")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert not os.get_inheritable(descriptor)
    disk.close_file(descriptor)


def test_the_directory_may_be_moved_while_it_is_used(tmp_path: pathlib.Path) -> None:
    old = tmp_path / "old"
    old.mkdir()
    disk = Disk(str(old))
    disk.close_file(disk.create("file"))
    old.rename(tmp_path / "new")
    disk.rename("file", "other")
    assert disk.size("other") == 0
    assert (tmp_path / "new" / "other").exists()


def test_a_write_that_takes_less_goes_on_with_the_rest(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: pwrite(descriptor, data[:7], at))
    descriptor = disk.create("file")
    disk.write(descriptor, bytes(range(100)), 3)
    assert disk.read("file") == bytes(3) + bytes(range(100))
    disk.close_file(descriptor)


def test_a_write_that_takes_nothing_is_an_error_and_not_tried_for_ever(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: 0)
    descriptor = disk.create("file")
    with pytest.raises(OSError, match="nothing was written") as raised:
        disk.write(descriptor, b"x", 0)
    assert raised.value.errno == errno.EIO
    disk.close_file(descriptor)


def test_a_read_that_gives_less_goes_on(disk: Disk, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, at: pread(descriptor, min(size, 7), at))
    assert disk.read("file") == bytes(range(100))


def test_a_closed_directory_is_closed(tmp_path: pathlib.Path) -> None:
    disk = Disk(str(tmp_path))
    disk.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.sync_directory()


# ---------------------------------------------------------------------- whose directory it is


def test_a_directory_of_ones_own_is_fine(tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o755)
    assert check_owner(str(tmp_path)) is None


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_directory_that_others_can_write_is_not(tmp_path: pathlib.Path, mode: int) -> None:
    tmp_path.chmod(mode)
    assert "chmod go-w" in (check_owner(str(tmp_path)) or "")


def test_a_directory_of_somebody_else_is_not(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert check_owner(str(tmp_path)) == f"it belongs to uid {owner}, and this process is uid {owner + 1}"


def test_a_file_is_no_directory(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    assert check_owner(str(tmp_path / "file")) == "it is not a directory"
