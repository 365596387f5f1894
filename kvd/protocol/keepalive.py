"""TCP keepalive: both sides notice within a minute that the other host has vanished.

A host that loses power, or its network, sends no FIN. A watcher or the holder of a lock only waits on its connection,
and would wait for ever; its ephemeral keys would stay for ever. So the kernel probes each silent connection
(SO_KEEPALIVE, tcp(7)), and gives up on unacknowledged data (TCP_USER_TIMEOUT, RFC 5482). On Linux an accepted
connection inherits these options from its listening socket.
"""

import _socket as socket  # the base of both the daemon's and the client's sockets

IDLE_S = 30
INTERVAL_S = 10
PROBES = 3
UNACKNOWLEDGED_MS = 60_000


def keep_alive(connection: socket.socket) -> None:
    """Make the kernel notice that the peer of a TCP socket, or of a connection that it accepts, has vanished."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
