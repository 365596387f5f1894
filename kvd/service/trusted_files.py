"""Files in places where other users may have put theirs: opened without waiting, and judged by what was opened.

A file that decides what the daemon does, or holds a secret, must be a regular file of root or of the daemon's own user,
which no other user can write. A path alone shows nothing, because what is there may be exchanged at any moment. Links
are followed: the file that they lead to is judged.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from kvd.requests.access import has_all_ids

_OVERFLOW_UID = 65_534


class Untrusted(Exception):
    """The file must not be used; the text says why and what to do, to be put after the path."""


def is_ours(uid: int) -> bool:
    """Return whether ``uid`` is root or the daemon's own user."""
    return uid in (0, os.geteuid())


@contextmanager
def opened(path: str) -> Iterator[int]:
    """Open a file for reading inside the block; yields its descriptor. Raises Untrusted and OSError."""
    # A FIFO must be rejected, not waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check(path, os.fstat(descriptor))
        yield descriptor
    finally:
        os.close(descriptor)


def read(path: str, max_bytes: int) -> bytes:
    """Return a file, cut after ``max_bytes``. Raises Untrusted and OSError."""
    with opened(path) as descriptor, open(descriptor, "rb", closefd=False) as file:
        return file.read(max_bytes)


def _check(path: str, found: os.stat_result) -> None:
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3):
        return  # /dev/null: an empty file
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(found.st_mode):
        raise Untrusted("not a regular file")
    if not is_ours(found.st_uid):
        raise Untrusted(f"it belongs to uid {found.st_uid}, not to root or uid {os.geteuid()}; run: chown it")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        shown = f"{stat.S_IMODE(found.st_mode):04o}"
        raise Untrusted(f"users other than its owner can write it (mode {shown}); run: chmod go-w {path}")


def is_readable_by_all(path: str) -> bool:
    """Return whether every user may read the file; False if it cannot be looked at."""
    try:
        return bool(os.stat(path).st_mode & stat.S_IROTH)
    except OSError:
        return False


def unsafe_directory(directory: str) -> str | None:
    """Return why other users can exchange files in ``directory``; None if they cannot. Raises OSError."""
    found = os.stat(directory)
    is_sticky = bool(found.st_mode & stat.S_ISVTX)
    # In a user namespace the owner of /tmp may have no id.
    is_nameless = is_sticky and found.st_uid == _OVERFLOW_UID and not has_all_ids()
    if not is_ours(found.st_uid) and not is_nameless:
        return f"{directory} belongs to uid {found.st_uid}, who can exchange what is in it"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not is_sticky:
        return f"other users can exchange what is in {directory}; run: chmod go-w {directory}"
    return None


def make_directories(directory: str, mode: int = 0o700) -> None:
    """Make a directory and those above it, with this mode whatever the umask, if they are missing. Raises OSError."""
    before = os.umask(0o777 & ~mode)  # makedirs() applies its mode to the last directory only
    try:
        os.makedirs(directory, mode=mode, exist_ok=True)
    finally:
        os.umask(before)


def open_log(path: str, flags: int) -> int:
    """Open a log file for appending, made for its owner alone. Raises OSError for one that another user prepared."""
    flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    directory = os.path.dirname(path)
    # A link such as /dev/stdout is followed only where no other user can have made it.
    follow = 0 if unsafe_directory(directory) is None else os.O_NOFOLLOW
    descriptor = os.open(path, flags | follow, 0o600)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and (not is_ours(found.st_uid) or found.st_nlink > 1):
        os.close(descriptor)
        whose = f"it belongs to uid {found.st_uid}" if not is_ours(found.st_uid) else "it has hard links"
        raise PermissionError(errno.EPERM, f"{whose}; remove it")
    return descriptor
