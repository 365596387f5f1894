"""SIEVE against its description: a queue, a hand, a mark for each key."""

import itertools
import random

import pytest

from kvd.store import sieve as sieve_module
from kvd.store.heads import Head
from kvd.store.keyspace import KEY_BYTES
from kvd.store.sieve import Marks, Sieve


class Paper:
    """The algorithm of the paper. ``marked`` holds places of the table, because two keys may share one here."""

    def __init__(self, marks: Marks) -> None:
        self.queue: list[str] = []  # oldest first
        self.hand = 0
        self.marked: set[int] = set()
        self.mask = marks.mask

    def next_victim(self, alive: dict[str, Head]) -> str | None:
        for _ in range(2 * len(self.queue) + 1):
            if self.hand >= len(self.queue):
                self.hand = 0
            if not self.queue:
                return None
            key = self.queue[self.hand]
            self.hand += 1
            if key not in alive:
                continue
            place = hash(key) & self.mask
            if place not in self.marked:
                return key
            self.marked.discard(place)
        return None

    def forget(self, key: str) -> None:
        at = self.queue.index(key)
        del self.queue[at]
        self.hand -= at < self.hand


class World:
    """As much of a store as the queue needs, and both queues."""

    def __init__(self) -> None:
        self.heads: dict[str, Head] = {}
        self.marks = Marks()
        self.forgotten = 0
        self.sieve = Sieve(lambda keys: list(map(self.heads.get, keys)), lambda: self.forgotten, self.marks)
        self.paper = Paper(self.marks)

    def add(self, key: str) -> None:
        self.heads[key] = Head(key, b"", 1, None)
        self.sieve.add_all([key])
        self.paper.queue.append(key)

    def visit(self, key: str) -> None:
        self.marks.set_all([key])
        self.paper.marked.add(hash(key) & self.marks.mask)

    def delete(self, key: str) -> None:
        self._forget(key)
        self.forgotten += 1

    def evict(self) -> str | None:
        return next(iter(self.evict_some(1)), None)

    def evict_some(self, count: int) -> list[str]:
        victims = [head.key for head in self.sieve.take_victims(count, 0, count)]
        for victim in victims:
            assert victim == self.paper.next_victim(self.heads)
            self._forget(victim)
        if len(victims) < count:
            assert self.paper.next_victim(self.heads) is None
        return victims

    def _forget(self, key: str) -> None:
        del self.heads[key]
        self.paper.forget(key)


@pytest.mark.parametrize("piece_keys", [1, 2, 3, 7, 1024])
@pytest.mark.parametrize("seed", range(20))
def test_it_evicts_the_keys_that_the_paper_says(piece_keys: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sieve_module, "PIECE_KEYS", piece_keys)
    chosen = random.Random(seed)  # noqa: S311  # to be repeatable
    world, evicted = World(), 0
    for number in range(400):
        act = chosen.random()
        if act < 0.45 or not world.heads:
            # The same key may be added again as another object, as in the store.
            key = "".join(["k", str(chosen.randrange(200))])
            if key not in world.heads:
                world.add(key)
        elif act < 0.7:
            world.visit(chosen.choice(list(world.heads)))
        elif act < 0.8:
            world.delete(chosen.choice(list(world.heads)))
        else:
            evicted += len(world.evict_some(chosen.randrange(1, 5)))
        assert len(world.sieve) >= len(world.heads), number
        assert len(world.sieve) == sum(map(len, world.sieve._pieces)), number
    assert evicted > 10
    left = len(world.heads)
    assert [world.evict() for _ in range(left)].count(None) == 0, "each of them can be evicted"
    assert world.evict() is None


def keys_without_shared_marks(marks: Marks, *wanted: tuple[str, int]) -> list[list[str]]:
    """Return ``count`` keys for each prefix, no two of which share a mark, whatever the seed of the hashes."""
    places, found = set[int](), []
    for prefix, count in wanted:
        keys: list[str] = []
        for number in itertools.count():
            key = f"{prefix}{number}"
            place = hash(key) & marks.mask
            if place not in places:
                places.add(place)
                keys.append(key)
            if len(keys) == count:
                break
        found.append(keys)
    return found


def test_keys_that_are_visited_again_stay_and_a_scan_goes() -> None:
    """No two keys share a mark here. A key of the scan with the mark of a hot key would stay, and the hand would wrap.

    In the first round some hot keys have not been visited again by then, and almost all of them would be evicted.
    """
    world = World()
    hot, scanned = keys_without_shared_marks(world.marks, ("hot", 100), ("scan", 1_000))
    for key in hot:
        world.add(key)
        world.visit(key)
    evicted = []
    for number, key in enumerate(scanned):
        world.add(key)
        evicted.append(world.evict())
        world.visit(hot[number % 100])
    assert evicted == scanned
    assert all(key in world.heads for key in hot)


def test_deleting_and_setting_a_key_again_does_not_make_the_queue_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sieve_module, "PIECE_KEYS", 16)
    world = World()
    for number in range(50):
        world.add(f"stays{number}")
    for number in range(5_000):
        key = f"comes{number % 10}"
        if key in world.heads:
            world.delete(key)
        world.add("".join([key]))
    assert len(world.sieve) < 4 * 60


def test_no_key_is_searched_for_while_none_was_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sieve_module, "PIECE_KEYS", 16)
    looked_for: list[str] = []
    sieve = Sieve(lambda keys: looked_for.extend(keys) or [None] * len(keys), lambda: 1_000, Marks())
    sieve.add_all([str(number) for number in range(500)])
    assert (len(sieve), looked_for) == (500, [])


def test_a_tombstone_is_skipped_and_its_key_can_be_set_again() -> None:
    world = World()
    world.add("a")
    world.heads["a"] = Head(world.heads["a"].key, None, 2, None)
    assert world.sieve.take_victims(1, 0, 1) == []
    world.heads["a"] = head = Head(world.heads["a"].key, b"again", 3, None)
    assert world.sieve.take_victims(1, 0, 1) == [head]


@pytest.mark.parametrize(("keys", "size", "max_keys", "taken"), [
    (3, 0, 10, 3), (0, 1, 10, 1), (0, KEY_BYTES + 5, 10, 2), (1, KEY_BYTES + 5, 10, 2), (4, 1, 10, 4), (9, 0, 2, 2),
    (0, 10 * KEY_BYTES, 3, 3), (0, 0, 10, 0), (0, -1, 10, 0), (50, 0, 100, 20),
])  # fmt: skip
def test_as_many_keys_and_bytes_are_evicted_as_requested(keys: int, size: int, max_keys: int, taken: int) -> None:
    world = World()
    for number in range(20):
        world.add(f"k{number:03}")  # of four bytes, without a value
    assert [head.key for head in world.sieve.take_victims(keys, size, max_keys)] == [f"k{n:03}" for n in range(taken)]
    assert len(world.sieve) == 20 - taken


def test_the_keys_that_the_hand_has_passed_are_kept_in_few_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sieve_module, "PIECE_KEYS", 16)
    world = World()
    for number in range(2_000):
        world.add(f"k{number}")
        if number % 16 == 0:
            world.visit(f"k{number}")
    left = len(world.evict_some(1_700))
    assert left == 1_700
    assert len(world.sieve._pieces) < 60


def test_marks_grow_with_the_queue() -> None:
    marks = Marks()
    marks.make_room_for(1_000_000)
    assert len(marks.places) >= 4_000_000
    assert marks.mask == len(marks.places) - 1
    marks.make_room_for(10)
    assert len(marks.places) >= 4_000_000
