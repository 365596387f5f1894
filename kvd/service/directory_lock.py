"""A data directory is taken by one process: prepared without touching what is not kvd's, and locked twice.

The lock file tells people the pid, and older daemons look at it alone. But it can be removed. So the directory's own
descriptor is locked too: nothing below a running daemon can take that lock away.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from kvd.journal import names
from kvd.journal.disk import check_owner
from kvd.protocol import exits
from kvd.service.errors import StartError
from kvd.service.locks import AlreadyRunning, LockFile, exclude_daemon
from kvd.service.trusted_files import make_directories

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_MAX_PID_CHARACTERS = 20


class DirectoryLock:
    """The locks of one data directory. Fits ``daemonize``'s further locks."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._file = LockFile(os.path.join(directory, names.LOCK))
        self._descriptor: int | None = None

    @property
    def path(self) -> str:
        """The path of the lock file."""
        return self._file.path

    def acquire(self) -> None:
        """Take the directory, which is made if it is missing. Raises AlreadyRunning, StartError."""
        prepare(self._directory)
        self._file.acquire()
        try:
            self._descriptor = _lock_directory(self._directory, self._file.path, fcntl.LOCK_EX)
        except StartError:
            self._file.release()
            raise

    def write_pid(self) -> None:
        """Write this process's pid for people. Raises StartError."""
        self._file.write_pid()

    def descriptors(self) -> list[int]:
        """The descriptors that hold the locks."""
        return [self._file.fileno(), *([] if self._descriptor is None else [self._descriptor])]

    def release(self) -> None:
        """Give up both locks; remove the lock file."""
        self._file.release()
        self._close_directory()

    def close(self) -> None:
        """Forget the locks in this process; a process that inherited them still holds them."""
        self._file.close()
        self._close_directory()

    def _close_directory(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def prepare(directory: str) -> None:
    """Make the directory if it is missing, and check that it is ours and kvd's. Raises StartError."""
    try:
        make_directories(directory)
        problem = check_owner(directory) or foreign_content(directory)
    except OSError as error:
        raise StartError(exits.IO_ERROR, f"data directory {directory}: {error.strerror}") from None
    if problem:
        raise StartError(exits.CONFIGURATION, f"data directory {directory}: {problem}")


def foreign_content(directory: str) -> str | None:
    """Return why a directory that holds files is not kvd's; None if it is kvd's or empty. Raises OSError."""
    present = os.listdir(directory)
    if any(map(names.is_ours, present)):
        return None
    others = [name for name in present if not is_harmless(directory, name)]
    if not others:
        return None
    return f"it is not kvd's: it holds {min(others)} and no file of kvd; name an empty directory"


def is_harmless(directory: str, name: str) -> bool:
    """Return whether an otherwise empty directory may hold this: the root of a volume, or where a daemon was killed."""
    path = os.path.join(directory, name)
    if name == names.LOST_AND_FOUND:
        return os.path.isdir(path) and not os.path.islink(path)
    if name == names.FENCE:
        return os.path.isfile(path) and not os.path.islink(path)
    return name == names.LOCK and _is_pid_file(path)


def _is_pid_file(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    with open(descriptor, "rb") as file:
        content = file.read(_MAX_PID_CHARACTERS + 1)
    return len(content) <= _MAX_PID_CHARACTERS and (not content or content.strip().isdigit())


@contextmanager
def reading(directory: str) -> Iterator[None]:
    """Keep daemons from taking ``directory`` inside the block, without writing. Raises AlreadyRunning, StartError."""
    path = os.path.join(directory, names.LOCK)
    with exclude_daemon(path):
        descriptor = _lock_directory(directory, path, fcntl.LOCK_SH)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _lock_directory(directory: str, lock_path: str, operation: int) -> int | None:
    """Return the descriptor that holds the lock; None where the file system locks no directories (NFS)."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in _HELD:
            raise AlreadyRunning(lock_path, None) from None
        return None
    return descriptor
