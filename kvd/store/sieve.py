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
share a mark, so that now and then one stays that might have gone. And the queue is in pieces: whoever goes is taken out
of a short list, and what the queue has of keys that went by other ways (deleted, expired) is swept out piece by piece.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import TypeVar

from kvd.store.heads import Head
from kvd.store.keyspace import KEY_BYTES as STORED_KEY_BYTES

PIECE_KEYS = 1_024
# Places for marks: so many for each key at least.
PLACES_A_KEY = 8
_FEWEST_PLACES = 1 << 18
STRIDE = 4
# The queue is swept once so many of its keys may have been forgotten by the store.
_STALE_PART = 4
# So many keys are looked at together at least, as most of them may be marked.
_LOOKED_AT_KEYS = 8
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


class Sieve:
    """The queue of the keys that may go.

    ``find_all`` gives the heads of keys, as the store has them, and ``forgotten`` how many keys the store has forgotten
    so far that were not evicted.
    """

    def __init__(
        self, find_all: Callable[[Sequence[str]], list[Head | None]], forgotten: Callable[[], int], marks: Marks
    ) -> None:
        self._find_all = find_all
        self._forgotten = forgotten
        self._marks = marks
        self._pieces: list[list[str]] = [[]]  # oldest first; new keys go into the last
        self._hand = 0, 0  # the piece, and the place in it
        self._keys = 0
        self._broom = -1  # the piece to be swept next: from the last to the first, then there is nothing to be swept
        self._swept_for = forgotten()  # what had been forgotten when the last round of sweeping began

    def __len__(self) -> int:
        """How many keys there are, and at most as many again that are there no more."""
        return self._keys

    def add_all(self, keys: Sequence[str]) -> None:
        """These keys are new, in this order. They have to be the very objects that their heads have."""
        begin = 0
        while begin < len(keys):
            if len(self._pieces[-1]) >= PIECE_KEYS:
                self._begin_piece()
            last = self._pieces[-1]
            some = keys[begin : begin + PIECE_KEYS - len(last)]
            last.extend(some)
            self._keys += len(some)
            begin += len(some)

    def take_victims(self, keys: int, size: int, most: int) -> list[Head]:
        """Take out who goes next, ``keys`` of them and ``size`` bytes of keys and values, but not more than ``most``.

        Fewer if there are no more. It is the caller's to delete them, now; one may be among them twice, if it was
        deleted and has come again.
        """
        victims: list[Head] = []
        ends = 3  # to see each key twice: with its mark, and without
        while ends and len(victims) < most and (len(victims) < keys or size > 0):
            number, place = self._hand
            # No more than can be needed, as each takes STORED_KEY_BYTES at least.
            needed = max(keys - len(victims), size // STORED_KEY_BYTES + 1, _LOOKED_AT_KEYS)
            looked_at = self._pieces[number][place : place + min(needed, most - len(victims))]
            if looked_at:
                chosen, size = self._pass_over(looked_at, keys - len(victims), size)
                victims += chosen
            else:
                ends -= number == len(self._pieces) - 1
                self._go_on()
        return victims

    def _pass_over(self, looked_at: list[str], keys: int, size: int) -> tuple[list[Head], int]:
        """Let the hand pass over these, which come next, until enough go; who goes, and the bytes still wanted."""
        places, mask = self._marks.places, self._marks.mask
        victims, staying, unknown = list[Head](), list[str](), 0
        for key, head in zip(looked_at, self._find_all(looked_at), strict=True):
            if head is None or head.key is not key:
                unknown += 1  # the same key may have come anew: then it stands further behind
                continue
            value, mark = head.value, hash(key) & mask
            if value is None:
                staying.append(key)
            elif places[mark]:
                places[mark] = 0
                staying.append(key)
            else:
                victims.append(head)
                size -= STORED_KEY_BYTES + len(key) + len(value)
                if size <= 0 and len(victims) >= keys:
                    break
        number, place = self._hand
        left = len(victims) + unknown
        self._pieces[number][place : place + len(staying) + left] = staying
        self._hand = number, place + len(staying)
        self._keys -= left
        return victims, size

    def _go_on(self) -> None:
        """The hand is at the end of a piece, and goes on to the next one."""
        number = self._hand[0]
        if number == len(self._pieces) - 1:
            self._hand = 0, 0
            return
        piece, before = self._pieces[number], self._pieces[number - 1]
        if number and len(before) + len(piece) <= PIECE_KEYS:
            before.extend(piece)
            piece.clear()
        if piece:
            self._hand = number + 1, 0
        else:
            self._hand = number, 0
            self._remove_piece(number)

    def _begin_piece(self) -> None:
        """The last piece is full."""
        self._pieces.append([])
        stale = self._forgotten() - self._swept_for
        if self._broom < 0 and stale > self._keys // _STALE_PART:
            self._swept_for += stale
            self._broom = len(self._pieces) - 2
        # Two for one, so that the round ends before the queue has grown by half.
        for _ in range(2):
            if self._broom >= 0:
                self._sweep()
        self._marks.make_room_for(self._keys)

    def _sweep(self) -> None:
        """Sweep the next piece: forget what the store has forgotten."""
        number = self._broom
        self._broom -= 1
        piece = self._pieces[number]
        heads = self._find_all(piece)
        # What was forgotten and came anew may be the same object, as decoders keep short keys: its last place counts.
        last = {key: at for at, key in enumerate(piece)}
        known = [
            head is not None and head.key is key and last[key] == at
            for at, (key, head) in enumerate(zip(piece, heads, strict=True))
        ]
        if self._hand[0] == number:
            self._hand = number, sum(known[: self._hand[1]])
        piece[:] = compress(piece, known)
        self._keys -= len(known) - len(piece)
        if number + 2 < len(self._pieces) and len(piece) + len(self._pieces[number + 1]) <= PIECE_KEYS:
            self._join(number)
        elif not piece:
            self._remove_piece(number)

    def _join(self, number: int) -> None:
        """Make a piece the beginning of the next one."""
        piece, following = self._pieces[number], self._pieces[number + 1]
        at, place = self._hand
        if at == number:
            self._hand = number + 1, place
        elif at == number + 1:
            self._hand = number + 1, place + len(piece)
        following[:0] = piece
        piece.clear()
        self._remove_piece(number)

    def _remove_piece(self, number: int) -> None:
        """Remove a piece, which is empty, and not the last."""
        del self._pieces[number]
        piece, place = self._hand
        self._hand = piece - (piece > number), place
        self._broom -= self._broom >= number
