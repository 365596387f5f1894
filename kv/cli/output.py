"""Standard output and standard error as bytes: buffered, UTF-8 whatever the locale, with errors of their own."""

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
        pending = memoryview(b"".join(self._parts))
        self._parts.clear()
        self._size_bytes = 0
        while pending:
            try:
                pending = pending[os.write(self._descriptor, pending) :]
            except BlockingIOError:
                _wait_writable(self._descriptor)
            except OSError as error:
                raise OutputFailed(error) from None


def _wait_writable(descriptor: int) -> None:
    # Needed where another program has made the shared terminal or pipe non-blocking.
    import select

    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()


def warn(text: str) -> None:
    """Print one line on stderr. An error is ignored, because there is no place left to report it."""
    try:
        os.write(2, f"kv: {show(text)}\n".encode("utf-8", "replace"))
    except OSError:
        pass
