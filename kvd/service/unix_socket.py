"""A listening Unix socket, put in its place so that there is no moment with a missing, refusing or too open one."""

import errno
import grp
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from kvd.protocol.address import MAX_UNIX_PATH_BYTES
from kvd.service.errors import EXIT_ALREADY_RUNNING, EXIT_CONFIGURATION, EXIT_IO_ERROR, StartError

BACKLOG = 4096
TEMPORARY_SUFFIX = ".new"
# What a connection answers where somebody is: accepted, a full backlog, a socket of another kind.
_LISTENING = (0, errno.EAGAIN, errno.EPROTOTYPE)
_NO_GROUP = 2**32 - 1  # chown(2): "leave it"


def bind_unix_socket(path: str, mode: int, group: str) -> socket.socket:
    """Listen at ``path``, in place of a socket that nobody serves any more.

    It is bound under a temporary name, given its mode and group, made to listen, and only then renamed to ``path``. To
    be called by the process that will serve it (clients see the pid of the one that called listen()), while it holds
    the path's lock: so the temporary name is nobody else's, and what a killed process left there can go.

    Raises StartError: somebody listens there, something else is there, the path is too long, or the system refuses.
    """
    temporary = path + TEMPORARY_SUFFIX
    length = len(os.fsencode(temporary))
    if length > MAX_UNIX_PATH_BYTES:
        text = f"the socket's path is too long: {path} with its temporary suffix has {length} bytes"
        raise StartError(EXIT_CONFIGURATION, f"{text}, of {MAX_UNIX_PATH_BYTES} allowed")
    refuse_occupied(path)
    gid = _group_id(group)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_socket_at(temporary)
        with _umask(0o177):
            listening.bind(temporary)
        if gid is not None:
            _give_to_group(temporary, gid, path, group)
        os.chmod(temporary, mode)
        listening.listen(BACKLOG)
        listening.setblocking(False)
        os.rename(temporary, path)
    except (OSError, StartError) as error:
        listening.close()
        _remove_socket_at(temporary)
        if isinstance(error, StartError):
            raise
        raise StartError(EXIT_IO_ERROR, f"cannot listen at {path}: {temporary}: {error.strerror}") from None
    return listening


def refuse_occupied(path: str) -> None:
    """Raise StartError if somebody listens at ``path`` or something other than a socket is there."""
    try:
        # Of a symbolic link, not of what it points to: the link is what the new socket would replace.
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise StartError(EXIT_CONFIGURATION, f"{path} is not a socket; move it away or choose another path")
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(EXIT_IO_ERROR, f"cannot look at {path}: {error.strerror}") from None
    # Non-blocking: a server with a full backlog would let us wait for ever, and answers EAGAIN this way.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        result = probe.connect_ex(path)
    if result in (errno.ECONNREFUSED, errno.ENOENT):
        return
    if result in _LISTENING:
        text = f"somebody already listens at {path}; stop it, or choose another path with --socket"
        raise StartError(EXIT_ALREADY_RUNNING, text)
    raise StartError(EXIT_IO_ERROR, f"cannot tell whether somebody listens at {path}: {os.strerror(result)}")


def make_directory(path: str, mode: int = 0o700) -> None:
    """Make the directory of the file ``path``, and those above it, if there is none. Raises StartError."""
    directory = os.path.dirname(path)
    try:
        with _umask(0o777 & ~mode):  # makedirs() applies its mode to the last directory only
            os.makedirs(directory, mode=mode, exist_ok=True)
    except OSError as error:
        raise StartError(EXIT_IO_ERROR, f"cannot make the directory {directory}: {error.strerror}") from None


def remove_socket(path: str, inode: tuple[int, int]) -> None:
    """Unlink ``path`` if it is the socket with this ``(device, inode)``, not one that took its place."""
    if socket_inode(path) == inode:
        _remove_socket_at(path)


def socket_inode(path: str) -> tuple[int, int] | None:
    """Device and inode of what is at ``path``; None if nothing is."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _group_id(group: str) -> int | None:
    if not group:
        return None
    try:
        gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        gid = _NO_GROUP
    if gid >= _NO_GROUP:
        raise StartError(EXIT_CONFIGURATION, f"no such group: {group}; see listen.socket_group")
    return gid


def _give_to_group(temporary: str, gid: int, path: str, group: str) -> None:
    try:
        os.chown(temporary, -1, gid)
    except OSError as error:
        text = f"cannot give {path} to the group {group}: {error.strerror}; the daemon has to be a member, or root"
        raise StartError(EXIT_CONFIGURATION, text) from None


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _remove_socket_at(path: str) -> None:
    """Unlink ``path`` if it is a socket; nothing else is ours to remove."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except OSError:
        pass  # what is in the way shows where it is
