"""systemd's protocols: readiness, watchdog, socket activation.

See sd_notify(3), sd_listen_fds(3) and sd_watchdog_enabled(3).

These few lines are our own because the libraries for it are unmaintained, swallow errors or need a compiler.
"""

import os
import socket
from collections.abc import MutableMapping

from kvd.protocol import exits
from kvd.service.errors import StartError

LISTEN_FDS_START = 3
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
_SEND_TIMEOUT_S = 1.0


def notify(*lines: str) -> bool:
    """Send ``lines`` such as ``READY=1`` to the service manager; return whether it has got them. Never raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
            sending.settimeout(_SEND_TIMEOUT_S)
            # A path in STATUS= may be any bytes.
            sending.sendto("\n".join(lines).encode(errors="backslashreplace"), address)
    except OSError:
        return False
    return True


def listen_fds(environ: MutableMapping[str, str] | None = None) -> list[tuple[str, socket.socket]]:
    """Return the listening sockets that the service manager passed to this process, each with its name.

    A second call returns none: the variables are removed, so that no child process takes them for its own. Child
    processes do not inherit the descriptors. Raises StartError for a descriptor that accepts no connections.
    """
    environ = os.environ if environ is None else environ
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    environ.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not _is_number(count):
        return []
    passed: list[tuple[str, socket.socket]] = []
    for number in range(int(count)):
        name = names[number] if number < len(names) and names[number] else "unknown"
        passed.append((name, _passed_socket(LISTEN_FDS_START + number, name)))
    return passed


def _passed_socket(descriptor: int, name: str) -> socket.socket:
    where = f"descriptor {descriptor} ({name}), passed by the service manager,"
    try:
        os.set_inheritable(descriptor, False)
        listening = socket.socket(fileno=descriptor)
        is_listening = listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise StartError(exits.CONFIGURATION, f"{where} cannot be used: {error.strerror}") from None
    if listening.family not in _FAMILIES or listening.type != socket.SOCK_STREAM or not is_listening:
        listening.detach()
        text = f"{where} is not a listening stream socket; the socket unit needs ListenStream= and Accept=no"
        raise StartError(exits.CONFIGURATION, text)
    listening.setblocking(False)
    return listening


def path_of(listening: socket.socket) -> str:
    """The path of a Unix socket that was passed to us. Raises StartError for a socket without file permissions."""
    name = listening.getsockname()
    if not isinstance(name, str) or not os.path.isabs(name):
        text = f"the socket {name!r} passed by the service manager is open to every user of this host"
        raise StartError(exits.CONFIGURATION, f"{text}; ListenStream= needs an absolute path")
    return name


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def watchdog_interval() -> float | None:
    """Seconds between two WATCHDOG=1: half of the maximum, as the manual advises. None if there is no watchdog."""
    interval_us, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not _is_number(interval_us) or int(interval_us) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(interval_us) / 2_000_000


def is_journal(descriptor: int) -> bool:
    """Return whether ``descriptor`` is the journal's stream (JOURNAL_STREAM in systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))
