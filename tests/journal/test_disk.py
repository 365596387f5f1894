"""The system calls; and the disk in memory, which other tests use, behaves like them."""

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
    """Make random calls; return the contents after each of them, and errors by their number."""
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
        seen.append(
            [(each, disk.size(each), disk.read(each), bytes(disk.read_sparse(each)[0])) for each in disk.names()]
        )
    for descriptor in descriptors:
        disk.close_file(descriptor)
    return seen


@pytest.mark.parametrize("seed", range(10))
def test_the_disk_in_memory_behaves_like_a_real_one(disk: Disk, seed: int) -> None:
    assert some_calls(MemoryDisk(), seed) == some_calls(disk, seed)


@pytest.mark.parametrize("call", ["read", "read_sparse", "size", "remove"])
def test_a_missing_file_raises(disk: Disk, call: str) -> None:
    for each in (disk, MemoryDisk()):
        with pytest.raises(FileNotFoundError):
            getattr(each, call)("missing")


def test_names_are_those_of_files_only(disk: Disk, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("file")
    assert disk.names() == ["file"]


def test_a_link_is_not_followed(disk: Disk, tmp_path: pathlib.Path) -> None:
    """Another user's file would be emptied."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "link").symlink_to("precious")
    for call in (disk.create, disk.read, disk.read_sparse):
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


def test_a_short_write_goes_on_with_the_rest(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: pwrite(descriptor, data[:7], at))
    descriptor = disk.create("file")
    disk.write(descriptor, bytes(range(100)), 3)
    assert disk.read("file") == bytes(3) + bytes(range(100))
    disk.close_file(descriptor)


def test_a_write_of_no_bytes_is_an_error_and_not_retried_for_ever(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: 0)
    descriptor = disk.create("file")
    with pytest.raises(OSError, match="nothing was written") as raised:
        disk.write(descriptor, b"x", 0)
    assert raised.value.errno == errno.EIO
    disk.close_file(descriptor)


def test_a_short_read_goes_on(disk: Disk, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, at: pread(descriptor, min(size, 7), at))
    assert disk.read("file") == bytes(range(100))


def test_the_beginning_of_a_file_can_be_read_alone(disk: Disk, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    for each in (disk, MemoryDisk({"file": bytes(range(100))})):
        assert [each.read("file", size) for size in (0, 7, 200)] == [b"", bytes(range(7)), bytes(range(100))]


# ---------------------------------------------------------------------- files with zeros at their end

MEGABYTE = 1 << 20
# Pieces of data in a file of a size: at either end, alone, around the bounds of what one step reads.
SPARSE = [
    (0, {}),
    (1, {}),
    (3, {0: b"abc"}),
    (5, {0: b"abc"}),
    (5, {4: b"x"}),
    (MEGABYTE, {}),
    (MEGABYTE, {MEGABYTE - 1: b"x"}),
    (MEGABYTE + 1, {MEGABYTE - 1: b"xy"}),
    (8 * MEGABYTE, {0: b"begin"}),
    (8 * MEGABYTE, {0: b"begin", 5 * MEGABYTE - 2: b"over a bound"}),
    (8 * MEGABYTE, {0: b"begin", 8 * MEGABYTE - 1: b"!"}),
    (8 * MEGABYTE, {3 * MEGABYTE: b"in the middle alone"}),
    (8 * MEGABYTE - 7, {6 * MEGABYTE + 4096: b"x" * 70_000}),
]


def put(disk: Disk, size: int, pieces: dict[int, bytes], *, is_zeroed: bool) -> None:
    """Make a file of ``size`` bytes with ``pieces`` in it; the rest is allocated, or written full of zeros."""
    descriptor = disk.create("file")
    if is_zeroed:
        disk.write(descriptor, bytes(size), 0)
    elif size:
        disk.allocate(descriptor, size)
    for at, piece in pieces.items():
        disk.write(descriptor, piece, at)
    disk.close_file(descriptor)


@pytest.mark.parametrize("is_zeroed", [False, True], ids=["allocated", "zeroed"])
@pytest.mark.parametrize(("size", "pieces"), SPARSE)
def test_a_sparse_read_returns_the_whole_file_and_only_zeros_follow_its_end(
    disk: Disk, size: int, pieces: dict[int, bytes], is_zeroed: bool
) -> None:
    for each in (disk, MemoryDisk()):
        put(each, size, pieces, is_zeroed=is_zeroed)
        content, end = each.read_sparse("file")
        assert content == each.read("file")
        last = max((at + len(piece) for at, piece in pieces.items()), default=0)
        assert last <= end <= min(size, last + MEGABYTE)


def test_a_hole_that_was_never_allocated_is_read_as_zeros(disk: Disk, tmp_path: pathlib.Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        file.write(b"begin")
        file.seek(4 * MEGABYTE)
        file.write(b"end")
        file.truncate(6 * MEGABYTE)
    content, end = disk.read_sparse("file")
    assert content == b"begin" + bytes(4 * MEGABYTE - 5) + b"end" + bytes(2 * MEGABYTE - 3)
    assert 4 * MEGABYTE + 3 <= end <= 5 * MEGABYTE


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EOPNOTSUPP])
def test_if_the_file_system_cannot_say_what_was_written_everything_is_read(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    def refusing(descriptor: int, at: int, whence: int) -> int:
        raise OSError(refusal, os.strerror(refusal))

    put(disk, 4 * MEGABYTE, {0: b"begin", 3 * MEGABYTE: b"x"}, is_zeroed=False)
    monkeypatch.setattr(os, "lseek", refusing)
    content, end = disk.read_sparse("file")
    assert content == disk.read("file")
    assert 3 * MEGABYTE < end <= 4 * MEGABYTE


def test_another_error_of_seeking_data_is_raised(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(descriptor: int, at: int, whence: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    put(disk, 10, {}, is_zeroed=False)
    monkeypatch.setattr(os, "lseek", failing)
    with pytest.raises(OSError, match="Input/output error"):
        disk.read_sparse("file")


def test_a_short_sparse_read_goes_on(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    put(disk, 100, {3: bytes(range(1, 90))}, is_zeroed=True)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda descriptor, parts, at: preadv(descriptor, [memoryview(parts[0])[:7]], at))
    content, end = disk.read_sparse("file")
    assert content == disk.read("file")
    assert 92 <= end <= 100


@pytest.mark.parametrize("is_cold", [False, True], ids=["in memory", "on disk"])
def test_unwritten_space_is_not_read(disk: Disk, tmp_path: pathlib.Path, is_cold: bool) -> None:
    """As far as the file system knows: some count zeros as data, and then everything is read."""
    put(disk, 64 * MEGABYTE, {0: b"x" * 5 * MEGABYTE}, is_zeroed=False)
    if is_cold:
        with open(tmp_path / "file", "rb+") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    data = extents(tmp_path / "file")
    before = read_by_us()
    disk.read_sparse("file")
    assert read_by_us() - before <= data + 2 * MEGABYTE


def extents(path: pathlib.Path) -> int:
    """Return how many bytes of a file its file system counts as data."""
    with open(path, "rb") as file:
        size, at, data = os.fstat(file.fileno()).st_size, 0, 0
        while at < size:
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            data += at - begin
    return data


def read_by_us() -> int:
    """Return how many bytes this process has read so far, by the kernel's count."""
    return int(pathlib.Path("/proc/self/io").read_text().split()[1])


def test_a_closed_directory_is_closed(tmp_path: pathlib.Path) -> None:
    disk = Disk(str(tmp_path))
    disk.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        disk.sync_directory()


# ---------------------------------------------------------------------- whose directory it is


def test_a_directory_of_the_user_is_accepted(tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o755)
    assert check_owner(str(tmp_path)) is None


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_directory_that_other_users_can_write_is_refused(tmp_path: pathlib.Path, mode: int) -> None:
    tmp_path.chmod(mode)
    assert "chmod go-w" in (check_owner(str(tmp_path)) or "")


def test_a_directory_of_another_user_is_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert check_owner(str(tmp_path)) == f"it belongs to uid {owner}, and this process is uid {owner + 1}"


def test_a_file_is_no_directory(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    assert check_owner(str(tmp_path / "file")) == "it is not a directory"
