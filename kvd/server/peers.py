"""Who is at the other end of a connection, and what that makes them."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvd.store.authors import Author

if TYPE_CHECKING:
    from kvd.server.feeds import Telling

_UCRED = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid
# What a uid reads as that the kernel cannot express in our user namespace; it never stands for anybody.
OVERFLOW_UID = 65_534


class Peer:
    """One client. ``uid`` is the kernel's word (SO_PEERCRED at connect), None on TCP.

    ``greeted``: whether the peer may send anything but hello. On a Unix socket its mode has already decided that.
    ``begun``: the snapshot that it began last. ``feed``: what it is told, once it only listens. ``fresh``: whether it
    has sent no frame before. ``descriptor``: what goes out to it with the next bytes.
    """

    __slots__ = ("administrator", "author", "begun", "descriptor", "feed", "fresh", "greeted", "name", "uid")

    def __init__(self, name: str, uid: int | None, pid: int | None = None, process: str | None = None) -> None:
        self.name = name
        self.uid = uid
        self.author = Author(uid, pid, name if process is None else process)
        self.administrator = uid is not None and uid in (0, os.geteuid()) and uid != OVERFLOW_UID
        self.greeted = uid is not None
        self.begun: int | None = None
        self.feed: Telling | None = None
        self.fresh = True
        self.descriptor: int | None = None


def unix_peer(descriptor: int) -> Peer:
    """The peer of an accepted Unix connection. Raises OSError."""
    with _borrowed(descriptor) as connection:
        pid, uid, _ = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(f"uid {uid} pid {pid}", uid, pid, process_name(pid))


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


def tcp_peer(address: tuple[str, int] | None) -> Peer:
    """The peer of an accepted TCP connection, unknown until its token is checked. Raises OSError if it has gone."""
    if address is None:
        raise ConnectionResetError
    return Peer(f"tcp {address[0]}:{address[1]}", None)


def process_name(pid: int) -> str:
    """The name of a process, for people: empty where the system does not show it, and another's if it has gone."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read(64).decode("utf-8", "replace").rstrip("\n")
    except OSError:
        return ""
