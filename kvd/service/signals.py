"""Signals before the event loop runs: none is lost, none ends the process in the middle of its start.

A process inherits which signals are blocked and ignored. A daemon needs none blocked, and its children's ends. SIGINT
that was ignored at the start (a script's ``kv serve &``) stays ignored: the terminal's ctrl-c is for the script.
"""

import signal
from types import FrameType

_NEEDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGALRM)


class Stopped(Exception):
    """A signal has ended the start. ``name``: which one."""

    def __init__(self, number: int) -> None:
        self.name = signal.Signals(number).name
        super().__init__(self.name)


class EarlySignals:
    """Remembers the signals of a start. Create it in the first line; call ``catch`` in the process that will serve."""

    def __init__(self) -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _NEEDED)
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        is_interruptible = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        self.stopping = (signal.SIGTERM, signal.SIGINT) if is_interruptible else (signal.SIGTERM,)
        self._pending: list[int] = []

    def catch(self) -> None:
        """Remember from now on what comes, instead of ending."""
        for number in (*self.stopping, signal.SIGHUP):
            signal.signal(number, self._note)

    def check(self) -> None:
        """Raise Stopped if a signal has come that ends a daemon."""
        for number in self._pending:
            if number in self.stopping:
                raise Stopped(number)

    def take(self) -> list[int]:
        """Return what has come since the last call, for the event loop's handlers."""
        pending, self._pending = self._pending, []
        return pending

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._pending.append(number)
