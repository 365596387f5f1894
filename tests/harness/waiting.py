"""Wait for a condition. The deadline only ends a test that would wait for ever: on no machine does it decide a test."""

import asyncio
import time
from collections.abc import Callable

DEADLINE_S = 60


def eventually(condition: Callable[[], object], what: str = "") -> None:
    """Return as soon as ``condition`` holds; fail after the deadline, naming ``what`` the test waited for."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain {what}"
        time.sleep(0.005)


async def until(condition: Callable[[], object], *, pause_s: float = 0) -> None:
    """Give the event loop turns, ``pause_s`` apart, until ``condition`` holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(pause_s)
