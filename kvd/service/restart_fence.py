"""The restart fence: a daemon that comes after one that died waits until no near cache trusts the dead one any more.

Clients with a near cache answer reads themselves for as long as their lease lasts (``kvd/protocol/near_cache.py``). If
their daemon is killed, they cannot know it before the lease has run out. So whoever hands out leases leaves a file
beside the socket's lock, before the first client is answered, and removes it when it stops in order. Who finds one
serves nothing until the longest lease is over, counted from when it took the lock: reads neither, for they may show
what the dead daemon's table tells nobody of. Without a data directory all keys have gone, with one the ephemeral ones.

        attach:  write the file ─▶ make the table ─▶ answer
        stop:    last reply ─▶ lease = 0 ─▶ remove the file ─▶ release the lock

The file holds the boot's id, for after a reboot nobody trusts anything. It is not synced: it has to survive the
process, not the machine. If a boot cannot be told from another (the unit's /proc shows no ids), it counts as the same:
that costs a quarter of a second, once.
"""

import asyncio
import os
import time

from kvd.protocol.near_cache import CLOCK_TICK_MS, LEASE_MS

SUFFIX = ".dirty"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_BOOT_ID_BYTES = 36


class RestartFence:
    """Of the daemon at ``socket_path``. To be made when its lock has just been taken."""

    def __init__(self, socket_path: str) -> None:
        self._path = socket_path + SUFFIX
        self._locked_at = time.monotonic()
        self._boot = _read(_BOOT_ID)

    @property
    def left_s(self) -> float:
        """For how many seconds nothing may be served."""
        found = _read(self._path)
        if found is None or (self._boot and len(found) == _BOOT_ID_BYTES and found != self._boot):
            return 0.0
        return max(0.0, self._locked_at + (LEASE_MS + CLOCK_TICK_MS) / 1000 - time.monotonic())

    async def wait(self) -> None:
        """Return when everybody may be served."""
        # By the clock, whenever the loop thinks that the time is over.
        while left := self.left_s:
            await asyncio.sleep(left)
        self.remove()

    def write(self) -> None:
        """Leases are about to be handed out. Raises OSError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.write(descriptor, self._boot or b"unknown")
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """No lease is left. If the file cannot be removed, the next start waits in vain, and that is all."""
        try:
            os.unlink(self._path)
        except OSError:
            pass


def _read(path: str) -> bytes | None:
    """What a short file holds; None if there is none, nothing if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(2 * _BOOT_ID_BYTES).strip()
    except FileNotFoundError:
        return None
    except OSError:
        return b""
