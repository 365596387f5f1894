"""The lock: one process at a time holds it, it ends with the process, and a stale file does no harm."""

import fcntl
import os
import pathlib
import re
import stat
import subprocess
from collections.abc import Callable, Iterator

import pytest

from kvd.service.errors import StartError
from kvd.service.locks import AlreadyRunning, LockFile

Python = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "lock")


@pytest.fixture
def lock(path: str) -> Iterator[LockFile]:
    lock = LockFile(path)
    lock.acquire()
    yield lock
    lock.release()


def text_of(path: str) -> str:
    return pathlib.Path(path).read_text(encoding="ascii")


def test_the_lock_file_holds_the_pid_and_is_private(lock: LockFile, path: str) -> None:
    assert text_of(path) == f"{os.getpid()}\n"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_taking_a_held_lock_fails_with_the_holders_pid_and_exit_code_75(lock: LockFile, path: str) -> None:
    with pytest.raises(AlreadyRunning) as failure:
        LockFile(path).acquire()
    assert (failure.value.pid, failure.value.path, failure.value.exit_code) == (os.getpid(), path, 75)
    assert f"pid {os.getpid()}" in failure.value.text


def test_a_holder_that_has_not_written_its_pid_yet_is_reported_as_starting(lock: LockFile, path: str) -> None:
    os.truncate(path, 0)
    with pytest.raises(AlreadyRunning) as failure:
        LockFile(path).acquire()
    assert failure.value.pid is None
    assert "starting right now" in failure.value.text


@pytest.mark.parametrize("text", ["", "1\n", f"{os.getpid()}\n", "no pid", "9" * 100])
def test_a_stale_file_is_taken_over_whatever_pid_it_holds(path: str, text: str) -> None:
    pathlib.Path(path).write_text(text, encoding="ascii")
    lock = LockFile(path)
    lock.acquire()
    assert text_of(path) == f"{os.getpid()}\n"
    lock.release()


def test_the_kernel_releases_the_lock_of_a_killed_process(path: str, python: Python) -> None:
    take = "import os, sys; from kvd.service.locks import LockFile; LockFile(sys.argv[1]).acquire()"
    assert python(f"{take}; os.kill(os.getpid(), 9)", path).returncode == -9
    assert os.path.exists(path)
    LockFile(path).acquire()


def test_a_released_lock_leaves_no_file_and_can_be_taken_again(path: str) -> None:
    lock = LockFile(path)
    for _ in range(2):
        lock.acquire()
        lock.release()
        assert not os.path.exists(path)
    lock.release()  # a second release is not an error


def test_release_leaves_a_file_that_replaced_ours(lock: LockFile, path: str) -> None:
    os.unlink(path)
    pathlib.Path(path).write_text("another's\n", encoding="ascii")
    lock.release()
    assert text_of(path) == "another's\n"


def test_a_lock_on_an_unlinked_file_does_not_count(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder unlinks the file between our open and our flock. The test makes this moment happen."""
    real_flock = fcntl.flock
    unlinked: list[str] = []

    def flock(descriptor: int, operation: int) -> None:
        if not unlinked:
            unlinked.append(path)
            os.unlink(path)
        real_flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = LockFile(path)
    lock.acquire()
    assert unlinked
    with pytest.raises(AlreadyRunning):
        LockFile(path).acquire()
    lock.release()


def test_a_child_still_holds_the_lock_that_its_parent_closes(path: str) -> None:
    reading, writing = os.pipe()
    lock = LockFile(path)
    lock.acquire()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    lock.close()
    with pytest.raises(AlreadyRunning):
        LockFile(path).acquire()
    os.close(reading)
    os.close(writing)
    os.waitpid(child, 0)
    LockFile(path).acquire()


def test_a_started_program_does_not_inherit_the_lock(lock: LockFile) -> None:
    assert not os.get_inheritable(lock.fileno())


def test_as_a_context_manager_it_writes_the_pid_and_releases(lock: LockFile, path: str) -> None:
    os.truncate(path, 0)
    with lock:
        assert text_of(path) == f"{os.getpid()}\n"
    assert not os.path.exists(path)


def test_a_shorter_pid_leaves_nothing_of_a_longer_one(path: str) -> None:
    pathlib.Path(path).write_text("1" * 30, encoding="ascii")
    lock = LockFile(path)
    lock.acquire()
    assert text_of(path) == f"{os.getpid()}\n"
    lock.release()


def test_a_lock_that_is_not_held_has_no_descriptor(path: str) -> None:
    with pytest.raises(ValueError, match="not held"):
        LockFile(path).fileno()


def assert_refused(path: str, words: str) -> None:
    with pytest.raises(StartError, match=re.escape(words)) as failure:
        LockFile(path).acquire()
    assert failure.value.exit_code == 74


def test_a_symbolic_link_is_not_followed(path: str, tmp_path: pathlib.Path) -> None:
    os.symlink(tmp_path / "precious", path)
    assert_refused(path, f"cannot open the lock file {path}")
    assert not (tmp_path / "precious").exists()


def test_a_hard_link_is_refused_and_its_file_stays_unchanged(path: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "precious").write_text("contents", encoding="ascii")
    os.link(tmp_path / "precious", path)
    assert_refused(path, "is not a regular file, or it has hard links")
    assert (tmp_path / "precious").read_text(encoding="ascii") == "contents"


def test_a_fifo_is_refused_without_waiting(path: str) -> None:
    os.mkfifo(path)
    assert_refused(path, "is not a regular file")


def test_a_missing_directory_is_an_io_error(path: str) -> None:
    assert_refused(f"{path}/missing/lock", "No such file or directory")


def test_a_pid_that_cannot_be_written_is_an_io_error_and_leaves_no_file(path: str, python: Python) -> None:
    code = """
import resource, sys
from kvd.service.locks import LockFile, StartError
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
try:
    LockFile(sys.argv[1]).acquire()
except StartError as error:
    print(error.text)
    sys.exit(error.exit_code)
"""
    result = python(code, path)
    assert (result.returncode, result.stdout.decode()) == (74, f"cannot write {path}: File too large\n")
    assert not os.path.exists(path)
