"""Identifies the peer of a connection, from what the kernel and TLS report."""

import errno
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kvd.requests.access import Identity
from kvd.requests.peer import Peer

_UCRED = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid
_SO_PEERGROUPS = 59  # from the kernel's asm-generic/socket.h; Python has no name for it
_GROUPS_BYTES = 1_024  # the most that Python's getsockopt accepts: 256 groups


def unix_peer(descriptor: int) -> Peer:
    """Return the peer of an accepted Unix connection. Raises OSError."""
    with _borrowed(descriptor) as connection:
        pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        gids = _groups(connection)
    return Peer(f"uid {uid} pid {pid}", uid, pid, process_name(pid), frozenset((gid, *gids)))


def _groups(connection: socket.socket) -> tuple[int, ...]:
    """The peer's supplementary groups; none if the list does not fit, which is safe: fewer groups mean fewer rights."""
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError as error:
        if error.errno in (errno.ERANGE, errno.ENOPROTOOPT):
            return ()
        raise
    return struct.unpack(f"{len(groups) // 4}I", groups)


def send_with_descriptor(descriptor: int, data: bytes, passed: int) -> int:
    """Send ``data``, and the descriptor ``passed`` with its first byte; return how many bytes went. Raises OSError."""
    with _borrowed(descriptor) as connection:
        return socket.send_fds(connection, [data], [passed])


def has_hung_up(descriptor: int) -> bool:
    """Whether the peer of a connection has closed its socket or broken the connection; not if it half-closed it."""
    poll = select.poll()
    poll.register(descriptor, 0)  # these two events are always told
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Yield a socket object for a connection that belongs to the loop."""
    borrowed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def tcp_peer(address: tuple[str, int] | None, certificate: dict[str, Any] | None = None) -> Peer:
    """Return the peer of an accepted TCP connection. Raises OSError if it has gone.

    Without a ``certificate`` the peer is not authenticated until its token is checked. With one (as
    ``ssl.SSLSocket.getpeercert`` returns it, verified by TLS against the CA for clients) its common name is the
    identity.
    """
    if address is None:
        raise ConnectionResetError
    peer = Peer(f"tcp {address[0]}:{address[1]}", None)
    if certificate is not None:
        peer.authenticate_as(Identity(certificate=_common_name(certificate)))
    return peer


def _common_name(certificate: dict[str, Any]) -> str:
    fields = (field for names in certificate.get("subject", ()) for field in names)
    return next((str(value) for kind, value in fields if kind == "commonName"), "")


def process_name(pid: int) -> str:
    """Return the name of a process, for people: empty if the system hides it; another's if the pid has been reused."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read(64).decode("utf-8", "replace").rstrip("\n")
    except OSError:
        return ""
