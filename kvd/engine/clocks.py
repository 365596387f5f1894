"""The two clocks of the machine that the engine goes by, in microseconds."""

import time
from collections.abc import Callable

Clock = Callable[[], int]


def wall_clock_us() -> int:
    """Microseconds since the epoch, for the times of commits."""
    return time.time_ns() // 1000


def boot_clock_us() -> int:
    """Microseconds since the machine started, sleep included, for deadlines: no user can set this clock.

    See clock_gettime(2), CLOCK_BOOTTIME.
    """
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
