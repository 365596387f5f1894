"""Becoming a daemon: a double fork whose parent returns 0 only when the daemon accepts connections.

python-daemon does the forks, the session and the descriptors. What it leaves open: its parent leaves with 0 at the
first fork, before anything can have gone wrong. So there is a fork of our own around it, and a pipe:

        kv serve --daemon ──fork──▶ child ──DaemonContext: fork, setsid, fork──▶ daemon
               │ waits                                                             │
               ◀────────────────────── pipe: "P<pid>", then "R" or "F<code> text" ─┘
          on R: connects and pings, exit 0;  on F: text on stderr, exit code;  on EOF: it died before it was ready

stderr stays the caller's until the daemon is ready, so that tracebacks and aborts are seen; after that it goes to
/dev/null, or `x=$(kv serve --daemon)` would wait for ever. The other end of the pipe: ``waiting.py``.
"""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from kvd.service.errors import EXIT_FAILURE, StartError
from kvd.service.locks import LockFile
from kvd.service.waiting import Waiting

logger = logging.getLogger(__name__)


def ensure_standard_fds() -> None:
    """Open /dev/null on descriptors 0 to 2 that are closed, before anything else can be given their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            os.set_inheritable(opened, True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 - it stays open
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 - it stays open
    sys.stderr = sys.stderr or open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115 - it stays open


class ParentGone(Exception):
    """Whoever started the daemon is gone and was not told 0: better no daemon than one that nobody knows of."""


class ReadyPipe:
    """The daemon's end of the pipe to the process that waits for it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @property
    def is_told(self) -> bool:
        """Whether ``ready`` was called: from then on nobody waits, and stderr is nobody's."""
        return self._descriptor is None

    def started(self) -> None:
        """Tell the pid. Raises CallerGone."""
        self._send(f"P{os.getpid()}")

    def ready(self) -> None:
        """Tell that connections are accepted, and let go of the caller's stdout and stderr. Raises CallerGone."""
        self._send("R")
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in (1, 2):
            os.dup2(null, descriptor)
        os.close(null)
        if self._descriptor is not None:
            os.close(self._descriptor)
        # Its number will soon be a client's connection.
        self._descriptor = None

    def failed(self, exit_code: int, text: str) -> None:
        """Tell why not."""
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


def daemonize(
    run: Callable[[ReadyPipe], int],
    *,
    lock: LockFile,
    preserve: list[int],
    further_locks: Sequence[LockFile] = (),
    confirm: Callable[[], None],
) -> int:
    """Run ``run`` in a detached process; the exit code of this one.

    ``run`` calls ``ready`` of its Readiness once connections are accepted, and returns the daemon's exit status.
    All locks are held and go over to the daemon; ``preserve`` are descriptors it needs. ``confirm`` connects to the
    new daemon, and raises StartError if that fails. No threads and no event loop may exist yet. Raises StartError if
    there can be no other process.
    """
    reading, writing = os.pipe()
    context = _context(lock, [writing, *preserve, *(each.fileno() for each in further_locks)])
    locks = [*further_locks, lock]
    sys.stdout.flush()
    sys.stderr.flush()
    # Signals are caught before there is a daemon that they could miss.
    with Waiting(reading) as waiting:
        try:
            child = os.fork()
        except OSError as error:
            os.close(writing)
            raise StartError(EXIT_FAILURE, f"cannot start another process: {error.strerror}") from None
        if child == 0:
            _be_daemon(run, ReadyPipe(writing), locks, context)
        os.close(writing)
        for each in locks:
            each.close()
        return waiting.wait(child, confirm)


def _context(lock: LockFile, preserve: list[int]) -> Any:  # noqa: ANN401 - the library has no types
    """A DaemonContext with every argument given; most of its defaults are not what we want."""
    from daemon import DaemonContext

    return DaemonContext(
        # Guesses otherwise: with a socket as stdin, or pid 1 as parent, it would silently stay in the foreground.
        detach_process=True,
        working_directory="/",
        umask=0o077,
        # True would set the hard limit to 0: no core dump, ever.
        prevent_core=False,
        uid=None,
        gid=None,
        initgroups=False,
        chroot_directory=None,
        pidfile=lock,
        files_preserve=[*preserve, lock.fileno()],
        # The terminal's stop signals are nothing to a daemon; the rest is the event loop's.
        signal_map={signal.SIGHUP: None, signal.SIGTTIN: None, signal.SIGTTOU: None, signal.SIGTSTP: None},
        stdin=None,
        stdout=sys.stdout,
        stderr=sys.stderr,
    )


def _be_daemon(
    run: Callable[[ReadyPipe], int],
    readiness: ReadyPipe,
    locks: list[LockFile],
    context: Any,  # noqa: ANN401 - the library has no types
) -> NoReturn:
    """The child: detach, run, and leave without the exit handlers of the process we came from."""
    status = EXIT_FAILURE
    text = ""
    try:
        # Until there is an event loop: the terminal's ctrl-c is for the waiting process, which passes on SIGTERM.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        context.open()
        readiness.started()
        status = run(readiness)
    except StartError as error:
        status, text = error.exit_code, error.text
    except ParentGone:
        pass
    except BaseException as error:
        text = _report(error, readiness)
    finally:
        try:
            for lock in locks:
                lock.release()
            # Only now: the caller may try again at once, and must not find the lock taken.
            if text:
                readiness.failed(status, text)
        finally:
            os._exit(status)


def _report(error: BaseException, readiness: ReadyPipe) -> str:
    """Show a failure that nobody expected where it will be seen; what to tell the caller."""
    if readiness.is_told:
        logger.critical("the daemon failed", exc_info=error)
    else:
        traceback.print_exception(error)
        sys.stderr.flush()
    return "the daemon failed while starting; the traceback is above"
