"""Files that appear only when they are complete, wherever their directory is.

A name may stand in a directory that other users can write, such as /tmp, and root may use this. So nothing is taken
over from what is there: a new file has mode 0600 and is opened exclusively, each step works below a descriptor of the
directory, and a link, pipe or device that another user has put there is refused. ``Target.find`` reads the links of a
path itself, so this is independent of the kernel's ``fs.protected_*`` settings.
"""

import fcntl
import os
import re
import signal
import stat

from kv.cli.failures import CommandFailed
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType, TracebackType

_MAX_LINKS = 40  # as the kernel
_UNFINISHED = re.compile(r"\.kv-[0-9a-f]{16}\.tmp")
_END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
_FLAGS = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY
_CANNOT_REPLACE = ", because it is a mount point; name a file in a directory, or write to standard output"


class Target:
    """The place that a path names: a name below the open directory ``directory``, or a ``descriptor`` of ours."""

    def __init__(self, directory: int, name: str, descriptor: int | None = None) -> None:
        self.directory = directory
        self.name = name
        self.descriptor = descriptor

    @classmethod
    def find(cls, path: str) -> "Target":
        """Follow the links of ``path``, its last component too. Raises OSError, for an untrustworthy link too."""
        if not path or path.endswith("/"):
            raise IsADirectoryError(None, "Is a directory" if path else "the name is empty")
        directory = _open_directory("/" if path.startswith("/") else ".")
        words = path.split("/")[::-1]
        links = 0
        try:
            while True:
                name = words.pop()
                is_last = not words
                if name in ("", ".") and not is_last:
                    continue
                status = _status_below(directory, name)
                if status is not None and stat.S_ISLNK(status.st_mode):
                    links += 1
                    if links > _MAX_LINKS:
                        raise OSError(None, "Too many levels of symbolic links")
                    if is_last and _is_own_descriptor(directory, name):
                        return cls(directory, name, int(name))
                    _check_trusted(directory, name, status)
                    text = os.readlink(name, dir_fd=directory)
                    words += text.split("/")[::-1]
                    if text.startswith("/"):
                        directory = _enter(directory, "/")
                elif is_last:
                    return cls(directory, name)
                else:
                    directory = _enter(directory, name)
        except BaseException:
            os.close(directory)
            raise

    def status(self) -> os.stat_result | None:
        """What stands there now; None: nothing."""
        return _status_below(self.directory, self.name)

    def close(self) -> None:
        """Close the directory."""
        os.close(self.directory)


class AtomicFile:
    """``with AtomicFile(path) as descriptor``: after the block, what it wrote is at ``path`` and on the disk.

    If the block raises, or a signal ends the command, nothing changes. An existing file of that name is replaced, and
    keeps its permissions if it is ours; a new file gets ``mode``, or 0600. A pipe, a device, and a descriptor of ours
    such as /dev/stdout are written to directly. Raises CommandFailed, also for an OSError of the block, which counts as
    an error of writing.
    """

    def __init__(self, path: str, mode: int | None = None) -> None:
        self._path = path
        self._mode = mode
        self._target = Target(-1, "")
        self._unfinished: str | None = None
        self._descriptor = -1
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> int:
        try:
            self._target = Target.find(self._path)
            try:
                self._open()
            except BaseException:
                self._leave()
                raise
        except OSError as error:
            raise self._failed(error) from None
        return self._descriptor

    def _open(self) -> None:
        target = self._target
        if target.descriptor is not None:
            self._descriptor = os.dup(target.descriptor)
            return
        status = target.status()
        if status is not None and not stat.S_ISREG(status.st_mode):
            self._descriptor = _open_special(target)
            return
        if self._mode is None:
            self._mode = _mode_to_keep(status, os.fstat(target.directory))
        _remove_abandoned(target.directory)
        self._catch_signals()
        while self._descriptor < 0:
            self._create()

    def _create(self) -> None:
        """Create the unfinished file and lock it, which says that it is not abandoned; leave it if it is gone then."""
        self._unfinished = f".kv-{os.urandom(8).hex()}.tmp"
        flags = _FLAGS | os.O_CREAT | os.O_EXCL
        self._descriptor = os.open(self._unfinished, flags, 0o600, dir_fd=self._target.directory)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except OSError:
            return  # a file system without locks; then no command can take it for abandoned
        if os.fstat(self._descriptor).st_nlink == 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        try:
            if error is None and self._unfinished is not None:
                self._put_in_place(self._unfinished)
        except OSError as failure:
            raise self._failed(failure) from None
        finally:
            self._leave()
        if isinstance(error, OSError):
            raise self._failed(error) from None

    def _put_in_place(self, unfinished: str) -> None:
        if self._mode is not None:
            os.fchmod(
                self._descriptor, self._mode
            )  # only now, because nobody else may read or write an unfinished file
        os.fsync(self._descriptor)
        directory = self._target.directory
        os.rename(unfinished, self._target.name, src_dir_fd=directory, dst_dir_fd=directory)
        self._unfinished = None
        _sync(directory)

    def _leave(self) -> None:
        self._remove_unfinished()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.getsignal returned
        self._handlers.clear()
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._target.close()

    def _catch_signals(self) -> None:
        """Remove the unfinished file before a signal ends the command. A signal that is ignored stays so."""
        for number in _END_SIGNALS:
            handler = signal.getsignal(number)
            if handler is signal.SIG_DFL:
                self._handlers[number] = handler
                signal.signal(number, self._end)

    def _end(self, number: int, frame: "FrameType | None") -> None:
        self._remove_unfinished()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _remove_unfinished(self) -> None:
        if self._unfinished is not None:
            try:
                os.unlink(self._unfinished, dir_fd=self._target.directory)
            except FileNotFoundError:
                pass
            self._unfinished = None

    def _failed(self, error: OSError) -> CommandFailed:
        import errno

        hint = _CANNOT_REPLACE if error.errno in (errno.EBUSY, errno.EXDEV) else ""
        return CommandFailed(f"cannot write {self._path}: {error.strerror}{hint}", exits.IO_ERROR)


