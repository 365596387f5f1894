"""Who holds which snapshots: how many, for how long without reading, and that every pin is given back."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvd.engine.errors import EngineError
from kvd.engine.snapshots import Snapshots
from kvd.server.peers import Peer
from kvd.store.errors import SnapshotGone
from kvd.store.store import Store
from kvd.store.window import WindowLimits
from tests.engine.schedulers import ListScheduler

IDLE_US = 100
MANY = 1_000


class Clock:
    """A timer that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class House:
    """A store that keeps no history but what is pinned, and its snapshots."""

    def __init__(self) -> None:
        self.store = Store(WindowLimits(max_commits=0))
        self.clock = Clock()
        self.scheduler = ListScheduler()
        self.snapshots = Snapshots(self.store, self.clock, self.scheduler, IDLE_US)

    def write(self) -> int:
        """A commit, and all the pruning that can be done."""
        version = self.store.set({"a": b"x"})
        self.store.drop_history(10**6)
        return version

    def is_readable(self, version: int) -> bool:
        try:
            self.store.check_readable(version)
        except SnapshotGone:
            return False
        return True


@pytest.fixture
def house() -> House:
    return House()


def peer() -> Peer:
    return Peer("test", 0)


def test_a_snapshot_stays_readable_until_it_is_ended(house: House) -> None:
    one = peer()
    house.write()
    snapshot = house.snapshots.begin(one, MANY)
    assert snapshot == house.store.version
    house.write()
    assert house.is_readable(snapshot)
    assert house.snapshots.end(one, snapshot)
    house.write()
    assert not house.is_readable(snapshot)


def test_each_begin_needs_its_end(house: House) -> None:
    one = peer()
    first, second = house.snapshots.begin(one, MANY), house.snapshots.begin(one, MANY)
    assert first == second
    house.write()
    assert house.snapshots.end(one, first)
    house.write()
    assert house.is_readable(first), "it is held once more"
    assert house.snapshots.end(one, first)
    assert not house.snapshots.end(one, first)
    house.write()
    assert not house.is_readable(first)


def test_who_does_not_hold_a_snapshot_cannot_end_it(house: House) -> None:
    one, other = peer(), peer()
    snapshot = house.snapshots.begin(one, MANY)
    assert not house.snapshots.end(other, snapshot)
    house.write()
    assert house.is_readable(snapshot)
    assert not house.snapshots.end(one, snapshot + 1)


@pytest.mark.parametrize("changes", [False, True], ids=["of one version", "of different versions"])
def test_a_connection_holds_at_most_so_many(house: House, changes: bool) -> None:
    one, other = peer(), peer()
    held = []
    for _ in range(3):
        held.append(house.snapshots.begin(one, 3))
        if changes:
            house.write()
    with pytest.raises(EngineError) as refused:
        house.snapshots.begin(one, 3)
    assert (refused.value.code, len(house.snapshots)) == ("too_large", 3)
    assert house.snapshots.begin(other, 3) == house.store.version, "each connection has its own"
    assert house.snapshots.end(one, held[1])
    house.snapshots.begin(one, 3)


def test_none_at_all_may_be_held_and_nothing_is_left_of_the_attempt(house: House) -> None:
    one = peer()
    with pytest.raises(EngineError):
        house.snapshots.begin(one, 0)
    assert len(house.snapshots) == 0
    assert not house.scheduler.calls
    assert not house.snapshots.release_idle(IDLE_US), "there is nothing that could be let go later"


def test_who_has_gone_holds_nothing(house: House) -> None:
    one, other = peer(), peer()
    snapshot = house.snapshots.begin(one, MANY)
    house.snapshots.begin(one, MANY)
    kept = house.snapshots.begin(other, MANY)
    house.write()
    later = house.snapshots.begin(one, MANY)
    house.snapshots.release(one)
    house.snapshots.release(one)
    assert len(house.snapshots) == 1
    house.write()
    assert house.is_readable(kept)
    house.snapshots.release(other)
    house.write()
    assert not house.is_readable(snapshot)
    assert not house.is_readable(later)


def test_one_that_nobody_reads_at_is_let_go_and_one_that_is_read_is_not(house: House) -> None:
    one = peer()
    idle = house.snapshots.begin(one, MANY)
    house.write()
    used = house.snapshots.begin(one, MANY)
    house.clock.now = IDLE_US - 1
    assert house.snapshots.release_idle(IDLE_US)
    assert len(house.snapshots) == 2, "a microsecond is left"
    house.snapshots.used(one, used)
    house.snapshots.used(one, 10**9)
    house.clock.now = IDLE_US
    assert house.snapshots.release_idle(IDLE_US), "one is left"
    house.write()
    assert (house.is_readable(idle), house.is_readable(used)) == (False, True)
    assert not house.snapshots.end(one, idle), "it does not hold it any more"
    house.clock.now = 2 * IDLE_US
    assert not house.snapshots.release_idle(IDLE_US), "none is left"


def test_another_begin_of_the_same_version_is_a_use_of_it(house: House) -> None:
    one = peer()
    snapshot = house.snapshots.begin(one, MANY)
    house.clock.now = IDLE_US - 1
    assert house.snapshots.begin(one, MANY) == snapshot
    house.clock.now = IDLE_US
    assert house.snapshots.release_idle(IDLE_US)
    assert len(house.snapshots) == 2


def test_the_first_one_wakes_whoever_lets_go_once(house: House) -> None:
    one = peer()
    house.snapshots.begin(one, MANY)
    house.snapshots.begin(one, MANY)
    assert len(house.scheduler.calls) == 1


steps = st.lists(
    st.tuples(st.sampled_from(["begin", "end", "used", "release", "tick", "let go", "write"]), st.integers(0, 2))
)


@given(steps)
def test_what_is_held_is_what_was_begun_and_neither_ended_nor_idle(sequence: list[tuple[str, int]]) -> None:
    house, peers = House(), [peer() for _ in range(3)]
    held: dict[tuple[int, int], list[int]] = {}  # (peer, version) → [how often, used at]
    begun = [0, 0, 0]  # the version that each began last
    for step, who in sequence:
        one = peers[who]
        last = begun[who]
        if step == "begin":
            if sum(count for (whose, _), (count, _) in held.items() if whose == who) >= 3:
                with pytest.raises(EngineError):
                    house.snapshots.begin(one, 3)
            else:
                begun[who] = house.snapshots.begin(one, 3)
                entry = held.setdefault((who, begun[who]), [0, 0])
                entry[:] = entry[0] + 1, house.clock.now
        elif step == "end":
            assert house.snapshots.end(one, last) == ((who, last) in held)
            if (who, last) in held:
                held[who, last][0] -= 1
                held = {key: entry for key, entry in held.items() if entry[0]}
        elif step == "used":
            house.snapshots.used(one, last)
            if (who, last) in held:
                held[who, last][1] = house.clock.now
        elif step == "release":
            house.snapshots.release(one)
            held = {key: entry for key, entry in held.items() if key[0] != who}
        elif step == "tick":
            house.clock.now += IDLE_US // 2
        elif step == "let go":
            held = {key: entry for key, entry in held.items() if entry[1] > house.clock.now - IDLE_US}
            assert house.snapshots.release_idle(IDLE_US) == bool(held)
        else:
            house.write()
        counts = Counter({key: entry[0] for key, entry in held.items()})
        assert len(house.snapshots) == counts.total()
        assert all(house.is_readable(version) for _, version in held)
    for one in peers:
        house.snapshots.release(one)
    house.write()
    house.write()
    assert house.store.window.oldest_readable == house.store.version, "nothing is pinned any more"
