"""TCP connections whose other end has vanished without a word: noticed within a minute, by both sides.

A host that loses its power, or its network, sends no FIN. Whoever only waits on such a connection, a watcher or the
holder of a lock, would wait for ever, and so would its ephemeral keys. So the kernel asks on each connection that is
silent (SO_KEEPALIVE, tcp(7)), and gives up on what is not acknowledged (TCP_USER_TIMEOUT, RFC 5482). On Linux a
connection has these options from the listening socket that it came through.
"""

import _socket as socket  # what both the daemon's sockets and the client's are

IDLE_S = 30
INTERVAL_S = 10
PROBES = 3
UNACKNOWLEDGED_MS = 60_000


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel notice when the other end of a TCP socket, or of what it accepts, is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
