"""How a benchmark is interrupted: at any time, but for the moments in which it cleans up behind itself."""

import signal
from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import NoReturn

ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


@contextmanager
def ending() -> "Iterator[None]":
    """Within it SIGTERM and SIGHUP end the command as Ctrl-C does: as an exception, so that it cleans up."""

    def end(number: int, _: "FrameType | None") -> "NoReturn":
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> "Iterator[None]":
    """Within it none of them interrupts; one that came does so at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
