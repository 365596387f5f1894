"""All system calls of the journal; no other module of it makes any.

So a test can put a disk of its own in this place: one that records the order of calls, fails, or loses unsynced data.
All paths are names within one directory.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

_STEP_BYTES = 1 << 20
_ZEROS = bytes(_STEP_BYTES)


class Disk:
    """The files of one directory. Every method raises OSError."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the directory's descriptor."""
        os.close(self._descriptor)

    def path(self, name: str) -> str:
        """Return the full path of a file, for messages."""
        return os.path.join(self.directory, name)

    def names(self) -> list[str]:
        """Return the names of the regular files, in order."""
        return sorted(entry.name for entry in os.scandir(self.directory) if entry.is_file(follow_symlinks=False))

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_size

    def is_named(self, descriptor: int, name: str) -> bool:
        """Return whether ``name`` still names the open file."""
        try:
            named = os.stat(os.path.join(self.directory, name), follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(descriptor), named)

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        """Return a file, or the first ``max_bytes`` of it."""
        with self._opened(name, os.O_RDONLY) as descriptor:
            size = os.fstat(descriptor).st_size
            size = size if max_bytes is None else min(size, max_bytes)
            parts = bytearray()
            while len(parts) < size and (part := os.pread(descriptor, min(size - len(parts), 1 << 26), len(parts))):
                parts += part
            return bytes(parts)

    def read_sparse(self, name: str) -> tuple[memoryview, int]:
        """Return a file, and an offset from which on it holds nothing but zeros, exact to a step.

        For files that are mostly zeros, such as a log segment that was allocated and not filled. What the file system
        knows to be unwritten is not read, and zeros that are read take no memory. Every other byte is read.
        """
        with self._opened(name, os.O_RDONLY) as descriptor:
            size = os.fstat(descriptor).st_size
            # Without this, the kernel reads ahead into unwritten space, and then counts these pages as data.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            content = _zeros(size)
            step = bytearray(_STEP_BYTES)
            at = used = 0
            while (at := _next_data(descriptor, at, size)) < size:
                count = os.preadv(descriptor, [step], at)
                if not count:
                    break
                piece, zeros = (step, _ZEROS) if count == _STEP_BYTES else (step[:count], bytes(count))
                count = min(count, size - at)  # as the file may have grown
                if piece != zeros:  # of a bytearray this is memcmp; of a memoryview it is not
                    content[at : at + count] = memoryview(piece)[:count]
                    used = at + count
                at += count
        return content, used

    def create(self, name: str) -> int:
        """Create an empty file, or empty the one of this name; return a descriptor for writing."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(name, flags, 0o600, dir_fd=self._descriptor)

    def reopen(self, name: str) -> int:
        """Open a file for writing; return a descriptor."""
        return os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._descriptor)

    def allocate(self, descriptor: int, size: int) -> None:
        """Allocate ``size`` bytes, which read as zeros until they are written."""
        os.posix_fallocate(descriptor, 0, size)

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            if not written:
                raise OSError(errno.EIO, "nothing was written")
            view = view[written:]
            offset += written

    def sync(self, descriptor: int) -> None:
        """Wait until everything that was written to a file is on the disk."""
        os.fdatasync(descriptor)

    def sync_directory(self) -> None:
        """Wait until the names are on the disk."""
        os.fsync(self._descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut a file to ``size`` bytes."""
        os.ftruncate(descriptor, size)

    def close_file(self, descriptor: int) -> None:
        """Close a file that ``create`` opened."""
        os.close(descriptor)

    def rename(self, old: str, new: str) -> None:
        """Rename a file, and replace the one that had the new name."""
        os.rename(old, new, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def remove(self, name: str) -> None:
        """Remove a file."""
        os.unlink(name, dir_fd=self._descriptor)

    @contextmanager
    def _opened(self, name: str, flags: int) -> Iterator[int]:
        descriptor = os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._descriptor)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _zeros(size: int) -> memoryview:
    """Return ``size`` zeros that can be written to, and take no memory until they are."""
    return memoryview(mmap(-1, size, flags=MAP_PRIVATE | MAP_ANONYMOUS) if size else b"")


def _next_data(descriptor: int, at: int, size: int) -> int:
    """Return the first offset from ``at`` on where there may be anything but zeros; ``size`` if there is none."""
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole, or the end
            return size
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):  # the file system cannot say
            return at
        raise


def check_owner(directory: str) -> str | None:
    """Return the reason why ``directory`` must not hold a data directory's files; None if it may."""
    found = os.stat(directory)
    if not stat.S_ISDIR(found.st_mode):
        return "it is not a directory"
    if found.st_uid != os.geteuid():
        return f"it belongs to uid {found.st_uid}, and this process is uid {os.geteuid()}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "other users than its owner can write to it; run: chmod go-w " + directory
    return None
