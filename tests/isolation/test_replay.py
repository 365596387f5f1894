"""The replay itself: small bad histories by name, and faults planted in good ones of a simulated store."""

import random
from collections.abc import Callable, Sequence

import pytest

from tests.isolation.records import Identity, Item, Txn, Value, mark, marker
from tests.isolation.replay import State, Truth, acknowledged, apply, compare_conflicts, compare_outcomes, replay

GOOD_TRANSACTIONS = 400
SEEDS = 20
STEP = 10  # from one version to the next: there is room for a planted one
A, B = b"1.0", b"2.0"


def txn(
    process: int,
    start: int,
    end: int | None,
    snapshot: int | None,
    version: int | None = None,
    reads: dict[str, tuple[Value, int]] | None = None,
    ranges: Sequence[tuple[str, str, list[Item]]] = (),
    writes: dict[str, Value] | None = None,
    *,
    ok: bool | None = True,
) -> Txn:
    """The first transaction of a process."""
    return Txn(process, 0, start, end, ok, snapshot, version, reads or {}, list(ranges), writes or {})


def named(*history: Txn, versions: dict[Identity, int] | None = None) -> set[str]:
    return replay(history, acknowledged(history) if versions is None else versions).names


# ---------------------------------------------------------------------- by name

WRITER = txn(1, 0, 1, None, 1, writes={"x": A})


def test_a_read_of_what_was_there_is_good() -> None:
    assert named(WRITER, txn(2, 2, 3, 1, None, {"x": (A, 1), "y": (None, 0)}, [("a", "z", [("x", A, 1)])])) == set()


def test_a_read_of_another_value_or_version_than_was_there_is_torn() -> None:
    assert named(WRITER, txn(2, 2, 3, 1, None, {"x": (A, 2)})) == {"torn snapshot"}
    assert named(WRITER, txn(2, 2, 3, 1, None, {"x": (None, 0)})) == {"torn snapshot"}
    assert named(WRITER, txn(2, 0, 3, 0, None, {"x": (A, 1)})) == {"torn snapshot"}


def test_a_range_with_a_key_too_many_or_too_few_is_torn() -> None:
    assert named(WRITER, txn(2, 2, 3, 1, None, ranges=[("a", "z", [])])) == {"torn snapshot"}
    assert named(WRITER, txn(2, 0, 3, 0, None, ranges=[("a", "z", [("x", A, 1)])])) == {"torn snapshot"}


def test_what_a_refused_transaction_saw_counts_too() -> None:
    assert named(WRITER, txn(2, 2, 3, 1, None, {"x": (None, 0)}, writes={"y": B}, ok=False)) == {"torn snapshot"}


def test_a_commit_whose_reads_had_changed_is_not_serializable() -> None:
    lost_update = txn(2, 0, 3, 0, 2, {"x": (None, 0)}, writes={"x": B})
    phantom = txn(2, 0, 3, 0, 2, ranges=[("a", "z", [])], writes={"y": B})
    assert named(WRITER, lost_update) == named(WRITER, phantom) == {"not serializable"}


def test_who_does_not_see_what_was_acknowledged_before_is_stale() -> None:
    assert named(WRITER, txn(2, 2, 3, 0, None, {"x": (None, 0)})) == {"stale"}
    assert named(WRITER, txn(2, 1, 3, 0, None, {"x": (None, 0)})) == set(), "it need not, if it began before"


def test_two_readers_that_see_time_go_back_are_stale() -> None:
    slow = txn(1, 0, 90, None, 1, writes={"x": A})
    assert named(slow, txn(2, 1, 2, 1), txn(3, 3, 4, 0)) == {"stale"}


def test_a_blind_write_below_what_was_acknowledged_is_stale() -> None:
    assert named(txn(1, 0, 1, None, 2, writes={"x": A}), txn(2, 2, 3, None, 1, writes={"x": B})) == {"stale"}


def test_a_commit_below_its_snapshot_is_in_the_future() -> None:
    assert "future" in named(WRITER, txn(2, 0, 9, 3, 2, writes={"y": B}))


def test_one_version_for_two_commits_is_found() -> None:
    assert named(WRITER, txn(2, 0, 1, None, 1, writes={"y": B})) == {"version twice"}


def test_outcomes_are_compared_with_what_the_daemon_tells() -> None:
    refused, unknown = txn(2, 0, 1, 0, writes={"x": B}, ok=False), txn(3, 0, None, 0, writes={"x": B}, ok=None)

    def outcomes(history: list[Txn], told: dict[Identity, list[int]]) -> set[str]:
        return compare_outcomes(history, told).names

    assert outcomes([WRITER, refused, unknown], {(1, 0): [1]}) == set()
    assert outcomes([WRITER, refused, unknown], {(1, 0): [1], (3, 0): [2]}) == set()
    assert outcomes([WRITER], {}) == {"lost"}
    assert outcomes([WRITER], {(1, 0): [2]}) == {"wrong version"}
    assert outcomes([WRITER], {(1, 0): [1, 2]}) == outcomes([unknown], {(3, 0): [1, 2]}) == {"applied twice"}
    assert outcomes([refused], {(2, 0): [1]}) == {"applied though refused"}
    assert outcomes([], {(7, 7): [1]}) == {"stray"}


