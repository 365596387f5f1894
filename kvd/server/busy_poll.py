"""Busy polling: the loop stays awake after a request, because waking a processor may take longer than the wait.

Most of the latency of a lone request and its reply is spent on putting two processors to sleep and waking them. A loop
that polls for input a little longer before it sleeps saves that time. The price is a processor that does nothing else
meanwhile. (The kernel does the same for network devices: net.core.busy_poll.)
"""

import asyncio
from time import monotonic_ns


class BusyPoll:
    """Keeps a loop awake for ``us`` microseconds after each input."""

    __slots__ = ("_is_awake", "_loop", "_ns", "_until_ns")

    def __init__(self, loop: asyncio.AbstractEventLoop, us: int) -> None:
        self._loop = loop
        self._ns = us * 1_000
        self._until_ns = 0
        self._is_awake = False

    def note_input(self) -> None:
        """Stay awake: input has arrived, and more may follow."""
        self._until_ns = monotonic_ns() + self._ns
        if not self._is_awake:
            self._is_awake = True
            self._loop.call_soon(self._stay_awake)

    def _stay_awake(self) -> None:
        # A loop with a callback that is due polls for input without blocking.
        self._is_awake = monotonic_ns() < self._until_ns
        if self._is_awake:
            self._loop.call_soon(self._stay_awake)
