"""SIEVE against its description: a queue, a hand, a mark for each key."""

import random

import pytest

from kvd.store import sieve as sieve_module
from kvd.store.heads import Head
from kvd.store.sieve import Marks, Sieve


class Paper:
    """The algorithm as the paper tells it; ``marked`` are places, since two keys may share one here."""

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
    """A store as far as the queue asks, and both queues."""

    def __init__(self) -> None:
        self.heads: dict[str, Head] = {}
        self.marks = Marks()
        self.sieve = Sieve(self.heads.get, self.marks)
        self.paper = Paper(self.marks)

    def add(self, key: str) -> None:
        self.heads[key] = Head(key, b"", 1, None)
        self.sieve.add(key)
        self.paper.queue.append(key)

    def visit(self, key: str) -> None:
        self.marks.set_all([key])
        self.paper.marked.add(hash(key) & self.marks.mask)

    def delete(self, key: str) -> None:
        del self.heads[key]
        self.paper.forget(key)

    def evict(self) -> str | None:
        victim = self.sieve.next_victim()
        assert victim == self.paper.next_victim(self.heads)
        if victim is not None:
            self.delete(victim)
        return victim


@pytest.mark.parametrize("piece_keys", [1, 2, 3, 7, 1024])
@pytest.mark.parametrize("seed", range(20))
def test_it_evicts_what_the_paper_says(piece_keys: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sieve_module, "PIECE_KEYS", piece_keys)
    chosen = random.Random(seed)  # noqa: S311  # to be repeatable
    world, evicted = World(), 0
    for number in range(400):
        act = chosen.random()
        if act < 0.45 or not world.heads:
            # The same key may come again: another object, as in the store.
            key = "".join(["k", str(chosen.randrange(200))])
            if key not in world.heads:
                world.add(key)
        elif act < 0.7:
            world.visit(chosen.choice(list(world.heads)))
        elif act < 0.8:
            world.delete(chosen.choice(list(world.heads)))
        else:
            evicted += world.evict() is not None
        assert len(world.sieve) >= len(world.heads), number
    assert evicted > 10
    left = len(world.heads)
    assert [world.evict() for _ in range(left)].count(None) == 0, "each of them can be evicted"
    assert world.evict() is None


def test_what_is_visited_again_stays_and_a_scan_goes() -> None:
    world = World()
    for number in range(100):
        world.add(f"hot{number}")
        world.visit(f"hot{number}")
    evicted = []
    for number in range(1_000):
        world.add(f"scan{number}")
        evicted.append(world.evict())
        world.visit(f"hot{number % 100}")
    assert sum(key.startswith("hot") for key in evicted if key) < 30, (
        "but for keys that share a mark or were not marked"
    )
    assert sum(f"hot{number}" in world.heads for number in range(100)) > 70


def test_deleting_and_setting_anew_does_not_make_the_queue_longer(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_tombstone_is_passed_over_and_can_come_back() -> None:
    world = World()
    world.add("a")
    world.heads["a"] = Head(world.heads["a"].key, None, 2, None)
    assert world.sieve.next_victim() is None
    world.heads["a"] = Head(world.heads["a"].key, b"again", 3, None)
    assert world.sieve.next_victim() == "a"


def test_marks_grow_with_the_queue() -> None:
    marks = Marks()
    marks.make_room_for(1_000_000)
    assert len(marks.places) >= 4_000_000
    assert marks.mask == len(marks.places) - 1
    marks.make_room_for(10)
    assert len(marks.places) >= 4_000_000
