"""What the process does again and again whether any client is there or not: it feeds systemd's watchdog.

What changes with time alone is upkept where it is kept: history (``kvd/engine/upkeep.py``), expiry
(``kvd/engine/expiry.py``), idle snapshots (``kvd/engine/snapshots.py``).
"""

import asyncio

from kvd.service import systemd


def feed_watchdog(loop: asyncio.AbstractEventLoop) -> None:
    """Feed the watchdog, if there is one, from the loop: so a loop that hangs is noticed.

    It goes on to the very end, because a drain may take its time.
    """
    interval_s = systemd.watchdog_interval()
    if interval_s is not None:
        systemd.notify("WATCHDOG=1")
        loop.call_later(interval_s, feed_watchdog, loop)
