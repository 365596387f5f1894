"""Becoming a daemon: a double fork whose parent returns 0 only when the daemon accepts connections.

python-daemon does the forks, the session and the descriptors. What it leaves open: its parent leaves with 0 at the
first fork, before anything can have gone wrong. So there is a fork of our own around it, and a pipe:

        kv serve --daemon ──fork──▶ child ──DaemonContext: fork, setsid, fork──▶ daemon
               │ waits                                                             │
               ◀────────────────────── pipe: "P<pid>", then "R" or "F<code> text" ─┘
          on R: connects and pings, exit 0;  on F: text on stderr, exit code;  on EOF: it died before it was ready

stderr stays the caller's until the daemon is ready, so that tracebacks and aborts are seen; after that it goes to
/dev/null, or `x=$(kv serve --daemon)` would wait for ever.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from kvd.service.errors import EXIT_FAILURE, StartError
from kvd.service.locks import LockFile


def standard_fds() -> None:
    """Open /dev/null on descriptors 0 to 2 that are closed, before anything else can be given their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            os.set_inheritable(opened, True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


class Readiness:
    """The daemon's end of the pipe to the process that waits for it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def started(self) -> None:
        """Tell the pid."""
        self._send(f"P{os.getpid()}\n")

    def ready(self) -> None:
        """Tell that connections are accepted, and let go of the caller's stdout and stderr.

        Raises BrokenPipeError if the caller is gone, who then has not been told 0: better no daemon than one that
        nobody knows of.
        """
        self._send("R\n")
        os.close(self._descriptor)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in (1, 2):
            os.dup2(null, descriptor)
        os.close(null)

    def failed(self, exit_code: int, text: str) -> None:
        """Tell why not."""
        try:
            self._send(f"F{exit_code} {text}\n")
        except OSError:
            pass  # nobody waits any more

    def _send(self, message: str) -> None:
        os.write(self._descriptor, message.encode())


def daemonize(
    run: Callable[[Readiness], int],
    *,
    lock: LockFile,
    preserve: list[int],
    confirm: Callable[[], None],
) -> int:
    """Run ``run`` in a detached process; the exit code of this one.

    ``run`` calls ``ready`` of its Readiness once connections are accepted, and returns the daemon's exit status.
    ``lock`` is held and goes over to the daemon; ``preserve`` are descriptors it needs. ``confirm`` connects to the
    new daemon, and raises StartError if that fails. No threads and no event loop may exist yet.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _become_daemon(run, Readiness(writing), lock, [writing, *preserve])
    os.close(writing)
    lock.close()
    return _Waiting(reading, child).wait(confirm)


def _become_daemon(
    run: Callable[[Readiness], int], readiness: Readiness, lock: LockFile, preserve: list[int]
) -> NoReturn:
    """The child: detach, run, and leave without the exit handlers of the process we came from."""
    from daemon import DaemonContext

    status = EXIT_FAILURE
    try:
        context = DaemonContext(
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
        context.open()
        readiness.started()
        status = run(readiness)
    except StartError as error:
        readiness.failed(error.exit_code, error.text)
        status = error.exit_code
    except BrokenPipeError:
        status = EXIT_FAILURE  # the caller is gone
    except BaseException:
        traceback.print_exc()
        readiness.failed(EXIT_FAILURE, "the daemon failed while starting; the traceback is above")
    finally:
        lock.release()
        os._exit(status)


class _Waiting:
    """The process that the person started: waits for the daemon to be ready."""

    def __init__(self, reading: int, child: int) -> None:
        self._reading = reading
        self._child = child
        self._daemon_pid: int | None = None
        self._signal: int | None = None

    def wait(self, confirm: Callable[[], None]) -> int:
        """Read the daemon's messages to their end; the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._pass_on)
        outcome = self._read_outcome()
        try:
            os.waitpid(self._child, 0)
        except ChildProcessError:
            pass
        if self._signal is not None:
            return 128 + self._signal
        if outcome.startswith("R"):
            try:
                confirm()
            except StartError as error:
                return _complain(error.text, error.exit_code)
            return 0
        if outcome.startswith("F"):
            code, _, text = outcome[1:].partition(" ")
            return _complain(text, int(code))
        return _complain("the daemon ended before it was ready", EXIT_FAILURE)

    def _read_outcome(self) -> str:
        """The message after the pid: ready, failed, or nothing at the end of the pipe."""
        with open(self._reading, encoding="utf-8", errors="replace") as pipe:
            for line in pipe:
                if not line.startswith("P"):
                    return line.rstrip("\n")
                self._daemon_pid = int(line[1:])
                if self._signal is not None:
                    os.kill(self._daemon_pid, signal.SIGTERM)
        return ""

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        if self._daemon_pid is not None:
            try:
                os.kill(self._daemon_pid, signal.SIGTERM)
            except ProcessLookupError:
                pass


def _complain(text: str, exit_code: int) -> int:
    print(f"kv: error: {text}", file=sys.stderr, flush=True)
    return exit_code