def test_reasons_of_conflicts_are_checked() -> None:
    def reasons(*conflict: object) -> set[str]:
        refused = txn(2, 0, 3, 0, None, {"x": (None, 0)}, writes={"x": B}, ok=False)
        refused.conflicts = [conflict]  # type: ignore[list-item]
        found, count = compare_conflicts([WRITER, refused], {(1, 0): 1}, {1: 77})
        assert count == 1
        return found.names

    author = [0, 77, "python3"]
    assert reasons("x", 0, 1, 5, author) == set()
    assert reasons("y", 0, 1, 5, author) == {"wrong conflict"}, "y never changed"
    assert reasons("x", 4, 1, 5, author) == {"wrong conflict"}, "it had read another version"
    assert reasons("x", 0, 9, 5, author) >= {"wrong conflict"}, "there is no such version"
    assert reasons("x", 0, 1, 5, [0, 78, "python3"]) == {"wrong author"}


def test_the_truth_knows_every_version() -> None:
    second = txn(2, 2, 3, None, 4, writes={"x": None, "y": B, "gone": None})
    truth = Truth([WRITER, second], {(1, 0): 1, (2, 0): 4})
    assert truth.changes == {1: {"x": A}, 4: {"x": None, "y": B}}
    assert truth.state("", 0) == {}
    assert truth.state("", 3) == {"x": (A, 1)}
    assert truth.state("", 4) == truth.state("y", 9) == {"y": (B, 4)}
    assert truth.with_prefix("") == truth.with_prefix("x") == [1, 4]
    assert truth.with_prefix("y") == [4]


# ---------------------------------------------------------------------- planted in good histories


def good_history(seed: int) -> list[Txn]:
    """Transactions of a store that does what it should: overlapping, some refused."""
    chance = random.Random(seed)  # noqa: S311 - a test
    states: list[State] = [{}]
    history = []
    for number in range(GOOD_TRANSACTIONS):
        late = chance.choice([0, 0, 0, 1, 2]) if len(states) > 2 else 0
        seen = states[-1 - late]
        # It began before what it does not see had ended.
        begun, ended = 10 * number - 100 * late, 10 * number + 25
        each = Txn(1, number, begun, ended, True, STEP * (len(states) - 1 - late), None, {}, [], {})
        each.reads = {key: seen.get(key, (None, 0)) for key in chance.sample("abcdef", 2)}
        if number % 2:
            start, end = sorted(chance.sample("abcdefg", 2))
            each.ranges = [(start, end, _items(seen, start, end))]
        if number % 3:
            each.writes = {key: chance.choice([None, mark(1, number)]) for key in chance.sample("abcdef", 2)}
            each.writes[marker(1)] = mark(1, number)
            each.ok = not has_changed(each, states[-1])
        if each.ok and each.writes:
            state, each.version = dict(states[-1]), STEP * len(states)
            apply(each.writes, each.version, state)
            states.append(state)
        history.append(each)
    return history


def _items(state: State, start: str, end: str) -> list[Item]:
    return [(key, *state[key]) for key in sorted(state) if start <= key < end]


def has_changed(each: Txn, state: State) -> bool:
    """Whether anything that it read has changed."""
    reads = any(state.get(key, (None, 0)) != seen for key, seen in each.reads.items())
    return reads or any(_items(state, start, end) != items for start, end, items in each.ranges)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_nothing_is_found_in_a_good_history(seed: int) -> None:
    history = good_history(seed)
    refused = sum(each.ok is False for each in history)
    assert replay(history, acknowledged(history)) == []
    assert refused >= GOOD_TRANSACTIONS * 0.05
    assert len(acknowledged(history)) >= GOOD_TRANSACTIONS * 0.2


def see_an_older_value(history: list[Txn], chance: random.Random) -> None:
    each = chance.choice([txn for txn in history if any(value for value, _ in txn.reads.values())])
    each.reads = dict.fromkeys(each.reads, (None, 0))


def miss_a_key_of_a_range(history: list[Txn], chance: random.Random) -> None:
    each = chance.choice([txn for txn in history if any(items for *_, items in txn.ranges)])
    each.ranges = [(start, end, items[1:]) for start, end, items in each.ranges]


def commit_what_conflicts(history: list[Txn], chance: random.Random) -> None:
    each = chance.choice([txn for txn in history if txn.ok is False])
    before = [txn.version for txn in history if txn.number < each.number and txn.version is not None]
    each.ok, each.version = True, before[-1] + 1


def lose_a_commit(history: list[Txn], chance: random.Random) -> None:
    read = {value for txn in history for value, _ in txn.reads.values()}
    each = chance.choice([txn for txn in history if txn.version and mark(1, txn.number) in read])
    each.version = None


def swap_two_commits(history: list[Txn], chance: random.Random) -> None:
    writers = [txn for txn in history if txn.version is not None]
    at = chance.randrange(len(writers) - 9)
    one, other = writers[at], writers[at + 8]
    one.version, other.version = other.version, one.version


@pytest.mark.parametrize(
    "plant", [see_an_older_value, miss_a_key_of_a_range, commit_what_conflicts, lose_a_commit, swap_two_commits]
)
def test_a_planted_fault_is_found(plant: Callable[[list[Txn], random.Random], None]) -> None:
    for seed in range(SEEDS):
        history = good_history(seed)
        plant(history, random.Random(seed))  # noqa: S311 - a test
        assert replay(history, acknowledged(history)), seed
