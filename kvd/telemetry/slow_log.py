"""What held the loop for long: the last frames that did, by whom, and when.

Nobody else is served while a frame runs, so one that takes long is everybody's. Measured is what a frame runs, and the
encoding of its replies; of frames that run in slices, each slice; of sets that many connections sent in one turn of the
loop, all of them together. A get alone in its frame is a look-up of half a microsecond: to look at a clock twice would
cost a good part of that, so it is measured only once there are values that take a while to copy.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from itertools import chain, islice

import msgspec

from kvd.protocol import messages
from kvd.protocol.messages import AnyRequest
from kvd.requests.keys import named_keys
from kvd.store.authors import Author

# A reply of so many bytes may take a while.
LARGE_VALUE_BYTES = 64 * 1024
SHOWN_KEYS = 4
SHOWN_CHARACTERS = 80
DEFAULT_THRESHOLD_US = 10_000
DEFAULT_ENTRIES = 128
_NEVER_NS = 1 << 63


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """A frame that held the loop: when it was over (µs since the epoch), for how many µs, and by whom.

    ``kinds``: requests by name, with how many. ``keys``: the first of those that it names, cut; ``more``: there were
    others.
    """

    time: int
    held_us: int
    author: Author
    kinds: list[tuple[str, int]]
    keys: list[str]
    more: bool


class SlowLog:
    """The last such frames. The hot path compares with ``threshold_ns`` itself."""

    def __init__(self) -> None:
        self.threshold_ns = _NEVER_NS
        self._entries: deque[Entry] = deque()
        self.configure(DEFAULT_THRESHOLD_US, DEFAULT_ENTRIES)

    def configure(self, threshold_us: int, entries: int) -> None:
        """Keep the last ``entries`` frames (0: none) that took ``threshold_us`` or longer."""
        self.threshold_ns = threshold_us * 1_000 if entries else _NEVER_NS
        self._entries = deque(self._entries, entries)

    def note(self, requests: Sequence[AnyRequest], author: Author, held_us: int, now: int) -> None:
        """A frame was slow."""
        kinds: list[tuple[type[messages.Request], int]] = Counter(map(type, requests)).most_common()
        keys = list(islice(chain.from_iterable(map(_shown, requests)), SHOWN_KEYS + 1))
        more = len(keys) > SHOWN_KEYS
        names = [(str(kind.__struct_config__.tag), count) for kind, count in kinds]
        self._entries.append(Entry(now, held_us, author, names, list(map(_cut, keys[:SHOWN_KEYS])), more))

    def newest(self, limit: int) -> list[Entry]:
        """Up to ``limit`` entries, the newest first."""
        return list(islice(reversed(self._entries), limit))

    def reset(self) -> None:
        """Forget them."""
        self._entries.clear()

    def __len__(self) -> int:
        return len(self._entries)


def _shown(request: AnyRequest) -> Collection[str] | Iterable[str]:
    match request:
        case messages.Scan() | messages.Largest():
            return (request.start,) if request.start else ()
        case messages.Watch():
            return (request.prefix,) if request.prefix else ()
    return named_keys(request)


def _cut(key: str) -> str:
    return key if len(key) <= SHOWN_CHARACTERS else key[: SHOWN_CHARACTERS - 1] + "…"
