"""Becoming a daemon: a double fork whose parent returns 0 only when the daemon accepts connections.

python-daemon does the forks, the session and the descriptors. Its own parent leaves with 0 at the first fork, though,
before anything can have failed. So there is a fork of our own around it, and a pipe:

        kv serve --daemon ──fork──▶ child ──DaemonContext: fork, setsid, fork──▶ daemon
               │ waits                                                             │
               ◀────────────────────── pipe: "P<pid>", then "R" or "F<code> text" ─┘
          on R: connects and pings, exit 0;  on F: text on stderr, exit code;  on EOF: it died before it was ready

stderr stays the caller's until the daemon is ready, so that tracebacks and aborts are seen. After that it is /dev/null,
because otherwise `x=$(kv serve --daemon)` would wait for ever. ``launcher.py`` has the reading end of the pipe.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

from kvd.protocol import exits
from kvd.service.errors import StartError
from kvd.service.launcher import DaemonLauncher
from kvd.service.locks import LockFile

logger = logging.getLogger(__name__)


def ensure_standard_fds() -> None:
    """Open /dev/null on each of the descriptors 0 to 2 that is closed, before any other file can get its number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(opened, True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - it stays open
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - it stays open
    sys.stderr = sys.stderr or open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115 - it stays open


class ParentGone(Exception):
    """The process that started the daemon is gone and has not exited with 0, so the daemon must not stay."""


class ReadyPipe:
    """The daemon's end of the pipe to the process that waits for it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @property
    def is_closed(self) -> bool:
        """Whether ``send_ready`` was called. After that no process waits, and stderr is /dev/null."""
        return self._descriptor is None

    def send_pid(self) -> None:
        """Send this process's pid. Raises ParentGone."""
        self._send(f"P{os.getpid()}")

    def send_ready(self) -> None:
        """Send that connections are accepted, and give up the caller's stdout and stderr. Raises ParentGone."""
        self._send("R")
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in (1, 2):
            os.dup2(null, descriptor)
        os.close(null)
        if self._descriptor is not None:
            os.close(self._descriptor)
        # A client's connection will soon have its number.
        self._descriptor = None

    def send_failure(self, exit_code: int, text: str) -> None:
        """Send why the daemon ends, if the parent still waits."""
        try:
            self._send(f"F{exit_code} {' '.join(text.splitlines())}")
        except ParentGone:
            pass

    def _send(self, message: str) -> None:
        if self._descriptor is None:
            return
        try:
            # A path in a message may be any bytes.
            os.write(self._descriptor, message.encode(errors="backslashreplace") + b"\n")
        except BrokenPipeError:
            raise ParentGone from None


class Lock(Protocol):
    """A lock that passes to the daemon."""

    def descriptors(self) -> list[int]:
        """The descriptors that hold it."""

    def close(self) -> None:
        """Forget it in this process."""

    def release(self) -> None:
        """Give it up."""


def daemonize(
    run: Callable[[ReadyPipe], int],
    *,
    lock: LockFile,
    preserve: list[int],
    further_locks: Sequence[Lock] = (),
    confirm: Callable[[], None],
) -> int:
    """Run ``run`` in a detached process; return the exit code of this one.

    ``run`` calls ``send_ready`` once connections are accepted, and returns the daemon's exit code. All locks are held
    and pass to the daemon; ``preserve`` are descriptors that it needs. ``confirm`` connects to the new daemon, and
    raises StartError if that fails. No thread and no event loop may exist yet. Raises StartError if the system gives us
    no other process.
    """
    reading, writing = os.pipe()
    context = _context(lock, [writing, *preserve, *(number for each in further_locks for number in each.descriptors())])
    locks: list[Lock] = [*further_locks, lock]
    sys.stdout.flush()
    sys.stderr.flush()
    # Signals are caught before there is a daemon that would miss them.
    with DaemonLauncher(reading) as launcher:
        try:
            child = os.fork()
        except OSError as error:
            os.close(writing)
            raise StartError(exits.FAILURE, f"cannot start another process: {error.strerror}") from None
        if child == 0:
            _be_daemon(run, ReadyPipe(writing), locks, context)
        os.close(writing)
        for each in locks:
            each.close()
        return launcher.wait(child, confirm)


def _context(lock: LockFile, preserve: list[int]) -> Any:  # noqa: ANN401 - the library has no types
    """Return a DaemonContext with every argument set, because most of its defaults are not what we want."""
    from daemon import DaemonContext

    return DaemonContext(
        # By default it guesses: with a socket as stdin, or pid 1 as parent, it silently stays in the foreground.
        detach_process=True,
        working_directory="/",
        umask=0o077,
        # True would set the hard limit to 0, which rules out core dumps for good.
        prevent_core=False,
        uid=None,
        gid=None,
        initgroups=False,
        chroot_directory=None,
        pidfile=lock,
        files_preserve=[*preserve, lock.fileno()],
        # None ignores a signal: a daemon has no terminal that could stop it. The event loop handles the other signals.
        signal_map={signal.SIGHUP: None, signal.SIGTTIN: None, signal.SIGTTOU: None, signal.SIGTSTP: None},
        stdin=None,
        stdout=sys.stdout,
        stderr=sys.stderr,
    )


def _be_daemon(
    run: Callable[[ReadyPipe], int],
    pipe: ReadyPipe,
    locks: list[Lock],
    context: Any,  # noqa: ANN401 - the library has no types
) -> NoReturn:
    """Detach, run, and exit without the exit handlers of the process that forked. Runs in the child."""
    status = exits.FAILURE
    text = ""
    try:
        # Until the event loop runs, the terminal's ctrl-c is for the waiting process, which forwards it as SIGTERM.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        context.open()
        pipe.send_pid()
        status = run(pipe)
    except StartError as error:
        status, text = error.exit_code, error.text
    except ParentGone:
        pass
    except BaseException as error:
        text = _report(error, pipe)
    finally:
        try:
            for lock in locks:
                lock.release()
            # After the locks are free, because the caller may try again at once.
            if text:
                pipe.send_failure(status, text)
        finally:
            os._exit(status)


def _report(error: BaseException, pipe: ReadyPipe) -> str:
    """Show an unexpected failure where it will be seen; return the text for the caller."""
    if pipe.is_closed:
        logger.critical("the daemon failed", exc_info=error)
    else:
        traceback.print_exception(error)
        sys.stderr.flush()
    return "the daemon failed while starting; the traceback is above"
