"""How signals interrupt a benchmark: at any time, except while it removes its keys."""

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
    """Within the block, SIGTERM and SIGHUP end the command as Ctrl-C does: by an exception, so that it cleans up."""

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
    """Within the block, none of these signals interrupts; a pending one does at its end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
