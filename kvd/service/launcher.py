"""The process that a person starts to get a daemon: waits until the daemon is ready, and reports how the start went."""

import os
import signal
import socket
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import msgspec

from kvd.protocol import exits, frame
from kvd.service.errors import StartError, print_error

PING_TIMEOUT_S = 5.0
_FORWARDED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DaemonLauncher:
    """Waits for the daemon at the reading end of its pipe. ``daemon.py`` has the protocol of the messages.

    As a context manager it forwards the signals that would end this process to the daemon, as SIGTERM, because a
    person who stops waiting does not want the daemon any more.
    """

    def __init__(self, reading: int) -> None:
        self._reading = reading
        self._daemon_pid: int | None = None
        self._signal: int | None = None
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "DaemonLauncher":
        for number in _FORWARDED_SIGNALS:
            # nohup(1) ignores SIGHUP; a signal that is ignored stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous_handlers[number] = signal.signal(number, self._forward)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def wait(self, child: int, confirm: Callable[[], None]) -> int:
        """Read the messages to the end of the pipe and reap ``child``, this process's own; return the exit code."""
        outcome = self._read_outcome()
        os.waitpid(child, 0)
        exit_code = 0
        if self._signal is None:
            exit_code = self._exit_code(outcome, confirm)
        # A signal may also come while the daemon is asked for confirmation.
        return exit_code if self._signal is None else 128 + self._signal

    def _read_outcome(self) -> str:
        """Return the message after the pid: ready or failed, or an empty text at the end of the pipe."""
        with open(self._reading, encoding="utf-8", errors="replace") as pipe:
            for line in pipe:
                if not line.startswith("P"):
                    return line.rstrip("\n")
                self._daemon_pid = int(line[1:])
                if self._signal is not None:
                    self._stop_daemon()
        return ""

    def _exit_code(self, outcome: str, confirm: Callable[[], None]) -> int:
        if outcome == "R":
            try:
                confirm()
            except StartError as error:
                self._stop_daemon()
                return print_error(error.text, error.exit_code)
            return 0
        self._daemon_pid = None  # it has ended, and another process may get its pid
        if outcome.startswith("F"):
            code, _, text = outcome[1:].partition(" ")
            return print_error(text, int(code))
        return print_error("the daemon ended before it was ready", exits.FAILURE)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._stop_daemon()

    def _stop_daemon(self) -> None:
        if self._daemon_pid is not None:
            try:
                os.kill(self._daemon_pid, signal.SIGTERM)
            except ProcessLookupError:
                pass


def ping(path: str) -> None:
    """Check that the daemon at ``path`` answers. Raises StartError."""
    request = frame(msgspec.msgpack.encode([["ping"]]))
    expected = frame(msgspec.msgpack.encode([True]))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PING_TIMEOUT_S)
            connection.connect(path)
            connection.sendall(request)
            reply = connection.recv(len(expected), socket.MSG_WAITALL)
    except OSError as error:
        raise StartError(exits.FAILURE, f"the daemon does not answer at {path}: {error}") from None
    if reply != expected:
        raise StartError(exits.FAILURE, f"the daemon does not answer at {path} as it should")
