"""A listening Unix socket. At no moment is the socket at its path missing, refusing connections or too open."""

import errno
import grp
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from kvd.protocol import exits
from kvd.protocol.address import MAX_UNIX_PATH_BYTES
from kvd.service.errors import StartError
from kvd.service.trusted_files import make_directories, unsafe_directory

BACKLOG = 4096
TEMPORARY_SUFFIX = ".new"
# The results of connecting to a socket that a process has open: accepted, a full backlog, a socket of another kind.
_LISTENING = (0, errno.EAGAIN, errno.EPROTOTYPE)
_NO_GROUP = 2**32 - 1  # for chown(2) this leaves the group as it is


def bind_unix_socket(path: str, mode: int, group: str) -> socket.socket:
    """Return a socket that listens at ``path``. It replaces a socket there that no process serves any more.

    The socket is bound under a temporary name, with its mode, gets its group, and starts to listen. Only then is it
    renamed to ``path``. Call this in the process that will serve the socket, because clients see the pid of the process
    that called listen(). Hold the lock of ``path``: then no other process uses the temporary name, and what a killed
    process left there can be removed.

    Raises StartError if a process listens there, something else is there, the path is too long, or the system refuses.
    """
    temporary = path + TEMPORARY_SUFFIX
    length = len(os.fsencode(temporary))
    if length > MAX_UNIX_PATH_BYTES:
        text = f"the socket's path is too long: {path} with its temporary suffix has {length} bytes"
        raise StartError(exits.CONFIGURATION, f"{text}, of {MAX_UNIX_PATH_BYTES} allowed")
    _refuse_unsafe_directory(path)
    refuse_occupied(path)
    gid = _group_id(group)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_socket_at(temporary)
        with _umask(0o777 & ~mode):  # no chmod: by a name, another file might get the mode
            listening.bind(temporary)
        if gid is not None:
            _give_to_group(temporary, gid, path, group)
        listening.listen(BACKLOG)
        listening.setblocking(False)
        os.rename(temporary, path)
    except (OSError, StartError) as error:
        listening.close()
        _remove_socket_at(temporary)
        if isinstance(error, StartError):
            raise
        raise StartError(exits.IO_ERROR, f"cannot listen at {path}: {temporary}: {error.strerror}") from None
    return listening


class OwnSocket:
    """The socket that the daemon itself makes at ``path``, removes at its end, and makes again if it is gone."""

    def __init__(self, path: str, mode: int, group: str) -> None:
        self.path = path
        self._mode, self._group = mode, group
        self.listening = bind_unix_socket(path, mode, group)
        self._inode = socket_inode(path)

    def is_in_place(self) -> bool:
        """Return whether clients that use the path come here."""
        return self._inode is not None and socket_inode(self.path) == self._inode

    def bind_again(self) -> socket.socket:
        """Make the socket anew; the old one stays open for what is in its queue. Raises StartError."""
        listening = bind_unix_socket(self.path, self._mode, self._group)
        self._inode = socket_inode(self.path)
        return listening

    def remove(self) -> None:
        """Unlink the path if it is still ours."""
        if self._inode is not None:
            remove_socket(self.path, self._inode)


def _refuse_unsafe_directory(path: str) -> None:
    """Raise StartError if other users can exchange the files beside ``path``."""
    try:
        problem = unsafe_directory(os.path.dirname(os.path.abspath(path)))
    except OSError:
        return  # bind() fails and says why
    if problem is not None:
        raise StartError(exits.CONFIGURATION, f"cannot listen at {path}: {problem}; or choose another path")


def refuse_occupied(path: str) -> None:
    """Raise StartError if a process listens at ``path`` or something other than a socket is there."""
    try:
        # Not stat: the new socket would replace a symbolic link itself, not the file that it points to.
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise StartError(exits.CONFIGURATION, f"{path} is not a socket; move it away or choose another path")
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(exits.IO_ERROR, f"cannot look at {path}: {error.strerror}") from None
    # Non-blocking, because a server with a full backlog would keep us waiting for ever; now the result is EAGAIN.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        result = probe.connect_ex(path)
    if result in (errno.ECONNREFUSED, errno.ENOENT):
        return
    if result in _LISTENING:
        text = f"another process already listens at {path}; stop it, or choose another path with --socket"
        raise StartError(exits.ALREADY_RUNNING, text)
    raise StartError(exits.IO_ERROR, f"cannot tell whether a process listens at {path}: {os.strerror(result)}")


def make_directory(path: str, mode: int = 0o700) -> None:
    """Make the directory of the file ``path``, and the directories above it, if they are missing. Raises StartError."""
    directory = os.path.dirname(path)
    try:
        make_directories(directory, mode)
    except OSError as error:
        raise StartError(exits.IO_ERROR, f"cannot make the directory {directory}: {error.strerror}") from None


def remove_socket(path: str, inode: tuple[int, int]) -> None:
    """Unlink ``path`` if it is the socket with this ``(device, inode)``, not a socket that took its place."""
    if socket_inode(path) == inode:
        _remove_socket_at(path)


def socket_inode(path: str) -> tuple[int, int] | None:
    """The device and the inode of the file at ``path``; None if there is no file."""
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
        raise StartError(exits.CONFIGURATION, f"no such group: {group}; see listen.socket_group")
    return gid


def _give_to_group(temporary: str, gid: int, path: str, group: str) -> None:
    # The directory is checked, and still: not by its name, and nothing but a socket of our own.
    descriptor = os.open(temporary, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it was exchanged")
        os.chown(f"/proc/self/fd/{descriptor}", -1, gid)
    except OSError as error:
        text = f"cannot give {path} to the group {group}: {error.strerror}; the daemon must be a member, or root"
        raise StartError(exits.CONFIGURATION, text) from None
    finally:
        os.close(descriptor)


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _remove_socket_at(path: str) -> None:
    """Unlink ``path`` if it is a socket. Nothing else there is ours."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except OSError:
        pass  # bind() or rename() will fail and say why
