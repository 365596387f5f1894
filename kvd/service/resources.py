"""What the process takes of the machine: memory, descriptors, and the garbage collector's time."""

import gc
import logging
import os
import resource
import sys

from kvd.protocol.limits import Limits
from kvd.service.config.sections import Memory

logger = logging.getLogger(__name__)

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def freeze_garbage_collector() -> None:
    """Take all objects that exist now out of the garbage collector's sight.

    There is no garbage among them: heads, values and keys form no cycles. But the index's blocks are lists, and a full
    collection visits each of a million keys in them, for 13 ms. Done at the start and whenever the store has grown.
    """
    gc.collect(1)
    gc.freeze()


def boot_id() -> bytes:
    """What identifies this boot of the machine; empty if /proc does not say."""
    try:
        with open(_BOOT_ID, "rb") as file:
            return file.read(64).strip()
    except OSError:
        return b""


def memory_limit(memory: Memory) -> int:
    """How many bytes may be in memory: as configured, or half of what the machine and the cgroups allow."""
    if memory.max_bytes:
        return memory.max_bytes
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(available, *cgroup_limits()) // 2


def cgroup_limits(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> list[int]:
    """The limits of the process's cgroup (version 2) and of those above it: memory.max and memory.high."""
    try:
        with open(own, encoding="utf-8", errors="surrogateescape") as file:
            place = next(line for line in file if line.startswith("0::"))[3:].strip("/\n")
    except (OSError, StopIteration):
        return [sys.maxsize]
    parts = place.split("/") if place else []
    places = ["/".join((root, *parts[:count])) for count in range(len(parts) + 1)]
    return [sys.maxsize, *(_number_in(f"{each}/memory.{kind}") for each in places for kind in ("max", "high"))]


def _number_in(path: str) -> int:
    """The number in a file of a cgroup; the greatest one if there is none ("max", or no file as in the root)."""
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return sys.maxsize


def raise_descriptor_limit(limits: Limits) -> None:
    """Allow as many descriptors as the connections need, as far as the hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.max_connections + 256
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < limits.max_connections:
        logger.warning("the limit of %d open files allows fewer than %d connections", wanted, limits.max_connections)


def resident_bytes() -> int:
    """Resident memory of this process; 0 if /proc does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0
