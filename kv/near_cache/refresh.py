"""Which keys of a near cache are in demand, so that they are fetched again along with whatever is asked next.

A key that is written now and then costs each process that reads it a round trip after each write. But a process that
goes to the server for something can bring along what else it has lost; asking for one more key costs a twentieth of a
round trip. Which ones it has lost the server notes in the table (``kvd/protocol/near_cache.py``); which ones are worth
it, only reads can tell, and a hit must not cost more for that. So:

    a read finds its entry changed  ─▶  in demand  ─▶  noted as changed  ─▶  due  ─▶  fetched along, FREE_RIDES times
                   ▲                                                                                │
                   └──────────── the next read that finds it changed ◀── not in demand any more ◀───┘

What is never read again is fetched in vain so many times and no more; what is read costs a round trip once in so many
writes. Nothing here says that an entry is current: each is kept with the generation that came with it, as any other.
"""

from __future__ import annotations

from kvd.protocol.near_cache import FIRST_GENERATION, NOTED, NOTES, first_note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from kv.near_cache.cache import Table

# How often a key is fetched again between two reads that find it changed, and behind a read that did not know it.
FREE_RIDES = 64
FIRST_RIDES = 4
# So many keys are in demand at most; those that came first make room.
MAX_KEYS = 16_384
# So many ride along at most, and none that is larger: together 64 KiB.
MAX_A_REQUEST = 32
MOST_BYTES = 2_048


class RefreshQueue:
    """The keys in demand of one table. Threads may share it: what they do at once is done twice, or left for later."""

    __slots__ = ("_due", "_keys", "_notes", "_rides", "_seen")

    def __init__(self, slots: int, noted: int = 0) -> None:
        self._notes = first_note(slots)
        self._seen = noted  # how many changes had been noted when we looked last
        self._keys: dict[int, str] = {}  # by their words: of keys that share a slot one can be in demand
        self._rides: dict[int, int] = {}
        self._due: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: str, value: bytes | None, word: int, rides: int) -> None:
        """A read has fetched this of ``key``, which may be fetched again so often."""
        if len(key) + len(value or b"") > MOST_BYTES:
            self.drop(word)
            return
        if len(self._keys) >= MAX_KEYS and word not in self._keys:
            self.drop(next(iter(self._keys), word))
        self._rides[word] = rides
        self._keys[word] = key

    def drop(self, word: int) -> None:
        """Its key rides no more until a read finds it changed again."""
        self._keys.pop(word, None)
        self._rides.pop(word, None)

    def has(self, key: str, word: int) -> bool:
        """Whether ``key`` is in demand."""
        return self._keys.get(word) == key

    def take(self, table: Table, besides: Iterable[str]) -> list[str]:
        """Keys in demand that have changed, to be fetched along with ``besides``, which are fetched anyway."""
        words, younger = table.words, table.younger
        due, keys, rides = self._due, self._keys, self._rides
        if words[NOTED] != self._seen:
            self._look(words)
        taken: list[str] = []
        while due and len(taken) < MAX_A_REQUEST:
            try:
                word, _ = due.popitem()
                key = keys[word]
                if words[word] != younger[key][2] and key not in besides:
                    taken.append(key)
                    rides[word] -= 1
                    if not rides[word]:
                        self.drop(word)
            except KeyError:  # taken by another thread, or not held any more
                pass
        return taken

    def _look(self, words: memoryview) -> None:
        """Note as due what is in demand, and was noted as changed since the last time."""
        noted, seen = words[NOTED], self._seen
        self._seen = noted
        if not 0 < noted - seen <= NOTES:
            return
        begin, end = self._notes + seen % NOTES, self._notes + noted % NOTES
        if begin < end:
            slots = words[begin:end].tolist()
        else:
            slots = words[begin : self._notes + NOTES].tolist() + words[self._notes : end].tolist()
        for slot in slots:
            word = slot + FIRST_GENERATION
            if word in self._keys:
                self._due[word] = None
