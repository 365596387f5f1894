"""The restart fence: after a crash, a new daemon waits until no near cache trusts the crashed one any more.

Clients with a near cache answer reads themselves until their lease ends (``kvd/protocol/near_cache.py``). If their
daemon is killed, they notice it only when the lease has ended. So a daemon that grants leases leaves a file beside the
socket's lock, and one in the data directory for a successor at another socket, before it answers the first client. It
removes both in an orderly stop. A daemon that finds one of them serves nothing until the longest lease has ended,
counted from when it took the locks. It does not even serve reads, because they may show changes that the dead daemon's
table does not announce: without a data directory all keys are gone, with one the ephemeral keys.

        attach:  write the files ─▶ make the table ─▶ answer
        stop:    last reply ─▶ lease = 0 ─▶ remove the files ─▶ release the locks

Each file holds the boot id, because leases do not survive a reboot. It is not synced, because it must survive the
process, not the machine. If the unit's /proc shows no boot id, the boot counts as the same one. That costs a quarter of
a second, once.
"""

import asyncio
import errno
import os
import stat
import time

from kvd.protocol.near_cache import CLOCK_TICK_MS, LEASE_MS
from kvd.service import resources
from kvd.service.trusted_files import is_ours

SUFFIX = ".dirty"
_BOOT_ID_BYTES = 36


class RestartFence:
    """The fence of a daemon: a file beside each of ``paths``. Create it as soon as the daemon holds all its locks."""

    def __init__(self, *paths: str) -> None:
        self._paths = [path + SUFFIX for path in paths]
        self._locked_at = time.monotonic()
        self._boot = resources.boot_id()

    @property
    def left_s(self) -> float:
        """The number of seconds during which nothing may be served yet."""
        if not any(map(self._is_of_this_boot, self._paths)):
            return 0.0
        return max(0.0, self._locked_at + (LEASE_MS + CLOCK_TICK_MS) / 1000 - time.monotonic())

    def _is_of_this_boot(self, path: str) -> bool:
        found = _read(path)
        return found is not None and not (self._boot and len(found) == _BOOT_ID_BYTES and found != self._boot)

    async def wait(self) -> None:
        """Wait until clients may be served, and remove the files."""
        # The clock decides, because the loop's timer may fire early.
        while left := self.left_s:
            await asyncio.sleep(left)
        self.remove()

    def write(self) -> None:
        """Write the files. Call this before the first lease is granted. Raises OSError."""
        for path in self._paths:
            self._write(path)

    def _write(self, path: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, 0o600)
        try:
            if not _is_our_file(descriptor):
                raise FileExistsError(errno.EEXIST, "a file of another user is in its place", path)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, self._boot or b"unknown")
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """Remove the files. Call this when no lease is left. If one stays, the next start waits needlessly."""
        for path in self._paths:
            try:
                os.unlink(path)
            except OSError:
                pass


def _read(path: str) -> bytes | None:
    """The content of our file; None if there is none, empty if it cannot be read.

    In a directory such as /tmp any user may have made something of this name. That is passed over: a daemon of ours
    would not have got the name, and so has granted no lease.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return None if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO) else b""
    try:
        return os.read(descriptor, 2 * _BOOT_ID_BYTES).strip() if _is_our_file(descriptor) else None
    finally:
        os.close(descriptor)


def _is_our_file(descriptor: int) -> bool:
    found = os.fstat(descriptor)
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and is_ours(found.st_uid)
