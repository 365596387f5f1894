"""Whatever changes a key raises the generation of its slot, and in the same step; what does not change it need not."""

import random
from collections.abc import Callable

import pytest

from kvd.engine.database import Database
from kvd.engine.generations import GenerationTable
from kvd.engine.near_cache import NearCaches
from kvd.requests.errors import RequestError
from kvd.server.peers import Peer
from kvd.store.authors import NOBODY
from kvd.store.errors import StoreError
from tests.harness.in_memory import build_database
from tests.harness.scale import TIMES

KEYS = ["a", "b", "c", "d"]
STEPS = 3_000 * TIMES
OWNER = "somebody"


class Watched:
    """A database with a table that is large enough for each key to have a slot of its own."""

    def __init__(self) -> None:
        self.now = 1_000
        self.database = build_database(clock=lambda: self.now, timer=lambda: self.now)
        self.table = GenerationTable(1 << 16)
        assert len({self.table.slots_and_generations([key])[0][0] for key in KEYS}) == len(KEYS)
        self.database.on_change = self.table.bump

    def seen(self) -> dict[str, tuple[int, object]]:
        """Each key's generation, and all that a fetch tells of it."""
        self.database.settle()
        told = self.database.store.fetch(KEYS)
        return {
            key: (self.table.slots_and_generations([key])[0][1], each) for key, each in zip(KEYS, told, strict=True)
        }


