"""Not going to sleep right after a request: the next one may come sooner than a sleeping processor wakes up.

Most of what a lone request and its reply take is two processors that are put to sleep and woken. A loop that looks for
input a little longer before it waits saves that, at the price of a processor that does nothing else meanwhile. (The
kernel does the same for network devices: net.core.busy_poll.)
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
        """Stay awake: input has come, and more may follow."""
        self._until_ns = monotonic_ns() + self._ns
        if not self._is_awake:
            self._is_awake = True
            self._loop.call_soon(self._stay_awake)

    def _stay_awake(self) -> None:
        # A loop that has something to call looks for input, and does not wait for it.
        self._is_awake = monotonic_ns() < self._until_ns
        if self._is_awake:
            self._loop.call_soon(self._stay_awake)
