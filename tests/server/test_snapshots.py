"""The snapshots of connections: how many, for how long without a read, and that every pin is released."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvd.engine.errors import EngineError
from kvd.engine.snapshots import RELEASED, Snapshots
from kvd.requests.peer import Peer
from kvd.store.errors import SnapshotGone
from kvd.store.store import Store
from kvd.store.window import WindowLimits
from tests.harness.clocks import ManualClock, ManualScheduler

IDLE_US = 100
MANY = 1_000


class Pinned:
    """A store that keeps no history except pinned versions, and its snapshots."""

    def __init__(self) -> None:
        self.store = Store(WindowLimits(max_commits=0))
        self.clock = ManualClock()
        self.scheduler = ManualScheduler()
        self.snapshots = Snapshots(self.store, self.clock, self.scheduler, IDLE_US)

    def write(self) -> int:
        """Make a commit, and prune all that can be pruned."""
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
def pinned() -> Pinned:
    return Pinned()


def peer() -> Peer:
    return Peer("test", 0)


def test_a_snapshot_stays_readable_until_it_is_ended(pinned: Pinned) -> None:
    one = peer()
    pinned.write()
    snapshot = pinned.snapshots.begin(one, MANY)
    assert snapshot == pinned.store.version
    pinned.write()
    assert pinned.is_readable(snapshot)
    assert pinned.snapshots.end(one, snapshot)
    pinned.write()
    assert not pinned.is_readable(snapshot)


def test_each_begin_needs_its_end(pinned: Pinned) -> None:
    one = peer()
    first, second = pinned.snapshots.begin(one, MANY), pinned.snapshots.begin(one, MANY)
    assert first == second
    pinned.write()
    assert pinned.snapshots.end(one, first)
    pinned.write()
    assert pinned.is_readable(first), "the second begin still holds it"
    assert pinned.snapshots.end(one, first)
    assert not pinned.snapshots.end(one, first)
    pinned.write()
    assert not pinned.is_readable(first)


def test_only_the_connection_that_holds_a_snapshot_can_end_it(pinned: Pinned) -> None:
    one, other = peer(), peer()
    snapshot = pinned.snapshots.begin(one, MANY)
    assert not pinned.snapshots.end(other, snapshot)
    pinned.write()
    assert pinned.is_readable(snapshot)
    assert not pinned.snapshots.end(one, snapshot + 1)


@pytest.mark.parametrize("changes", [False, True], ids=["of one version", "of different versions"])
def test_the_snapshots_of_a_connection_are_limited(pinned: Pinned, changes: bool) -> None:
    one, other = peer(), peer()
    held = []
    for _ in range(3):
        held.append(pinned.snapshots.begin(one, 3))
        if changes:
            pinned.write()
    with pytest.raises(EngineError) as error:
        pinned.snapshots.begin(one, 3)
    assert (error.value.code, len(pinned.snapshots)) == ("too_large", 3)
    assert pinned.snapshots.begin(other, 3) == pinned.store.version, "each connection has its own"
    assert pinned.snapshots.end(one, held[1])
    pinned.snapshots.begin(one, 3)


def test_with_a_limit_of_zero_an_attempt_leaves_nothing(pinned: Pinned) -> None:
    one = peer()
    with pytest.raises(EngineError):
        pinned.snapshots.begin(one, 0)
    assert len(pinned.snapshots) == 0
    assert not pinned.scheduler.calls
    assert not pinned.snapshots.release_idle(IDLE_US), "there is no snapshot to release later"


def test_a_closed_connection_holds_no_snapshots(pinned: Pinned) -> None:
    one, other = peer(), peer()
    snapshot = pinned.snapshots.begin(one, MANY)
    pinned.snapshots.begin(one, MANY)
    kept = pinned.snapshots.begin(other, MANY)
    pinned.write()
    later = pinned.snapshots.begin(one, MANY)
    pinned.snapshots.release(one)
    pinned.snapshots.release(one)
    assert len(pinned.snapshots) == 1
    pinned.write()
    assert pinned.is_readable(kept)
    pinned.snapshots.release(other)
    pinned.write()
    assert not pinned.is_readable(snapshot)
    assert not pinned.is_readable(later)


def test_an_idle_snapshot_is_released_and_one_that_is_read_is_not(pinned: Pinned) -> None:
    one = peer()
    idle = pinned.snapshots.begin(one, MANY)
    pinned.write()
    used = pinned.snapshots.begin(one, MANY)
    pinned.clock.now = IDLE_US - 1
    assert pinned.snapshots.release_idle(IDLE_US)
    assert len(pinned.snapshots) == 2, "a microsecond is left"
    pinned.snapshots.used(one, used)
    pinned.snapshots.used(one, 10**9)
    pinned.clock.now = IDLE_US
    assert pinned.snapshots.release_idle(IDLE_US), "one is left"
    pinned.write()
    assert (pinned.is_readable(idle), pinned.is_readable(used)) == (False, True)
    assert not pinned.snapshots.end(one, idle), "the connection no longer holds it"
    pinned.clock.now = 2 * IDLE_US
    assert not pinned.snapshots.release_idle(IDLE_US), "none is left"


def test_another_begin_of_the_same_version_counts_as_a_use(pinned: Pinned) -> None:
    one = peer()
    snapshot = pinned.snapshots.begin(one, MANY)
    pinned.clock.now = IDLE_US - 1
    assert pinned.snapshots.begin(one, MANY) == snapshot
    pinned.clock.now = IDLE_US
    assert pinned.snapshots.release_idle(IDLE_US)
    assert len(pinned.snapshots) == 2


def test_the_first_snapshot_schedules_one_release_timer(pinned: Pinned) -> None:
    one = peer()
    pinned.snapshots.begin(one, MANY)
    pinned.snapshots.begin(one, MANY)
    assert len(pinned.scheduler.calls) == 1


steps = st.lists(
    st.tuples(st.sampled_from(["begin", "end", "used", "release", "tick", "release idle", "write"]), st.integers(0, 2))
)


@given(steps)
def test_a_connection_holds_the_snapshots_that_are_neither_ended_nor_idle(sequence: list[tuple[str, int]]) -> None:
    pinned, peers = Pinned(), [peer() for _ in range(3)]
    held: dict[tuple[int, int], list[int]] = {}  # (peer, version) → [number of begins, time of last use]
    begun = [0, 0, 0]  # each peer's newest snapshot
    for step, number in sequence:
        one = peers[number]
        last = begun[number]
        if step == "begin":
            if sum(count for (owner, _), (count, _) in held.items() if owner == number) >= 3:
                with pytest.raises(EngineError):
                    pinned.snapshots.begin(one, 3)
            else:
                begun[number] = pinned.snapshots.begin(one, 3)
                entry = held.setdefault((number, begun[number]), [0, 0])
                entry[:] = entry[0] + 1, pinned.clock.now
        elif step == "end":
            assert pinned.snapshots.end(one, last) == ((number, last) in held)
            if (number, last) in held:
                held[number, last][0] -= 1
                held = {key: entry for key, entry in held.items() if entry[0]}
        elif step == "used":
            pinned.snapshots.used(one, last)
            if (number, last) in held:
                held[number, last][1] = pinned.clock.now
        elif step == "release":
            pinned.snapshots.release(one)
            held = {key: entry for key, entry in held.items() if key[0] != number}
        elif step == "tick":
            pinned.clock.now += IDLE_US // 2
        elif step == "release idle":
            held = {key: entry for key, entry in held.items() if entry[1] > pinned.clock.now - IDLE_US}
            assert pinned.snapshots.release_idle(IDLE_US) == bool(held)
        else:
            pinned.write()
        counts = Counter({key: entry[0] for key, entry in held.items()})
        assert len(pinned.snapshots) == counts.total()
        assert all(pinned.is_readable(version) for _, version in held)
    for one in peers:
        pinned.snapshots.release(one)
    pinned.write()
    pinned.write()
    assert pinned.store.window.oldest_readable == pinned.store.version, "no version is pinned any more"


def test_one_look_releases_a_bounded_number_of_idle_snapshots_and_the_next_look_follows_at_once(pinned: Pinned) -> None:
    one = peer()
    for _ in range(RELEASED + 5):
        pinned.write()
        pinned.snapshots.begin(one, 2 * RELEASED)
    pinned.clock.now = IDLE_US
    pinned.scheduler.calls.pop().run()
    assert len(pinned.snapshots) == 5
    assert pinned.scheduler.calls[-1].delay_s == 0
    pinned.scheduler.calls.pop().run()
    assert len(pinned.snapshots) == 0
    assert not pinned.scheduler.calls, "while nothing is held, no timer runs"
