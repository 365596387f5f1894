"""Which changed keys of a near cache are worth fetching again along with the next request: piggy-backed refreshes.

A key that is written now and then costs each process that reads it a round trip after each write. But a request that
goes to the server anyway can fetch other changed keys as well; one more key costs a twentieth of a round trip. The
server notes in the table which keys have changed (``kvd/protocol/near_cache.py``). Which of them are worth a refresh,
only reads can tell, and a hit must not cost more for that. So:

    a read finds its entry changed  ─▶  queued  ─▶  noted as changed  ─▶  due  ─▶  refreshed, REFRESH_BUDGET times
                   ▲                                                                             │
                   └────────── the next read that finds it changed ◀── not queued any more ◀─────┘

A key that is never read again is refreshed in vain REFRESH_BUDGET times and no more. A key that is read costs a round
trip once in that many writes. Nothing here proves that an entry is current: a refreshed entry is kept with the
generation that came with it, as any other.
"""

from __future__ import annotations

from kvd.protocol.near_cache import FIRST_GENERATION, NOTED, NOTES, first_note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kv.near_cache.entries import Entry

# How often a key is refreshed after a read that finds it changed, and after a read that did not know it.
REFRESH_BUDGET = 64
FIRST_REFRESH_BUDGET = 4
# At most this many keys are queued; the oldest make room.
MAX_KEYS = 16_384
# At most this many keys are refreshed with one request, and none that is larger: together 64 KiB.
MAX_KEYS_PER_REQUEST = 32
MAX_ENTRY_BYTES = 2_048


class RefreshQueue:
    """The keys of one table that are worth a refresh.

    Threads may share it: what two of them do at the same time is done twice, or left for later.
    """

    __slots__ = ("_budgets", "_due", "_keys", "_noted", "_notes")

    def __init__(self, slots: int, noted: int = 0) -> None:
        self._notes = first_note(slots)
        self._noted = noted  # how many changes the server had noted at the last look
        self._keys: dict[int, str] = {}  # by word: of the keys that share a slot, one can be queued
        self._budgets: dict[int, int] = {}
        self._due: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: str, value: bytes | None, word: int, budget: int) -> None:
        """Queue ``key``, whose value a read has just fetched, for ``budget`` refreshes."""
        if len(key) + len(value or b"") > MAX_ENTRY_BYTES:
            self.drop(word)
            return
        if len(self._keys) >= MAX_KEYS and word not in self._keys:
            self.drop(next(iter(self._keys), word))
        self._budgets[word] = budget
        self._keys[word] = key

    def drop(self, word: int) -> None:
        """Stop refreshing the key of ``word`` until a read finds it changed again."""
        self._keys.pop(word, None)
        self._budgets.pop(word, None)

    def has(self, key: str, word: int) -> bool:
        """Whether ``key`` is queued."""
        return self._keys.get(word) == key

    def take(self, words: memoryview, entries: Mapping[str, Entry], excluded: Iterable[str]) -> list[str]:
        """Return queued keys that have changed, to be refreshed now, without ``excluded``, which are fetched anyway."""
        due, keys, budgets = self._due, self._keys, self._budgets
        if words[NOTED] != self._noted:
            self._read_notes(words)
        taken: list[str] = []
        while due and len(taken) < MAX_KEYS_PER_REQUEST:
            try:
                word, _ = due.popitem()
                key = keys[word]
                if words[word] != entries[key][2] and key not in excluded:
                    taken.append(key)
                    budgets[word] -= 1
                    if not budgets[word]:
                        self.drop(word)
            except KeyError:  # another thread has taken it, or its entry is gone
                pass
        return taken

    def _read_notes(self, words: memoryview) -> None:
        """Mark as due the queued keys that the server has noted as changed since the last look."""
        noted, seen = words[NOTED], self._noted
        self._noted = noted
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