Change = Callable[[Database], object]
CHANGES: dict[str, Change] = {
    "set": lambda db: db.set({"a": b"new"}, NOBODY),
    "set a new key": lambda db: db.set({"c": b"new"}, NOBODY),
    "set the same value": lambda db: db.set({"a": b"1"}, NOBODY),
    "set with an end": lambda db: db.set({"a": b"1"}, NOBODY, db.life(5, keep=False, owner=None)),
    "set each": lambda db: db.set_each([{"a": b"2"}, {"b": b"2"}], NOBODY),
    "set each once": lambda db: db.set_each_once(1, [(b"i" * 16, None)], [{"a": b"2"}], NOBODY),
    "set once": lambda db: db.once(1, b"i" * 16, None, lambda: db.set({"a": b"2"}, NOBODY)),
    "delete": lambda db: db.delete(["a"], NOBODY, missing_ok=False),
    "increment": lambda db: db.increment("a", 1, NOBODY),
    "touch": lambda db: db.touch(["a"], 100, NOBODY),
    "commit": lambda db: db.commit({"a": b"2", "b": None}, {}, [], 0, NOBODY),
    "the owner goes": lambda db: db.bury(OWNER, NOBODY),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_raises_what_it_changes_and_nothing_else(change: str) -> None:
    watched = Watched()
    database = watched.database
    database.set({"a": b"1", "b": b"1"}, NOBODY)
    database.set({"d": b"1"}, NOBODY, database.life(None, keep=False, owner=OWNER))
    before = watched.seen()
    CHANGES[change](database)
    after = watched.seen()
    changed = {key for key in KEYS if before[key][1] != after[key][1]}
    raised = {key for key in KEYS if before[key][0] != after[key][0]}
    assert changed
    assert raised == changed
    assert all(after[key][0] > before[key][0] for key in raised)


def test_expiry_raises() -> None:
    watched = Watched()
    watched.database.set({"a": b"1"}, NOBODY, watched.database.life(100, keep=False, owner=None))
    before = watched.seen()
    watched.now += 100
    after = watched.seen()
    assert after["a"][1] == (None, 0, None)
    assert after["a"][0] > before["a"][0]
    assert after["b"] == before["b"]


def test_keys_that_died_with_their_connections_before_the_start_are_raised() -> None:
    watched = Watched()
    database = watched.database
    database.load(["a"], [b"1"], [1], None, ["a"])
    database.end_of_load(1, 1)
    database.end_of_replay(1)
    before = watched.seen()
    database.delete_orphaned_ephemerals()
    after = watched.seen()
    assert after["a"][1] == (None, 0, None)
    assert after["a"][0] > before["a"][0]


def test_the_generation_is_raised_before_the_value_is_there() -> None:
    """So whatever goes wrong in between costs a fetch, and no more."""
    watched = Watched()
    database, raised = watched.database, []
    database.on_change = lambda keys: raised.append([(key, database.store.get(key)) for key in keys])
    database.set({"a": b"1"}, NOBODY)
    database.set_each([{"a": b"2"}], NOBODY)
    database.commit({"a": b"3"}, {}, [], 0, NOBODY)
    database.increment("a", 1, NOBODY)
    database.touch(["a"], 5, NOBODY)
    database.delete(["a"], NOBODY, missing_ok=False)
    assert raised == [[("a", value)] for value in (None, b"1", b"2", b"3", b"4", b"4")]


def random_change(database: Database, some: random.Random) -> None:
    """Anything, to some of the keys."""
    keys = some.sample(KEYS, some.randint(1, 3))
    life = database.life(some.choice([None, 3, 30]), keep=some.random() < 0.3, owner=some.choice([None, OWNER]))
    values = {key: b"%d" % some.randint(0, 3) for key in keys}
    some.choice(
        [
            lambda: database.set(values, NOBODY, life),
            lambda: database.set_each([{key: value} for key, value in values.items()], NOBODY),
            lambda: database.delete(keys, NOBODY, missing_ok=some.random() < 0.7),
            lambda: database.increment(keys[0], 1, NOBODY),
            lambda: database.touch(keys, some.choice([None, 5]), NOBODY),
            lambda: database.commit({**values, keys[0]: None}, {}, [], 0, NOBODY, life),
            lambda: database.once(1, some.randbytes(1) * 16, None, lambda: database.set(values, NOBODY)),
            lambda: database.bury(OWNER, NOBODY),
            lambda: database.tidy(10),
        ]
    )()


def test_a_generation_that_stays_vouches_for_everything() -> None:
    watched, some = Watched(), random.Random(1)  # noqa: S311 - no secret
    before = watched.seen()
    changes = 0
    for _ in range(STEPS):
        watched.now += some.choice([0, 1, 10])
        try:
            random_change(watched.database, some)
        except StoreError:
            pass  # refused, as it may be
        after = watched.seen()
        for key in KEYS:
            changes += before[key][1] != after[key][1]
            assert before[key][0] < after[key][0] or before[key] == after[key]
        before = after
    assert changes > STEPS // 2


# ---------------------------------------------------------------------- who is handed the table


def attach(peer: Peer, before_first: Callable[[], None] | None = lambda: None) -> object:
    near_caches = NearCaches(build_database())
    near_caches.before_first = before_first
    return near_caches.attach(peer)


def test_over_tcp_there_is_no_table() -> None:
    with pytest.raises(RequestError, match="Unix socket"):
        attach(Peer("tcp", None))


def test_behind_the_first_frame_there_is_no_table() -> None:
    peer = Peer("late", 0)
    peer.fresh = False
    with pytest.raises(RequestError, match="first frame"):
        attach(peer)


def test_without_a_fence_there_is_no_table() -> None:
    with pytest.raises(RequestError, match="no near cache"):
        attach(Peer("unfenced", 0), before_first=None)


def test_while_stopping_there_is_no_table() -> None:
    near_caches = NearCaches(build_database())
    near_caches.before_first = lambda: None
    near_caches.close()
    with pytest.raises(RequestError) as refused:
        near_caches.attach(Peer("late", 0))
    assert refused.value.code == "shutting_down"


def test_without_a_table_nothing_is_called() -> None:
    """So as long as nobody attaches, it costs a comparison."""
    near_caches = NearCaches(database := build_database())
    near_caches.before_first = lambda: None
    assert database.on_change is None
    assert near_caches.table is None
