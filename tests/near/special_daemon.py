"""`kv serve` with few slots, or a planted bug: `python -m tests.near.special_daemon SLOTS LEASE_MS BUG serve …`.

It loads everything first, prints a line, and begins when a line arrives on stdin: so a daemon can replace another
within milliseconds. The daemon's own code has none of this: each function here replaces a part of it in this process.

LEASE_MS is how long a client trusts the table of a dead daemon, and how long the daemon's successor waits.
"""

import asyncio
import sys
from collections.abc import Callable, Iterable

import uvloop  # noqa: F401  # loaded ahead

from kv.cli.main import main
from kvd.engine import generations
from kvd.engine import near_cache as near_caches
from kvd.engine.generations import GenerationTable
from kvd.engine.near_cache import NearCaches
from kvd.protocol.near_cache import LEASE_MS
from kvd.service import (
    restart_fence,
    serve,  # noqa: F401  # loaded ahead
)
from kvd.service.restart_fence import RestartFence

LATE_S = 0.002
BUGS: dict[str, Callable[[], None]] = {"": lambda: None}
correct_bump = GenerationTable.bump


def bug(plant: Callable[[], None]) -> Callable[[], None]:
    """Register a planted bug under the function's name, with spaces."""
    BUGS[plant.__name__.replace("_", " ")] = plant
    return plant


@bug
def bumps_after_the_reply() -> None:
    def broken(self: GenerationTable, keys: Iterable[str]) -> None:
        asyncio.get_running_loop().call_later(LATE_S, correct_bump, self, list(keys))

    GenerationTable.bump = broken  # type: ignore[method-assign]


@bug
def overlooks_every_fiftieth_change() -> None:
    def broken(self: GenerationTable, keys: Iterable[str]) -> None:
        if self._raised % 50 == 49:
            self._raised += 1
        else:
            correct_bump(self, keys)

    GenerationTable.bump = broken  # type: ignore[method-assign]


@bug
def has_no_fence() -> None:
    RestartFence.left_s = 0.0  # type: ignore[assignment, method-assign]


@bug
def leaves_no_file() -> None:
    RestartFence.write = lambda self: None  # type: ignore[method-assign]


@bug
def stops_without_ending_the_lease() -> None:
    GenerationTable.end_lease = lambda self: None  # type: ignore[method-assign]


@bug
def gives_longer_leases_than_its_successor_assumes() -> None:
    restart_fence.LEASE_MS = LEASE_MS


def lease(ms: int) -> None:
    """Give leases of ``ms`` milliseconds, and wait for the end of such leases at the start."""
    generations._LEASE_NS = ms * 1_000_000
    near_caches.LEASE_MS = restart_fence.LEASE_MS = ms


if __name__ == "__main__":
    near_caches.SLOTS = int(sys.argv[1])
    NearCaches.__init__.__defaults__ = (int(sys.argv[1]),)
    lease(int(sys.argv[2]))
    BUGS[sys.argv[3]]()
    sys.argv[1:] = sys.argv[4:]
    print("loaded", flush=True)
    sys.exit(main() if sys.stdin.readline() else 0)
