"""Disks for tests, with the interface of ``kvd.journal.disk.Disk``: one in memory, and one that fails on demand.

The one that also records, so that crashes can be made of it, is in ``crashes.py``.
"""

import errno
import os
from collections.abc import Callable

from kvd.journal.disk import Disk


class File:
    """The file of a name; it outlives the name while it is open."""

    __slots__ = ("data",)

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)


class MemoryDisk(Disk):
    """Files in memory."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.directory = "/data"
        self.files = {name: File(data) for name, data in (files or {}).items()}
        self.open: dict[int, File] = {}
        self._next = 100

    def contents(self) -> dict[str, bytes]:
        """Return all files, as a reader sees them now."""
        return {name: bytes(file.data) for name, file in self.files.items()}

    def close(self) -> None:
        pass

    def names(self) -> list[str]:
        return sorted(self.files)

    def _find(self, name: str) -> File:
        if name not in self.files:
            raise _error(errno.ENOENT)
        return self.files[name]

    def _of(self, descriptor: int) -> File:
        if descriptor not in self.open:
            raise _error(errno.EBADF)
        return self.open[descriptor]

    def size(self, name: str) -> int:
        return len(self._find(name).data)

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        return bytes(self._find(name).data[:max_bytes])

    def read_sparse(self, name: str) -> tuple[memoryview, int]:
        """Return the tightest end; a real disk returns a later one, by up to a step of its reading."""
        data = bytes(self._find(name).data)
        return memoryview(data), len(data.rstrip(b"\0"))

    def create(self, name: str) -> int:
        file = self.files.setdefault(name, File())
        self._resize(file, 0)
        self._next += 1
        self.open[self._next] = file
        return self._next

    def reopen(self, name: str) -> int:
        file = self._find(name)
        self._next += 1
        self.open[self._next] = file
        return self._next

    def allocate(self, descriptor: int, size: int) -> None:
        file = self._of(descriptor)
        self._resize(file, max(size, len(file.data)))

    def _resize(self, file: File, size: int) -> None:
        del file.data[size:]
        file.data.extend(bytes(size - len(file.data)))

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        file = self._of(descriptor)
        self._resize(file, max(len(file.data), offset))
        file.data[offset : offset + len(data)] = data

    def sync(self, descriptor: int) -> None:
        self._of(descriptor)

    def sync_directory(self) -> None:
        pass

    def truncate(self, descriptor: int, size: int) -> None:
        self._resize(self._of(descriptor), size)

    def close_file(self, descriptor: int) -> None:
        self._of(descriptor)
        del self.open[descriptor]

    def rename(self, old: str, new: str) -> None:
        self._find(old)
        self.files[new] = self.files.pop(old)

    def remove(self, name: str) -> None:
        self._find(name)
        del self.files[name]


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Failing(MemoryDisk):
    """Asks ``fails`` before each call, by the call's name; a number that it returns is raised as an OSError.

    With ``is_short`` a write that fails has written half of its bytes.
    """

    fails: Callable[[str], int | None] = staticmethod(lambda call: None)
    is_short = False

    def _ask(self, call: str) -> None:
        number = self.fails(call)
        if number is not None:
            raise _error(number)

    def names(self) -> list[str]:
        self._ask("names")
        return super().names()

    def size(self, name: str) -> int:
        self._ask("size")
        return super().size(name)

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        self._ask("read")
        return super().read(name, max_bytes)

    def read_sparse(self, name: str) -> tuple[memoryview, int]:
        self._ask("read")
        return super().read_sparse(name)

    def create(self, name: str) -> int:
        self._ask("create")
        return super().create(name)

    def reopen(self, name: str) -> int:
        self._ask("reopen")
        return super().reopen(name)

    def allocate(self, descriptor: int, size: int) -> None:
        self._ask("allocate")
        super().allocate(descriptor, size)

    def write(self, descriptor: int, data: bytes, offset: int) -> None:
        try:
            self._ask("write")
        except OSError:
            if self.is_short:
                super().write(descriptor, data[: len(data) // 2], offset)
            raise
        super().write(descriptor, data, offset)

    def sync(self, descriptor: int) -> None:
        self._ask("sync")
        super().sync(descriptor)

    def sync_directory(self) -> None:
        self._ask("sync_directory")
        super().sync_directory()

    def truncate(self, descriptor: int, size: int) -> None:
        self._ask("truncate")
        super().truncate(descriptor, size)

    def close_file(self, descriptor: int) -> None:
        super().close_file(descriptor)  # it is closed even if that fails
        self._ask("close_file")

    def rename(self, old: str, new: str) -> None:
        self._ask("rename")
        super().rename(old, new)

    def remove(self, name: str) -> None:
        self._ask("remove")
        super().remove(name)
