"""Standard output and standard error as bytes: buffered, UTF-8 whatever the locale, with errors of their own.

Programs share these descriptors, and one of them may have made the terminal or pipe non-blocking. So all reads and
writes of descriptors that are not ours alone go through ``read_some`` and ``write_all``, which wait.
"""

import os

from kv.cli.escape import show
from kv.cli.failures import OutputFailed

_BUFFER_BYTES = 64 * 1024


class Output:
    """The standard output of the command. Only after ``flush`` is all of it certainly written."""

    def __init__(self, descriptor: int = 1, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._descriptor = descriptor
        self._parts: list[bytes] = []
        self._size_bytes = 0

    def line(self, text: str, end: str = "\n") -> None:
        """Print ``text``, which the caller has made safe to show, and ``end``."""
        self.write((text + end).encode("utf-8", "surrogateescape"))

    def write(self, data: bytes) -> None:
        """Print exactly ``data``."""
        if self.quiet:
            return
        self._parts.append(data)
        self._size_bytes += len(data)
        if self._size_bytes >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write out everything. Raises OutputFailed; then what was pending is lost."""
        pending = b"".join(self._parts)
        self._parts.clear()
        self._size_bytes = 0
        if pending:
            try:
                write_all(self._descriptor, pending)
            except OSError as error:
                raise OutputFailed(error) from None


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``, and wait where the descriptor takes no more at the moment. Raises OSError."""
    pending = memoryview(data)
    while pending:
        try:
            pending = pending[os.write(descriptor, pending) :]
        except BlockingIOError:
            wait_until_ready(descriptor, is_writing=True)


def read_some(descriptor: int, size_bytes: int) -> bytes:
    """Read up to ``size_bytes``, and wait until there are some; nothing is the end. Raises OSError."""
    while True:
        try:
            return os.read(descriptor, size_bytes)
        except BlockingIOError:
            wait_until_ready(descriptor, is_writing=False)


def wait_until_ready(descriptor: int, *, is_writing: bool) -> None:
    """Wait until the descriptor can be read or written, or has an error."""
    import select

    poll = select.poll()
    poll.register(descriptor, select.POLLOUT if is_writing else select.POLLIN)
    poll.poll()


def warn(text: str) -> None:
    """Print one line on stderr. An error is ignored, because there is no place left to report it."""
    try:
        write_all(2, f"kv: {show(text)}\n".encode("utf-8", "replace"))
    except OSError:
        pass
