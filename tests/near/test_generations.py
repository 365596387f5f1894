"""Each change of a key bumps the generation of its slot, in the same step."""

import random
from collections.abc import Callable

import pytest

from kvd.engine.database import Database
from kvd.engine.errors import EngineError
from kvd.engine.near_cache import NearCaches
from kvd.engine.replay import Replay
from kvd.requests.peer import Peer
from kvd.store.authors import NO_AUTHOR
from kvd.store.errors import StoreError
from tests.harness.in_memory import InMemoryClient, build, build_database, refuse_leases
from tests.harness.scale import TIMES

KEYS = ["a", "b", "c", "d"]
STEPS = 3_000 * TIMES
OWNER = "an owner"


class Watched:
    """A database with a table that is large enough for each key to have a slot of its own."""

    def __init__(self, contents: Replay | None = None) -> None:
        self.now = 1_000
        contents = Replay(clock=lambda: self.now, timer=lambda: self.now) if contents is None else contents
        self.database = Database(contents=contents)
        self.table = self.database.generations.create(1 << 16, notes_changes=True)
        assert len({self.table.slots_and_generations([key])[0][0] for key in KEYS}) == len(KEYS)

    def seen(self) -> dict[str, tuple[int, object]]:
        """Return each key's generation, and all that a fetch returns of it."""
        self.database.expire_all_due()
        entries = self.database.store.fetch(KEYS)
        return {
            key: (self.table.slots_and_generations([key])[0][1], each) for key, each in zip(KEYS, entries, strict=True)
        }