def _open_directory(path: str, below: int | None = None) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    return os.open(path, flags if below is None else flags | os.O_NOFOLLOW, dir_fd=below)


def _enter(directory: int, name: str) -> int:
    """Open a directory below another, which is closed."""
    entered = _open_directory(name, None if name == "/" else directory)
    os.close(directory)
    return entered


def _status_below(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_own_descriptor(directory: int, name: str) -> bool:
    """Whether the name is an open descriptor of this process, as in /proc/self/fd: /dev/stdout, /dev/fd/63."""
    return name.isdecimal() and os.path.samestat(os.fstat(directory), os.stat("/proc/self/fd"))


def _check_trusted(directory: int, name: str, status: os.stat_result) -> None:
    """Raise OSError if another user may have put the link or special file there to have us write through it."""
    place = os.fstat(directory)
    if _is_ours(status) or (_is_ours(place) and not place.st_mode & 0o022):
        return
    kind = "link" if stat.S_ISLNK(status.st_mode) else "special file"
    raise OSError(None, f"{name} is a {kind} of uid {status.st_uid} in a directory that other users can write")


def _is_ours(status: os.stat_result) -> bool:
    """Whether the owner is this user or root."""
    return status.st_uid in (os.geteuid(), 0)


def _open_special(target: Target) -> int:
    """Open a pipe or a device for writing."""
    descriptor = os.open(target.name, _FLAGS, dir_fd=target.directory)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            raise OSError(None, "it changed while it was opened")
        _check_trusted(target.directory, target.name, status)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _mode_to_keep(status: os.stat_result | None, place: os.stat_result) -> int | None:
    """Return the permissions of the file that is replaced, unless another user may have put it there."""
    if status is None or status.st_uid != os.geteuid() or status.st_nlink != 1:
        return None
    others_may_rename = place.st_mode & 0o002 and not place.st_mode & stat.S_ISVTX
    return None if others_may_rename or not _is_ours(place) else status.st_mode & 0o777


def _remove_abandoned(directory: int) -> None:
    """Remove unfinished files of ours that a killed command has left: those that no process has locked."""
    try:
        listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except PermissionError:
        return
    try:
        for name in filter(_UNFINISHED.fullmatch, os.listdir(listing)):
            _remove_if_abandoned(directory, name)
    finally:
        os.close(listing)


def _remove_if_abandoned(directory: int, name: str) -> None:
    try:
        descriptor = os.open(name, _FLAGS | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return  # another user's, or no file
    try:
        if os.fstat(descriptor).st_uid == os.geteuid():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=directory)
    except OSError:
        pass  # in use, or another command was quicker
    finally:
        os.close(descriptor)


def _sync(directory: int) -> None:
    try:
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    except PermissionError:
        return  # a directory that cannot be read cannot be synced
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
