"""A listening Unix socket, put in its place so that there is no moment with a missing, refusing or too open one."""

import errno
import grp
import os
import socket
import stat

from kvd.protocol.address import MAX_UNIX_PATH_BYTES
from kvd.service.errors import EXIT_ALREADY_RUNNING, EXIT_CONFIGURATION, EXIT_FAILURE, EXIT_IO_ERROR, StartError

BACKLOG = 4096


def bind_unix_socket(path: str, mode: int, group: str) -> socket.socket:
    """Listen at ``path``, in place of a socket that nobody serves any more.

    It is bound under a temporary name, given its mode and group, made to listen, and only then renamed to ``path``.
    To be called by the process that will serve it: clients see the pid of the one that called listen(). Raises
    StartError: somebody listens there, something else is there, the path is too long, or the system refuses.
    """
    temporary = f"{path}.{os.getpid()}"
    longest = max(len(os.fsencode(path)), len(os.fsencode(temporary)))
    if longest > MAX_UNIX_PATH_BYTES:
        text = f"the socket's path is too long: {path} with its temporary suffix has {longest} bytes"
        raise StartError(EXIT_CONFIGURATION, f"{text}, of {MAX_UNIX_PATH_BYTES} allowed")
    refuse_occupied(path)
    gid = _group_id(group)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _unlink(temporary)
        old_umask = os.umask(0o177)
        try:
            listening.bind(temporary)
        finally:
            os.umask(old_umask)
        if gid is not None:
            os.chown(temporary, -1, gid)
        os.chmod(temporary, mode)
        listening.listen(BACKLOG)
        listening.setblocking(False)
        os.rename(temporary, path)
    except OSError as error:
        listening.close()
        _unlink(temporary)
        raise StartError(EXIT_IO_ERROR, f"cannot listen at {path}: {error.strerror}") from None
    return listening


def refuse_occupied(path: str) -> None:
    """Raise StartError if somebody listens at ``path`` or something other than a socket is there."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise StartError(EXIT_FAILURE, f"{path} is not a socket; move it away or choose another path")
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(EXIT_IO_ERROR, f"cannot look at {path}: {error.strerror}") from None
    # Non-blocking: a server with a full backlog would let us wait for ever, and answers EAGAIN this way.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        result = probe.connect_ex(path)
    if result not in (errno.ECONNREFUSED, errno.ENOENT):
        text = "somebody already listens" if result in (0, errno.EAGAIN) else f"cannot probe: {os.strerror(result)}"
        raise StartError(EXIT_ALREADY_RUNNING, f"{text} at {path}; stop it, or choose another path with --socket")


def make_directory(path: str) -> None:
    """Make the directory of a socket, for its owner alone, if there is none. Raises StartError."""
    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError as error:
        raise StartError(EXIT_IO_ERROR, f"cannot make the directory {directory}: {error.strerror}") from None


def remove_socket(path: str, inode: tuple[int, int]) -> None:
    """Unlink ``path`` if it is the socket with this ``(device, inode)``, not one that took its place."""
    if socket_inode(path) == inode:
        _unlink(path)


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
        return int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise StartError(EXIT_CONFIGURATION, f"no such group: {group}; see listen.socket_group") from None


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
