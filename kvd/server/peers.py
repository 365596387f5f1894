"""Who is at the other end of a connection, and what that makes them."""

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kvd.requests.access import ADMINISTER, Access, Grant, Identity, is_trusted
from kvd.store.authors import OWN_NAMES, Author

if TYPE_CHECKING:
    from kvd.engine.feeds import EventSource

_UCRED = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid
_SO_PEERGROUPS = 59  # of the kernel's asm-generic/socket.h; Python has no name for it
_GROUPS_BYTES = 1_024  # as much as Python takes: 256 groups


class Peer:
    """One client. ``uid`` is the kernel's word (SO_PEERCRED at connect), None on TCP.

    ``greeted``: whether the peer may send anything but hello. On a Unix socket its mode has already decided that.
    ``begun``: the snapshot that it began last. ``feed``: what it is told, once it only listens. ``fresh``: whether it
    has sent no frame before. ``descriptor``: what goes out to it with the next bytes. ``grant``: what it may do; None:
    everything but administer.
    """

    __slots__ = (
        "administrator",
        "author",
        "begun",
        "descriptor",
        "feed",
        "fresh",
        "grant",
        "greeted",
        "identity",
        "name",
        "token",
        "uid",
    )

    def __init__(
        self,
        name: str,
        uid: int | None,
        pid: int | None = None,
        process: str | None = None,
        gids: frozenset[int] = frozenset(),
    ) -> None:
        self.name = name
        self.uid = uid
        self.identity = Identity(uid=uid, gids=gids)
        self.token: str | None = None  # that it has shown
        self.grant: Grant | None = None
        self.author = Author(uid, pid, name if process is None else process)
        self.administrator = self.is_trusted
        self.greeted = uid is not None
        self.begun: int | None = None
        self.feed: EventSource | None = None
        self.fresh = True
        self.descriptor: int | None = None

    def authenticate_as(self, who: Identity) -> None:
        """Somebody on TCP has shown who it is: its commits are by that name."""
        self.identity = who
        self.greeted = True
        name = who.certificate or who.token
        if name:
            self.name = f"{self.name} ({name})"
            # A token or a certificate may have any name; the server's own commits must not seem to be its.
            self.author = Author(None, None, self.name if name in OWN_NAMES else name)

    @property
    def is_trusted(self) -> bool:
        """Whether it may do everything whatever the rules say: root, and the daemon's own user."""
        return is_trusted(self.uid)

    def allow(self, access: Access) -> None:
        """From now on these rules hold."""
        self.grant = None if self.is_trusted or not access else access.grant(self.identity)
        self.administrator = self.is_trusted or (self.grant is not None and bool(self.grant.rights("") & ADMINISTER))


def unix_peer(descriptor: int) -> Peer:
    """The peer of an accepted Unix connection. Raises OSError."""
    with _borrowed(descriptor) as connection:
        pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        gids = _groups(connection)
    return Peer(f"uid {uid} pid {pid}", uid, pid, process_name(pid), frozenset((gid, *gids)))


def _groups(connection: socket.socket) -> tuple[int, ...]:
    """The peer's supplementary groups; none of somebody with more than fit: who has fewer has fewer rights."""
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    except OSError as error:
        if error.errno in (errno.ERANGE, errno.ENOPROTOOPT):
            return ()
        raise
    return struct.unpack(f"{len(groups) // 4}I", groups)


def send_with_descriptor(descriptor: int, data: bytes, passed: int) -> int:
    """Send to the peer of a Unix connection, and ``passed`` with the first byte; how many bytes. Raises OSError."""
    with _borrowed(descriptor) as connection:
        return socket.send_fds(connection, [data], [passed])


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """A socket object for a connection that belongs to the loop."""
    borrowed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=descriptor)
    try:
        yield borrowed
    finally:
        borrowed.detach()


def tcp_peer(address: tuple[str, int] | None, certificate: dict[str, Any] | None = None) -> Peer:
    """The peer of an accepted TCP connection, unknown until its token is checked. Raises OSError if it has gone.

    ``certificate``, which TLS has verified against the CA for clients, as ``ssl.SSLSocket.getpeercert`` gives it: then
    its common name is who it is.
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
    """The name of a process, for people: empty where the system does not show it, and another's if it has gone."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read(64).decode("utf-8", "replace").rstrip("\n")
    except OSError:
        return ""
