"""Files that appear only when they are complete."""

import os

from kv.cli.failures import CommandFailed
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


class AtomicFile:
    """``with AtomicFile(path) as descriptor``: after the block, what it wrote is at ``path`` and on the disk.

    If the block raises, nothing changes. An existing file of that name is replaced and keeps its mode; a new file has
    mode 0600. A pipe or a device is opened and written to directly. Raises CommandFailed, also for an OSError of the
    block, which counts as an error of writing.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._unfinished: str | None = None
        self._descriptor = -1

    def __enter__(self) -> int:
        try:
            self._open()
        except OSError as error:
            raise self._failed(error) from None
        return self._descriptor

    def _open(self) -> None:
        path = os.path.realpath(self._path)  # of a link, replace the file that it names
        mode = 0o600
        try:
            status = os.stat(path)
        except FileNotFoundError:
            pass
        else:
            if not os.path.isfile(path):
                self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                return
            mode = status.st_mode & 0o7777
        self._target = path
        unfinished = f"{path}.{os.getpid()}.tmp"
        self._descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._unfinished = unfinished
        os.fchmod(self._descriptor, mode)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        try:
            if error is None and self._unfinished is not None:
                os.fsync(self._descriptor)
                os.rename(self._unfinished, self._target)
                self._unfinished = None
                _sync_directory(os.path.dirname(self._target))
        except OSError as failure:
            raise self._failed(failure) from None
        finally:
            os.close(self._descriptor)
            if self._unfinished is not None:
                os.unlink(self._unfinished)
        if isinstance(error, OSError):
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> CommandFailed:
        return CommandFailed(f"cannot write {self._path}: {error.strerror}", exits.IO_ERROR)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
