"""The keys in order, for prefix and range scans.

A list of sorted blocks (the idea of a B+ tree's leaves, and of Grant Jenks' sortedcontainers): a lookup is two binary
searches, and an insertion moves at most one block. A writer does not pay for an insertion with each key: ``add`` and
``discard`` only note the key, and ``flush`` applies all notes in bulk. A reader flushes first.

Python's order of ``str`` is by code point, which is also the order of the UTF-8 bytes.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterator
from itertools import islice

BLOCK_KEYS = 1024
# Flushing this many notes takes about a millisecond. A writer flushes when there are more.
PENDING_KEYS = 1024
# From this number of new keys in one block on, sorting the block is cheaper than inserting them one by one.
_RESORT_KEYS = 32


class OrderedIndex:
    """An ordered set of keys whose changes are deferred."""

    __slots__ = ("_added", "_blocks", "_discarded", "_lasts")

    def __init__(self) -> None:
        self._blocks: list[list[str]] = []
        self._lasts: list[str] = []  # the greatest key of each block
        # Both in the order in which they were noted: if that is sorted already, sorting is quick.
        self._added: dict[str, None] = {}
        self._discarded: dict[str, None] = {}

    def __len__(self) -> int:
        return sum(map(len, self._blocks)) + len(self._added) - len(self._discarded)

    @property
    def pending(self) -> int:
        """The number of notes that wait for ``flush``."""
        return len(self._added) + len(self._discarded)

    def add(self, key: str) -> None:
        """Note the addition of a key that is not in the index."""
        if key in self._discarded:
            del self._discarded[key]
        else:
            self._added[key] = None

    def add_all(self, keys: Collection[str]) -> None:
        """Note the addition of keys that are not in the index."""
        self._added.update(dict.fromkeys(_without_noted(keys, self._discarded)))

    def discard(self, key: str) -> None:
        """Note the removal of a key that is in the index."""
        if key in self._added:
            del self._added[key]
        else:
            self._discarded[key] = None

    def discard_all(self, keys: Collection[str]) -> None:
        """Note the removal of keys that are in the index. A key whose addition is only noted costs almost nothing."""
        self._discarded.update(dict.fromkeys(_without_noted(keys, self._added)))

    def flush(self, max_notes: int | None = None) -> None:
        """Apply all notes, or the first ``max_notes`` of each kind."""
        if self._discarded:
            self._remove(sorted(_taken(self._discarded, max_notes)))
        if self._added:
            self._insert(sorted(_taken(self._added, max_notes)))

    def range(self, start: str, end: str | None) -> Iterator[str]:
        """Yield the keys from ``start`` on, before ``end`` (None: to the last), in order.

        The index must not change meanwhile.
        """
        self.flush()
        number = bisect_left(self._lasts, start)
        while number < len(self._blocks):
            block = self._blocks[number]
            first = bisect_left(block, start)
            if end is not None and self._lasts[number] >= end:
                yield from block[first : bisect_left(block, end)]
                return
            yield from block[first:]
            number += 1

    def _insert(self, keys: list[str]) -> None:
        """Insert sorted keys block by block, the last block first, so that a split moves no block that comes later."""
        if not self._blocks:
            self._blocks, self._lasts = [[]], [""]
        end = len(keys)
        while end:
            number = min(bisect_left(self._lasts, keys[end - 1]), len(self._blocks) - 1)
            begin = bisect_right(keys, self._lasts[number - 1], 0, end) if number else 0
            self._insert_into(number, keys[begin:end])
            end = begin

    def _insert_into(self, number: int, keys: list[str]) -> None:
        block = self._blocks[number]
        if len(keys) < _RESORT_KEYS:
            for key in keys:
                insort(block, key)
        else:
            block.extend(keys)
            block.sort()  # merges two sorted runs in linear time
        if len(block) <= 2 * BLOCK_KEYS:
            self._lasts[number] = block[-1]
            return
        pieces = [block[at : at + BLOCK_KEYS] for at in range(0, len(block), BLOCK_KEYS)]
        self._blocks[number : number + 1] = pieces
        self._lasts[number : number + 1] = [piece[-1] for piece in pieces]

    def _remove(self, keys: list[str]) -> None:
        """Remove sorted keys, all of them in the index, from the last to the first."""
        end = len(keys)
        while end:
            number = bisect_left(self._lasts, keys[end - 1])
            begin = bisect_right(keys, self._lasts[number - 1], 0, end) if number else 0
            self._remove_from(number, keys[begin:end])
            end = begin

    def _remove_from(self, number: int, keys: list[str]) -> None:
        block = self._blocks[number]
        if len(keys) < _RESORT_KEYS:
            for key in keys:
                del block[bisect_left(block, key)]
        elif (end := bisect_right(block, keys[-1])) - (first := bisect_left(block, keys[0])) == len(keys):
            del block[first:end]  # because they stand together
        else:
            gone = set(keys)
            block[:] = [key for key in block if key not in gone]
        if block:
            self._lasts[number] = block[-1]
        else:
            del self._blocks[number], self._lasts[number]


def _without_noted(keys: Collection[str], notes: dict[str, None]) -> Collection[str]:
    """Return ``keys`` without those that ``notes``, the opposite notes, contain; these notes are removed."""
    if not notes or not (noted := notes.keys() & keys):
        return keys
    for key in noted:
        del notes[key]
    return [key for key in keys if key not in noted]


def _taken(notes: dict[str, None], max_notes: int | None) -> list[str]:
    """Remove the first of ``notes``, at most ``max_notes``, and return them."""
    taken = list(islice(notes, max_notes))
    if len(taken) == len(notes):
        notes.clear()
    else:
        for key in taken:
            del notes[key]
    return taken
