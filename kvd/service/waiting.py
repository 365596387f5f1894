"""The process that a person started to get a daemon: waits until the daemon is ready, and tells how it went."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from kvd.service.errors import EXIT_FAILURE, StartError

_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Waiting:
    """Reads the daemon's messages from a pipe.

    As a context manager it passes signals to end this process on to the daemon, as SIGTERM: who gives up waiting does
    not want the daemon any more. The protocol of the messages: ``daemon.py``.
    """

    def __init__(self, reading: int) -> None:
        self._reading = reading
        self._daemon_pid: int | None = None
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> "Waiting":
        for number in _PASSED_ON:
            # nohup(1) ignores SIGHUP, and so do we then.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def wait(self, child: int, confirm: Callable[[], None]) -> int:
        """Read the messages to their end; the exit code. ``child`` is the process to be waited for, our own."""
        outcome = self._read_outcome()
        os.waitpid(child, 0)
        exit_code = 0
        if self._signal is None:
            exit_code = self._judge(outcome, confirm)
        return exit_code if self._signal is None else 128 + self._signal

    def _read_outcome(self) -> str:
        """The message after the pid: ready, failed, or nothing at the end of the pipe."""
        with open(self._reading, encoding="utf-8", errors="replace") as pipe:
            for line in pipe:
                if not line.startswith("P"):
                    return line.rstrip("\n")
                self._daemon_pid = int(line[1:])
                if self._signal is not None:
                    self._stop_daemon()
        return ""

    def _judge(self, outcome: str, confirm: Callable[[], None]) -> int:
        if outcome == "R":
            try:
                confirm()
            except StartError as error:
                self._stop_daemon()
                return _complain(error.text, error.exit_code)
            return 0
        self._daemon_pid = None  # ended: another process may get the pid
        if outcome.startswith("F"):
            code, _, text = outcome[1:].partition(" ")
            return _complain(text, int(code))
        return _complain("the daemon ended before it was ready", EXIT_FAILURE)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._stop_daemon()

    def _stop_daemon(self) -> None:
        if self._daemon_pid is not None:
            try:
                os.kill(self._daemon_pid, signal.SIGTERM)
            except ProcessLookupError:
                pass


def _complain(text: str, exit_code: int) -> int:
    print(f"kv: error: {text}", file=sys.stderr, flush=True)
    return exit_code
