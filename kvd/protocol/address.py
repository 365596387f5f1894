"""Where a daemon listens and where a client looks for it: one rule for both sides.

Imported by short-lived clients, so it imports nothing heavy.
"""

import os

MAX_UNIX_PATH_BYTES = 107  # sizeof(sockaddr_un.sun_path) - 1, unix(7)
SYSTEM_SOCKET = "/run/kvd/kvd.sock"


def user_socket() -> str:
    """Return the socket of the user's own daemon; the system's socket for a user without a home, as in a container."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if not os.path.isdir(runtime):
        home = os.path.expanduser("~")  # unchanged if the home is unknown
        return os.path.join(home, ".local/state/kvd/kvd.sock") if os.path.isabs(home) else SYSTEM_SOCKET
    return os.path.join(runtime, "kvd/kvd.sock")


def default_socket() -> str:
    """Return where a daemon listens by default: root at the system's socket, any other user at their own."""
    return SYSTEM_SOCKET if os.getuid() == 0 else user_socket()


def candidate_sockets() -> list[str]:
    """Return where a client without an address looks for a daemon, in order."""
    if os.getuid() == 0:
        return [SYSTEM_SOCKET]
    return [user_socket(), SYSTEM_SOCKET]


def normalize(address: str) -> str:
    """Return ``address`` in the form that the rest of kvd knows: ``tcp://…``, ``tls://…`` or the path of a Unix socket.

    Takes ``TCP://…``, ``unix:///PATH``, ``unix:/PATH`` and ``~/PATH`` too. Raises ValueError, which says what to write.
    """
    scheme, colon, rest = address.partition(":")
    kind = scheme.lower() if colon and scheme.isalpha() else ""
    if kind in ("tcp", "tls") and rest.startswith("//"):
        parse_host_port(rest[2:])
        return f"{kind}:{rest}"
    if kind == "unix":
        path = rest[2:] if rest.startswith("//") else rest
        if not path.startswith(("/", "~")):
            raise ValueError(f"{address!r} has no absolute path: write unix:///PATH, or the path alone")
    elif kind and rest.startswith("//"):
        raise ValueError(f"{address!r} is neither tcp://HOST:PORT nor tls://HOST:PORT nor a socket's path")
    elif "/" not in address and _is_port(address.rpartition(":")[2]) and ":" in address:
        raise ValueError(f"for TCP write tcp://{address}, for a socket of that name ./{address}")
    else:
        path = address
    if not path:
        raise ValueError("an address cannot be empty")
    return os.path.expanduser(path)


def is_network(address: str) -> bool:
    """Whether ``address`` is ``tcp://…`` or ``tls://…`` rather than the path of a Unix socket."""
    return address.startswith(("tcp://", "tls://"))


def is_loopback(address: str) -> bool:
    """Whether ``tcp://…`` or ``tls://…`` is on this host: ``localhost``, 127.0.0.0/8 or ::1, and no other name."""
    host, _ = parse_host_port(address[len("tcp://") :])
    parts = host.split(".")
    is_v4 = len(parts) == 4 and all(part.isascii() and part.isdigit() and int(part[:4]) < 256 for part in parts)
    return host in ("localhost", "::1") or (is_v4 and parts[0] == "127")


def parse_tcp(address: str) -> tuple[str, int] | None:
    """Return host and port of ``tcp://HOST:PORT`` or ``tls://…`` (IPv6 in brackets); None for a Unix socket.

    Raises ValueError for a malformed address of these kinds.
    """
    return parse_host_port(address[len("tcp://") :]) if is_network(address) else None


def parse_host_port(text: str) -> tuple[str, int]:
    """Split ``HOST:PORT`` into a pair; IPv6 is written ``[::1]:7070``. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not _is_port(port):
        raise ValueError(f"not HOST:PORT: {text!r}")
    return host, int(port)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535
