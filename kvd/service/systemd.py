"""systemd's protocols: readiness, watchdog, socket activation.

See sd_notify(3), sd_listen_fds(3) and sd_watchdog_enabled(3).

A few lines of our own: the libraries for it are dead, swallow errors or need a compiler.
"""

import os
import socket
from collections.abc import MutableMapping

LISTEN_FDS_START = 3
_SEND_TIMEOUT_S = 1.0


def notify(*lines: str) -> bool:
    """Tell the service manager ``lines`` such as ``READY=1``; whether one was told. Never raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
            sending.settimeout(_SEND_TIMEOUT_S)
            sending.sendto("\n".join(lines).encode(), address)
    except OSError:
        return False
    return True


def listen_fds(environ: MutableMapping[str, str] | None = None) -> list[tuple[str, socket.socket]]:
    """The listening sockets that the service manager passed to this process, with their names; each only once.

    The variables are removed, so that nobody mistakes them for their own, and the descriptors are not inherited.
    """
    environ = os.environ if environ is None else environ
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    passed: list[tuple[str, socket.socket]] = []
    for number in range(int(count)):
        descriptor = LISTEN_FDS_START + number
        os.set_inheritable(descriptor, False)
        listening = socket.socket(fileno=descriptor)
        listening.setblocking(False)
        passed.append((names[number] if number < len(names) else "unknown", listening))
    return passed


def watchdog_interval() -> float | None:
    """How many seconds may at most lie between two WATCHDOG=1, halved as the manual advises; None without watchdog."""
    interval_us, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not interval_us.isdigit() or int(interval_us) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(interval_us) / 2_000_000


def is_journal(descriptor: int) -> bool:
    """Whether ``descriptor`` is the journal's stream (JOURNAL_STREAM in systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))
