"""Where a daemon listens and where a client looks for it: one rule for both sides.

Imported by short-lived clients, so it imports nothing heavy.
"""

import os

MAX_UNIX_PATH_BYTES = 107  # sizeof(sockaddr_un.sun_path) - 1, unix(7)
SYSTEM_SOCKET = "/run/kvd/kvd.sock"


def user_socket() -> str:
    """The socket of a user's own daemon; the system's for one who has no home, as in a container."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if not os.path.isdir(runtime):
        home = os.path.expanduser("~")  # unchanged if nobody knows it
        return os.path.join(home, ".local/state/kvd/kvd.sock") if os.path.isabs(home) else SYSTEM_SOCKET
    return os.path.join(runtime, "kvd/kvd.sock")


def default_socket() -> str:
    """Where a daemon listens that was told nothing else: root at the system's place, everybody else at their own."""
    return SYSTEM_SOCKET if os.getuid() == 0 else user_socket()


def candidate_sockets() -> list[str]:
    """Where a client that was told nothing looks, in order."""
    if os.getuid() == 0:
        return [SYSTEM_SOCKET]
    return [user_socket(), SYSTEM_SOCKET]


def is_network(address: str) -> bool:
    """Whether ``address`` is ``tcp://…`` or ``tls://…`` rather than the path of a Unix socket."""
    return address.startswith(("tcp://", "tls://"))


def parse_tcp(address: str) -> tuple[str, int] | None:
    """``tcp://HOST:PORT`` or ``tls://`` (IPv6 in brackets) as host and port; None for the path of a Unix socket.

    Raises ValueError for a malformed address of these kinds.
    """
    return parse_host_port(address[len("tcp://") :]) if is_network(address) else None


def parse_host_port(text: str) -> tuple[str, int]:
    """``HOST:PORT`` as a pair; ``[::1]:7070`` for IPv6. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"not HOST:PORT: {text!r}")
    return host, int(port)
