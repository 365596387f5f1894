"""Which key to give up when memory is short: SIEVE.

Yazhuo Zhang, Juncheng Yang, Yao Yue, Ymir Vigfusson, K. V. Rashmi: "SIEVE is Simpler than LRU: an Efficient Turn-Key
Eviction Algorithm for Web Caches", NSDI 2024. Keys stand in a queue in the order in which they came, and never move. A
hand goes through it from the oldest to the newest and begins again: a key that was visited since it last came by loses
its mark and stays, any other one goes.

        oldest  a  b* c* d  e* f  newest          * visited
                      hand ─▶                     c loses its mark, d goes

A hit only sets a mark, so it costs next to nothing; and what is read once only (a scan) goes before what is read again.

A key is marked by each later write of it, and by a read that finds it; what is asked for in vain and then put in begins
unmarked, and so does what was evicted and comes again.

Two liberties. The marks are a table of bytes by the hash of the key instead of a bit for each key: two keys in a place
share a mark, so that now and then one stays that might have gone. And the queue is in pieces, so that what it has of
keys that went by other ways (deleted, expired) is swept out piece by piece.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from kvd.store.heads import Head

PIECE_KEYS = 1_024
# Places for marks: so many for each key at least.
PLACES_A_KEY = 4
_FEWEST_PLACES = 1 << 16
STRIDE = 4
Read = TypeVar("Read")
# What a key costs here: its place in the queue, and its marks, which are doubled in one go.
KEY_BYTES = 8 + 2 * PLACES_A_KEY


class Marks:
    """Which keys were visited, roughly. The hot path sets ``places[hash(key) & mask]`` itself."""

    __slots__ = ("_phase", "mask", "places")

    def __init__(self) -> None:
        self._phase = 0
        self.places = bytearray(_FEWEST_PLACES)
        self.mask = _FEWEST_PLACES - 1

    def make_room_for(self, keys: int) -> None:
        """Have places for so many keys; if there are more than before, they all begin unmarked."""
        if keys * PLACES_A_KEY > len(self.places):
            size = 1 << (keys * PLACES_A_KEY - 1).bit_length()
            # In this order: whoever reads both in between must not reach beyond the end.
            self.places = bytearray(size)
            self.mask = size - 1

    def sample(self, read: Sequence[Read]) -> Sequence[Read]:
        """Those of many that are to be marked: one in STRIDE, each time others. Marking all would cost a quarter more.

        What is in use is read again and again, so it is marked soon enough.
        """
        if len(read) < STRIDE:
            return read
        self._phase = (self._phase + 1) % STRIDE
        return read[self._phase :: STRIDE]

    def set_all(self, keys: Iterable[str]) -> None:
        """All these were visited."""
        places, mask = self.places, self.mask
        for key in keys:
            places[hash(key) & mask] = 1

    def set_found(self, keys: Sequence[str], values: Sequence[object]) -> None:
        """These keys were read, many at a time; None stands for what was not there."""
        if all(values):  # quicker than to look for None
            self.set_all(self.sample(keys))
        else:
            found = self.sample(list(zip(keys, values, strict=True)))
            self.set_all([key for key, value in found if value is not None])

    def take(self, key: str) -> bool:
        """Whether ``key`` was visited since it was asked last."""
        place = hash(key) & self.mask
        if self.places[place]:
            self.places[place] = 0
            return True
        return False


class Sieve:
    """The queue of the keys that may go. ``find`` gives a key's head, as the store has it."""

    def __init__(self, find: Callable[[str], Head | None], marks: Marks) -> None:
        self._find = find
        self._marks = marks
        self._pieces: list[list[str | None]] = [[]]  # None: it was evicted
        self._hand = 0, 0  # the piece, and the place in it
        self._broom = 0
        self._keys = 0

    def __len__(self) -> int:
        """How many keys there are, and at most as many again that are there no more."""
        return self._keys

    def add(self, key: str) -> None:
        """A key is new. It has to be the very object that its heads have."""
        if len(self._pieces[-1]) >= PIECE_KEYS:
            self._pieces.append([])
            self._sweep()
            self._sweep()
            self._marks.make_room_for(self._keys)
        self._pieces[-1].append(key)
        self._keys += 1

    def next_victim(self) -> str | None:
        """The key that goes next; None if there is none. It is the caller's to delete it, now."""
        looks = 2 * self._keys + len(self._pieces) + 1
        while looks > 0:
            number, place = self._hand
            if number >= len(self._pieces):
                self._hand = 0, 0
                looks -= 1
                continue
            piece = self._pieces[number]
            while place < len(piece):
                key = piece[place]
                place += 1
                looks -= 1
                if key is None:
                    continue
                head = self._find(key)
                if head is not None and head.key is key and head.value is not None and not self._marks.take(key):
                    piece[place - 1] = None  # should it come again, it begins at the end
                    self._hand = number, place
                    return key
            self._hand = number + 1, 0
        return None

    def _sweep(self) -> None:
        """Sweep the next piece: forget what the store has forgotten."""
        last = len(self._pieces) - 1  # which is being filled
        self._broom = self._broom % last if last else 0
        number = self._broom
        if number == last:
            return
        hand, place = self._hand
        kept = list(filter(self._is_known, self._pieces[number]))
        self._keys -= len(self._pieces[number]) - len(kept)
        if hand == number:
            self._hand = number, sum(map(self._is_known, self._pieces[number][:place]))
        self._pieces[number] = kept
        self._broom += 1
        if not kept:
            del self._pieces[number]
            self._broom = number
            if self._hand[0] > number:
                self._hand = self._hand[0] - 1, self._hand[1]

    def _is_known(self, key: str | None) -> bool:
        head = None if key is None else self._find(key)
        # The same key may have been forgotten and have come anew: then it stands further behind.
        return head is not None and head.key is key
