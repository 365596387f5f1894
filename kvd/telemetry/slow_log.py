"""The last frames that blocked the loop for long, with their sender and time.

A slow frame delays every client, because the loop runs one frame at a time. The time covers running the frame and
encoding its replies. A frame that runs in slices is measured slice by slice. Sets that many connections sent in one
turn of the loop are measured together. A get alone in its frame takes half a microsecond, and reading the clock twice
would cost a good part of that. So it is measured only if the store has values that take a while to copy.
"""

from collections import deque
from collections.abc import Iterable
from itertools import islice

import msgspec

# A reply with a value of this size may take a while.
LARGE_VALUE_BYTES = 64 * 1024
SHOWN_KEYS = 4
SHOWN_CHARACTERS = 80
_NEVER_NS = 1 << 63


class SlowFrame(msgspec.Struct, array_like=True, frozen=True):
    """A frame that held the loop. ``time``: when it ended, in µs since the epoch. ``author``: who sent it.

    ``kinds``: the names of its requests, with how many of each. ``keys``: the first keys that it names, shortened;
    ``more``: whether it names others.
    """

    time: int
    held_us: int
    author: object
    kinds: list[tuple[str, int]]
    keys: list[str]
    more: bool


class SlowLog:
    """The last ``entries`` frames (0: none) that took ``threshold_us`` or longer.

    The hot path compares with ``threshold_ns`` itself.
    """

    def __init__(self, threshold_us: int, entries: int) -> None:
        self.threshold_ns = _NEVER_NS
        self._frames: deque[SlowFrame] = deque()
        self.configure(threshold_us, entries)

    def configure(self, threshold_us: int, entries: int) -> None:
        """Keep the last ``entries`` frames (0: none) that took ``threshold_us`` or longer."""
        self.threshold_ns = threshold_us * 1_000 if entries else _NEVER_NS
        self._frames = deque(self._frames, entries)

    def add(
        self, kinds: list[tuple[str, int]], keys: Iterable[str], author: object, *, held_us: int, ended_us: int
    ) -> None:
        """Add a slow frame. Of ``keys`` only the first few are read."""
        first = list(islice(keys, SHOWN_KEYS + 1))
        shown = list(map(_shortened, first[:SHOWN_KEYS]))
        self._frames.append(SlowFrame(ended_us, held_us, author, kinds, shown, len(first) > SHOWN_KEYS))

    def newest(self, limit: int) -> list[SlowFrame]:
        """Return up to ``limit`` frames, the newest first."""
        return list(islice(reversed(self._frames), limit))

    def reset(self) -> None:
        """Forget all frames."""
        self._frames.clear()

    def __len__(self) -> int:
        return len(self._frames)


def _shortened(key: str) -> str:
    return key if len(key) <= SHOWN_CHARACTERS else key[: SHOWN_CHARACTERS - 1] + "…"
