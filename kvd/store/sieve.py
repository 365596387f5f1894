"""Which key to evict when memory is short: SIEVE.

Yazhuo Zhang, Juncheng Yang, Yao Yue, Ymir Vigfusson, K. V. Rashmi: "SIEVE is Simpler than LRU: an Efficient Turn-Key
Eviction Algorithm for Web Caches", NSDI 2024. Keys stand in a queue in the order in which they were added, and never
move. A hand passes over them from the oldest to the newest, and starts again. A key that was visited since the last
pass loses its mark and stays; any other key is evicted.

        oldest  a  b* c* d  e* f  newest          * visited
                      hand ─▶                     c loses its mark, d goes

A hit only sets a mark, so it costs almost nothing. And keys that are read only once (a scan) go before keys that are
read again.

A key is marked by each later write of it, and by a read that finds it. A key that was missed and then set begins
unmarked, and so does a key that was evicted and is set again.

Two deviations from the paper. The marks are a table of bytes, indexed by the hash of the key, instead of a bit in each
key: two keys with one place share a mark, so now and then a key stays that could have gone. And the queue is in pieces:
a victim is removed from a short list, and keys that left in other ways (deleted, expired) are swept out piece by piece.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import TypeVar

from kvd.store.heads import Head
from kvd.store.keyspace import KEY_BYTES as STORED_KEY_BYTES

PIECE_KEYS = 1_024
# The table has at least this number of places for each key.
PLACES_PER_KEY = 8
_MIN_PLACES = 1 << 18
STRIDE = 4
# The queue is swept once the store may have forgotten one in this number of its keys.
_STALE_PART = 4
# The hand passes over at least this number of keys in one step, because most of them may be marked.
_STEP_KEYS = 8
Read = TypeVar("Read")
# What a key costs here: its place in the queue, and its marks, whose table doubles in one step.
KEY_BYTES = 8 + 2 * PLACES_PER_KEY


class Marks:
    """Which keys were visited, approximately. The hot path sets ``places[hash(key) & mask]`` itself."""

    __slots__ = ("_phase", "mask", "places")

    def __init__(self) -> None:
        self._phase = 0
        self.places = bytearray(_MIN_PLACES)
        self.mask = _MIN_PLACES - 1

    def make_room_for(self, keys: int) -> None:
        """Provide places for ``keys`` keys. If the table has to grow, all keys become unmarked."""
        if keys * PLACES_PER_KEY > len(self.places):
            size = 1 << (keys * PLACES_PER_KEY - 1).bit_length()
            # In this order, because a reader between the two lines must not reach beyond the end.
            self.places = bytearray(size)
            self.mask = size - 1

    def sample(self, read: Sequence[Read]) -> Sequence[Read]:
        """Return the part of ``read`` to mark: one in STRIDE, another part each time.

        Marking all of them would cost a quarter more. A key in use is read again and again, so it is marked soon
        enough.
        """
        if len(read) < STRIDE:
            return read
        self._phase = (self._phase + 1) % STRIDE
        return read[self._phase :: STRIDE]

    def set_all(self, keys: Iterable[str]) -> None:
        """Mark all of ``keys``."""
        places, mask = self.places, self.mask
        for key in keys:
            places[hash(key) & mask] = 1

    def set_found(self, keys: Sequence[str], values: Sequence[object]) -> None:
        """Mark a sample of ``keys``, which were read together; a key whose value is None was missed."""
        if all(values):  # quicker than searching for None
            self.set_all(self.sample(keys))
        else:
            sample = self.sample(list(zip(keys, values, strict=True)))
            self.set_all([key for key, value in sample if value is not None])


class Sieve:
    """The queue of the keys that may be evicted.

    ``find_all`` returns the current heads of keys, and ``forgotten`` the number of keys that the store has forgotten so
    far without their having been evicted.
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
        self._broom = -1  # the next piece to sweep, from the last to the first; -1 between rounds
        self._swept_for = forgotten()  # the number of forgotten keys when the last round of sweeping began

    def __len__(self) -> int:
        """The number of keys in the queue. At most half of them are no longer in the store."""
        return self._keys

    def add_all(self, keys: Sequence[str]) -> None:
        """Add new keys, in this order. They must be the same objects as the keys of their heads."""
        begin = 0
        while begin < len(keys):
            if len(self._pieces[-1]) >= PIECE_KEYS:
                self._begin_piece()
            last = self._pieces[-1]
            part = keys[begin : begin + PIECE_KEYS - len(last)]
            last.extend(part)
            self._keys += len(part)
            begin += len(part)

    def take_victims(self, keys: int, size: int, max_keys: int) -> list[Head]:
        """Remove and return the next victims: at least ``keys`` keys and ``size`` bytes, but at most ``max_keys`` keys.

        Fewer if the queue has no more. The caller must delete them at once. A key may be among them twice, if it was
        deleted and set again.
        """
        victims: list[Head] = []
        ends = 3  # the hand sees each key twice: with its mark, and without
        while ends and len(victims) < max_keys and (len(victims) < keys or size > 0):
            number, place = self._hand
            # No more than can be needed, because each key takes at least STORED_KEY_BYTES.
            needed = max(keys - len(victims), size // STORED_KEY_BYTES + 1, _STEP_KEYS)
            step = self._pieces[number][place : place + min(needed, max_keys - len(victims))]
            if step:
                chosen, size = self._pass_over(step, keys - len(victims), size)
                victims += chosen
            else:
                ends -= number == len(self._pieces) - 1
                self._enter_next_piece()
        return victims

    def _pass_over(self, step: list[str], keys: int, size: int) -> tuple[list[Head], int]:
        """Let the hand pass over the keys of ``step`` until there are enough victims.

        Return the victims, and how many bytes are still missing.
        """
        places, mask = self._marks.places, self._marks.mask
        victims, staying, unknown = list[Head](), list[str](), 0
        for key, head in zip(step, self._find_all(step), strict=True):
            if head is None or head.key is not key:
                unknown += 1  # if the same key was set again, it stands later in the queue
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
        removed = len(victims) + unknown
        self._pieces[number][place : place + len(staying) + removed] = staying
        self._hand = number, place + len(staying)
        self._keys -= removed
        return victims, size

    def _enter_next_piece(self) -> None:
        """Move the hand from the end of a piece to the next piece, or back to the first one."""
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
        """Begin a piece, because the last one is full; and sweep others if that is due."""
        self._pieces.append([])
        stale = self._forgotten() - self._swept_for
        if self._broom < 0 and stale > self._keys // _STALE_PART:
            self._swept_for += stale
            self._broom = len(self._pieces) - 2
        # Sweep two pieces for each new one, so that a round ends before the queue has grown by half.
        for _ in range(2):
            if self._broom >= 0:
                self._sweep()
        self._marks.make_room_for(self._keys)

    def _sweep(self) -> None:
        """Sweep the next piece: remove the keys that the store has forgotten."""
        number = self._broom
        self._broom -= 1
        piece = self._pieces[number]
        heads = self._find_all(piece)
        # A key that was forgotten and set again may be the same object, because decoders cache short keys: its last
        # place counts.
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
        """Prepend a piece to the next one."""
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
        """Remove a piece, which must be empty and not the last."""
        del self._pieces[number]
        piece, place = self._hand
        self._hand = piece - (piece > number), place
        self._broom -= self._broom >= number