Change = Callable[[Database], object]
CHANGES: dict[str, Change] = {
    "set": lambda db: db.set({"a": b"new"}, NO_AUTHOR),
    "set a new key": lambda db: db.set({"c": b"new"}, NO_AUTHOR),
    "set the same value": lambda db: db.set({"a": b"1"}, NO_AUTHOR),
    "set with an end": lambda db: db.set({"a": b"1"}, NO_AUTHOR, db.expiry(5, keep=False, owner=None)),
    "set each": lambda db: db.set_each([{"a": b"2"}, {"b": b"2"}], NO_AUTHOR),
    "set each once": lambda db: db.set_each_once(1, [(b"i" * 16, None)], [{"a": b"2"}], NO_AUTHOR),
    "set once": lambda db: db.run_once(1, b"i" * 16, None, lambda: db.set({"a": b"2"}, NO_AUTHOR)),
    "delete": lambda db: db.delete(["a"], NO_AUTHOR, missing_ok=False),
    "increment": lambda db: db.increment("a", 1, NO_AUTHOR),
    "touch": lambda db: db.touch(["a"], 100, NO_AUTHOR),
    "commit": lambda db: db.commit({"a": b"2", "b": None}, {}, [], 0, NO_AUTHOR),
    "the owner goes": lambda db: db.delete_owned(OWNER, NO_AUTHOR),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_bumps_the_generations_of_exactly_the_changed_keys(change: str) -> None:
    watched = Watched()
    database = watched.database
    database.set({"a": b"1", "b": b"1"}, NO_AUTHOR)
    database.set({"d": b"1"}, NO_AUTHOR, database.expiry(None, keep=False, owner=OWNER))
    before = watched.seen()
    CHANGES[change](database)
    after = watched.seen()
    changed = {key for key in KEYS if before[key][1] != after[key][1]}
    bumped = {key for key in KEYS if before[key][0] != after[key][0]}
    assert changed
    assert bumped == changed
    assert all(after[key][0] > before[key][0] for key in bumped)


def test_expiry_bumps_the_generation() -> None:
    watched = Watched()
    watched.database.set({"a": b"1"}, NO_AUTHOR, watched.database.expiry(100, keep=False, owner=None))
    before = watched.seen()
    watched.now += 100
    after = watched.seen()
    assert after["a"][1] == (None, 0, None)
    assert after["a"][0] > before["a"][0]
    assert after["b"] == before["b"]


def test_orphaned_ephemeral_keys_are_bumped_at_the_start() -> None:
    contents = Replay(clock=lambda: 1_000, timer=lambda: 1_000)
    contents.load(["a"], [b"1"], [1], None, ["a"])
    contents.end_of_load(1, 1)
    contents.end_of_replay(1)
    watched = Watched(contents)
    database = watched.database
    before = watched.seen()
    database.delete_orphaned_ephemerals()
    after = watched.seen()
    assert after["a"][1] == (None, 0, None)
    assert after["a"][0] > before["a"][0]


def test_the_generation_is_bumped_before_the_value_changes() -> None:
    """So a failure in between costs a fetch, and no more."""
    watched = Watched()
    database, bumped = watched.database, []
    watched.table.bump = lambda keys: bumped.append(  # type: ignore[method-assign]
        [(key, database.store.get(key)) for key in keys]
    )
    database.set({"a": b"1"}, NO_AUTHOR)
    database.set_each([{"a": b"2"}], NO_AUTHOR)
    database.commit({"a": b"3"}, {}, [], 0, NO_AUTHOR)
    database.increment("a", 1, NO_AUTHOR)
    database.touch(["a"], 5, NO_AUTHOR)
    database.delete(["a"], NO_AUTHOR, missing_ok=False)
    assert bumped == [[("a", value)] for value in (None, b"1", b"2", b"3", b"4", b"4")]


def random_change(database: Database, some: random.Random) -> None:
    """Make a random change to some of the keys."""
    keys = some.sample(KEYS, some.randint(1, 3))
    life = database.expiry(some.choice([None, 3, 30]), keep=some.random() < 0.3, owner=some.choice([None, OWNER]))
    values = {key: b"%d" % some.randint(0, 3) for key in keys}
    some.choice(
        [
            lambda: database.set(values, NO_AUTHOR, life),
            lambda: database.set_each([{key: value} for key, value in values.items()], NO_AUTHOR),
            lambda: database.delete(keys, NO_AUTHOR, missing_ok=some.random() < 0.7),
            lambda: database.increment(keys[0], 1, NO_AUTHOR),
            lambda: database.touch(keys, some.choice([None, 5]), NO_AUTHOR),
            lambda: database.commit({**values, keys[0]: None}, {}, [], 0, NO_AUTHOR, life),
            lambda: database.run_once(1, some.randbytes(1) * 16, None, lambda: database.set(values, NO_AUTHOR)),
            lambda: database.delete_owned(OWNER, NO_AUTHOR),
            lambda: database.upkeep.drop_old(10),
        ]
    )()


def test_an_unchanged_generation_means_an_unchanged_entry() -> None:
    watched, some = Watched(), random.Random(1)  # noqa: S311 - no secret
    before = watched.seen()
    changes = 0
    for _ in range(STEPS):
        watched.now += some.choice([0, 1, 10])
        try:
            random_change(watched.database, some)
        except StoreError:
            pass  # some changes are refused
        after = watched.seen()
        for key in KEYS:
            changes += before[key][1] != after[key][1]
            assert before[key][0] < after[key][0] or before[key] == after[key]
        before = after
    assert changes > STEPS // 2


# ---------------------------------------------------------------------- which connections get the table


def near_caches_of(database: Database, begin_leases: Callable[[], None] = lambda: None) -> NearCaches:
    return NearCaches(database.generations, database.scheduler, begin_leases, notes_changes=True)


def attach(peer: Peer) -> str:
    """Return the reply to a peer that attaches, in words."""
    return str(InMemoryClient(build(), peer).ask("attach"))


def test_over_tcp_there_is_no_table() -> None:
    peer = Peer("tcp", None)
    peer.is_authenticated = True
    assert "Unix socket" in attach(peer)


def test_after_the_first_frame_there_is_no_table() -> None:
    peer = Peer("late", 0)
    peer.is_first_frame = False
    assert "first frame" in attach(peer)


def test_without_a_fence_there_is_no_table() -> None:
    with pytest.raises(EngineError, match="no near cache"):
        near_caches_of(build_database(), refuse_leases).attach("unfenced")


def test_while_stopping_there_is_no_table() -> None:
    near_caches = near_caches_of(build_database())
    near_caches.close()
    with pytest.raises(EngineError) as refused:
        near_caches.attach("late")
    assert refused.value.code == "shutting_down"


def test_without_a_table_nothing_is_called() -> None:
    """So a daemon without attached clients pays a comparison only."""
    near_caches = near_caches_of(database := build_database())
    assert database.generations.table is None
    assert near_caches.table_bytes == 0
