"""Standard output and standard error as bytes: buffered, UTF-8 whatever the locale, errors told apart."""

import os

from kv.cli.escape import show
from kv.cli.failures import OutputFailed

_BUFFER_BYTES = 64 * 1024


class Output:
    """What the command prints. Nothing is sure to be written before ``flush`` returned."""

    def __init__(self, descriptor: int = 1, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._descriptor = descriptor
        self._parts: list[bytes] = []
        self._size_bytes = 0

    def line(self, text: str, end: str = "\n") -> None:
        """Print ``text``, which is already safe, and ``end``."""
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
        """Write out everything. Raises OutputFailed; what was pending is dropped then."""
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
    # Another program has made the shared terminal or pipe non-blocking.
    import select

    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()


def complain(text: str) -> None:
    """One line on stderr. Nothing can be done if even that fails."""
    try:
        os.write(2, f"kv: {show(text)}\n".encode("utf-8", "replace"))
    except OSError:
        pass
