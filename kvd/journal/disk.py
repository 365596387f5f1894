"""Every call to the system that the journal makes, and no other module makes one.

So a test can stand in between: record what happens in which order, let a call fail, or lose what was not synced. All
paths are names within one directory.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager


class Disk:
    """The files of one directory. Every method raises OSError."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give the directory's descriptor back."""
        os.close(self._descriptor)

    def path(self, name: str) -> str:
        """For messages."""
        return os.path.join(self.directory, name)

    def names(self) -> list[str]:
        """The regular files there are, in order."""
        return sorted(entry.name for entry in os.scandir(self.directory) if entry.is_file(follow_symlinks=False))

    def size(self, name: str) -> int:
        """How many bytes a file has."""
        return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_size

    def read(self, name: str) -> bytes:
        """A whole file."""
        with self._opened(name, os.O_RDONLY) as descriptor:
            size = os.fstat(descriptor).st_size
            parts = bytearray()
            while len(parts) < size and (part := os.pread(descriptor, min(size - len(parts), 1 << 26), len(parts))):
                parts += part
            return bytes(parts)

    def create(self, name: str) -> int:
        """A new, empty file, open for writing; the descriptor. One that is left over under this name goes."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(name, flags, 0o600, dir_fd=self._descriptor)

    def allocate(self, descriptor: int, size: int) -> None:
        """Make sure that there is room for ``size`` bytes, zeros until they are written."""
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
        """Wait until what was written to a file is on the disk."""
        os.fdatasync(descriptor)

    def sync_directory(self) -> None:
        """Wait until the names are on the disk."""
        os.fsync(self._descriptor)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut a file off."""
        os.ftruncate(descriptor, size)

    def close_file(self, descriptor: int) -> None:
        """Close a file that ``create`` opened."""
        os.close(descriptor)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name; one that had it goes."""
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


def check_owner(directory: str) -> str | None:
    """Why ``directory`` should not hold a data directory's files; None if it may."""
    found = os.stat(directory)
    if not stat.S_ISDIR(found.st_mode):
        return "it is not a directory"
    if found.st_uid != os.geteuid():
        return f"it belongs to uid {found.st_uid}, and this process is uid {os.geteuid()}"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "others than its owner can write it; run: chmod go-w " + directory
    return None
