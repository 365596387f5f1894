"""How many lines of one kind the log takes: any peer can cause some kinds, and must not fill a disk or hold the loop.

Of one kind, which is one text of the code whatever peer it names, LINES_PER_S a second are written. The next line after
that says how many were left out.
"""

import logging
import time
from collections.abc import Callable

LINES_PER_S = 10


class RateFilter(logging.Filter):
    """Drops the lines of a kind that come too fast. ``left_out``: how many it has dropped."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        # For each kind: when its second began, and how many lines were written and dropped in it.
        self._kinds: dict[tuple[str, str], tuple[float, int, int]] = {}
        self.left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a line. It is counted before any of its text is put together."""
        kind = record.name, str(record.msg)
        now = self._now()
        began, written, dropped = self._kinds.get(kind, (now, 0, 0))
        if now - began >= 1:
            began, written = now, 0
        if written >= LINES_PER_S:
            self._kinds[kind] = began, written, dropped + 1
            self.left_out += 1
            return False
        if dropped:
            record.msg = f"{record.msg} (and {dropped} such lines were left out)"
        self._kinds[kind] = began, written + 1, 0
        return True
