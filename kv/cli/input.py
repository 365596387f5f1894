"""What commands read: standard input and files, to their end.

Other programs share standard input, and one of them may have made it non-blocking: then a read returns nothing for a
moment. Only an empty read is the end. Every command that reads standard input reads it here.
"""

import io
import os

from kv.cli.failures import CommandFailed, UsageError
from kv.cli.output import read_some
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

# The largest frame that a daemon can be configured to take. Without a limit, /dev/zero would fill the memory.
MAX_INPUT_BYTES = 256 * 1024 * 1024
STDIN = "-"
_CHUNK_BYTES = 1 << 20


def name_of(path: str) -> str:
    """Return how messages name ``path``, where "-" is standard input."""
    return "standard input" if path == STDIN else path


class _Waiting(io.RawIOBase):
    """The bytes of a descriptor; a read waits until there are some. Raises CommandFailed with ``status``."""

    def __init__(self, descriptor: int, name: str, status: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._name = name
        self._status = status

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def seekable(self) -> bool:
        try:
            os.lseek(self._descriptor, 0, os.SEEK_CUR)
        except OSError:
            return False
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return os.lseek(self._descriptor, offset, whence)

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        try:
            data = read_some(self._descriptor, len(buffer))
        except OSError as error:
            raise _unreadable(self._name, error, self._status) from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed and self._descriptor != 0:
            os.close(self._descriptor)
        super().close()


def open_input(path: str, status: int = exits.USAGE) -> "BinaryIO":
    """Open ``path`` for reading; "-" is standard input, which stays open.

    Raises CommandFailed with ``status`` if it cannot be opened, and later if it cannot be read.
    """
    try:
        descriptor = 0 if path == STDIN else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, status) from None
    return io.BufferedReader(_Waiting(descriptor, name_of(path), status), _CHUNK_BYTES)


def read_stdin() -> bytes:
    """Read standard input to its end. Raises UsageError, also if that is more than any daemon takes."""
    return read_file(STDIN)


def read_file(path: str) -> bytes:
    """Read a file to its end. Raises UsageError, also if that is more than any daemon takes."""
    parts: list[bytes] = []
    size = 0
    with open_input(path) as stream:
        while part := stream.read(_CHUNK_BYTES):
            parts.append(part)
            size += len(part)
            if size > MAX_INPUT_BYTES:
                limit = f"{MAX_INPUT_BYTES >> 20} MiB, more than any daemon takes"
                raise UsageError(f"{name_of(path)} is larger than {limit}")
    return b"".join(parts)


def _unreadable(name: str, error: OSError | ValueError, status: int) -> CommandFailed:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    text = f"cannot read {name}: {reason}"
    return UsageError(text) if status == exits.USAGE else CommandFailed(text, status)
