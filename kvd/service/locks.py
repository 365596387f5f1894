"""One daemon for each socket: a lock that the kernel releases with the process.

The lock is flock(2) on an open file. The open file description holds it, so it survives the daemon's forks and ends
with the last process, even by kill -9. So there are no stale lock files, and a recycled pid does no harm: the pid in
the file is only for people. (With the existence of a pid file as the lock, as in python-daemon's own pid files, 26 of
60 rounds of simultaneous starts end with more or fewer than one winner.)

The holder unlinks the file before it releases the lock. A process that opened the file earlier may then lock a file
without a name. Therefore the file is compared with its name after locking, and opened again if they differ.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from kvd.protocol import exits
from kvd.service.errors import StartError
from kvd.service.trusted_files import is_ours


class AlreadyRunning(StartError):
    """Another daemon holds the lock; ``pid`` is what it wrote, None if it has not written it yet."""

    def __init__(self, path: str, pid: int | None) -> None:
        holder = f"pid {pid}" if pid is not None else "starting right now"
        super().__init__(exits.ALREADY_RUNNING, f"already running: {holder} (lock {path}); stop it with: kv shutdown")
        self.path = path
        self.pid = pid


class LockFile:
    """An flock on ``path``, which holds the pid. Fits DaemonContext's ``pidfile``: ``__enter__`` writes the pid."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock without waiting. Raises AlreadyRunning, StartError."""
        while self._descriptor is None:
            descriptor = self._open()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                pid = _pid_in(descriptor)
                os.close(descriptor)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    raise AlreadyRunning(self.path, pid) from None
                raise StartError(exits.IO_ERROR, f"cannot lock {self.path}: {error.strerror}") from None
            if _is_named(descriptor, self.path):
                self._descriptor = descriptor
            else:
                os.close(descriptor)
        try:
            self.write_pid()
        except StartError:
            self.release()
            raise

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise StartError(exits.IO_ERROR, f"cannot open the lock file {self.path}: {error.strerror}") from None
        found = os.fstat(descriptor)
        # Not a hard link: in a directory where every user can make files, one could make us write to any file.
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            os.close(descriptor)
            text = f"the lock file {self.path} is not a regular file, or it has hard links; remove it"
            raise StartError(exits.IO_ERROR, text)
        if not is_ours(found.st_uid):
            os.close(descriptor)
            text = f"the lock file {self.path} belongs to uid {found.st_uid}; remove it, or choose another path"
            raise StartError(exits.IO_ERROR, text)
        return descriptor

    def write_pid(self) -> None:
        """Write this process's pid, which is only for people, if there is space. Raises StartError."""
        text = f"{os.getpid()}\n".encode()
        try:
            os.pwrite(self.fileno(), text, 0)
            os.ftruncate(self.fileno(), len(text))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return  # a full disk is no reason not to serve reads
            raise StartError(exits.IO_ERROR, f"cannot write {self.path}: {error.strerror}") from None

    def fileno(self) -> int:
        """The descriptor that holds the lock. Raises ValueError if it is not held."""
        if self._descriptor is None:
            raise ValueError("the lock is not held")
        return self._descriptor

    def descriptors(self) -> list[int]:
        """The descriptor that holds the lock, as a list."""
        return [self.fileno()]

    def release(self) -> None:
        """Unlink the file if it is still ours, and release the lock."""
        if self._descriptor is None:
            return
        try:
            if _is_named(self._descriptor, self.path):
                os.unlink(self.path)
        except OSError:
            pass  # the file is only for people; closing the descriptor releases the lock
        self.close()

    def close(self) -> None:
        """Forget the lock in this process; a process that inherited it still holds it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "LockFile":
        self.write_pid()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextmanager
def exclude_daemon(path: str) -> Iterator[None]:
    """Keep daemons from taking the lock at ``path`` inside the block, without writing anything.

    Several processes may do this at once. Raises AlreadyRunning, StartError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:  # no daemon holds the lock; on a read-only file system none can take it
        yield
        return
    except OSError as error:
        raise StartError(exits.IO_ERROR, f"cannot open the lock file {path}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        pid = _pid_in(descriptor)
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise AlreadyRunning(path, pid) from None
        raise StartError(exits.IO_ERROR, f"cannot lock {path}: {error.strerror}") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _is_named(descriptor: int, path: str) -> bool:
    """Return whether ``path`` still names the open file."""
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)


def _pid_in(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).strip()
    return int(text) if text.isdigit() else None
