"""Tests of the replay: it names the errors of small bad histories, and finds faults planted in good ones."""

import random
from collections.abc import Callable, Sequence

import pytest

from tests.isolation.records import Identity, Item, Txn, Value, mark, marker
from tests.isolation.replay import State, Truth, acknowledged, apply, compare_conflicts, compare_outcomes, replay

GOOD_TRANSACTIONS = 400
SEEDS = 20
STEP = 10  # between two versions, so that a planted version fits between them
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
    """Return the first transaction of a process."""
    return Txn(process, 0, start, end, ok, snapshot, version, reads or {}, list(ranges), writes or {})


def error_names(*history: Txn, versions: dict[Identity, int] | None = None) -> set[str]:
    return replay(history, acknowledged(history) if versions is None else versions).names


# ---------------------------------------------------------------------- small histories

WRITER = txn(1, 0, 1, None, 1, writes={"x": A})


def test_a_read_of_the_state_at_its_snapshot_is_correct() -> None:
    assert (
        error_names(WRITER, txn(2, 2, 3, 1, None, {"x": (A, 1), "y": (None, 0)}, [("a", "z", [("x", A, 1)])])) == set()
    )


def test_a_read_of_a_wrong_value_or_version_is_torn() -> None:
    assert error_names(WRITER, txn(2, 2, 3, 1, None, {"x": (A, 2)})) == {"torn snapshot"}
    assert error_names(WRITER, txn(2, 2, 3, 1, None, {"x": (None, 0)})) == {"torn snapshot"}
    assert error_names(WRITER, txn(2, 0, 3, 0, None, {"x": (A, 1)})) == {"torn snapshot"}


def test_a_range_with_an_extra_or_a_missing_key_is_torn() -> None:
    assert error_names(WRITER, txn(2, 2, 3, 1, None, ranges=[("a", "z", [])])) == {"torn snapshot"}
    assert error_names(WRITER, txn(2, 0, 3, 0, None, ranges=[("a", "z", [("x", A, 1)])])) == {"torn snapshot"}


def test_the_reads_of_a_refused_transaction_are_checked_too() -> None:
    assert error_names(WRITER, txn(2, 2, 3, 1, None, {"x": (None, 0)}, writes={"y": B}, ok=False)) == {"torn snapshot"}


def test_a_commit_whose_reads_had_changed_is_not_serializable() -> None:
    lost_update = txn(2, 0, 3, 0, 2, {"x": (None, 0)}, writes={"x": B})
    phantom = txn(2, 0, 3, 0, 2, ranges=[("a", "z", [])], writes={"y": B})
    assert error_names(WRITER, lost_update) == error_names(WRITER, phantom) == {"not serializable"}


def test_a_snapshot_older_than_an_acknowledged_commit_is_stale() -> None:
    assert error_names(WRITER, txn(2, 2, 3, 0, None, {"x": (None, 0)})) == {"stale"}
    assert error_names(WRITER, txn(2, 1, 3, 0, None, {"x": (None, 0)})) == set(), "it began before the acknowledgement"


def test_two_readers_that_see_time_go_back_are_stale() -> None:
    slow = txn(1, 0, 90, None, 1, writes={"x": A})
    assert error_names(slow, txn(2, 1, 2, 1), txn(3, 3, 4, 0)) == {"stale"}


def test_a_blind_write_below_an_acknowledged_version_is_stale() -> None:
    assert error_names(txn(1, 0, 1, None, 2, writes={"x": A}), txn(2, 2, 3, None, 1, writes={"x": B})) == {"stale"}


def test_a_commit_below_its_snapshot_is_in_the_future() -> None:
    assert "future" in error_names(WRITER, txn(2, 0, 9, 3, 2, writes={"y": B}))


def test_the_replay_finds_two_commits_with_one_version() -> None:
    assert error_names(WRITER, txn(2, 0, 1, None, 1, writes={"y": B})) == {"version twice"}


def test_outcomes_are_compared_with_the_history_of_the_daemon() -> None:
    refused, unknown = txn(2, 0, 1, 0, writes={"x": B}, ok=False), txn(3, 0, None, 0, writes={"x": B}, ok=None)

    def outcomes(history: list[Txn], committed: dict[Identity, list[int]]) -> set[str]:
        return compare_outcomes(history, committed).names

    assert outcomes([WRITER, refused, unknown], {(1, 0): [1]}) == set()
    assert outcomes([WRITER, refused, unknown], {(1, 0): [1], (3, 0): [2]}) == set()
    assert outcomes([WRITER], {}) == {"lost"}
    assert outcomes([WRITER], {(1, 0): [2]}) == {"wrong version"}
    assert outcomes([WRITER], {(1, 0): [1, 2]}) == outcomes([unknown], {(3, 0): [1, 2]}) == {"applied twice"}
    assert outcomes([refused], {(2, 0): [1]}) == {"applied though refused"}
    assert outcomes([], {(7, 7): [1]}) == {"stray"}


def test_the_reasons_of_conflicts_are_checked() -> None:
    def reasons(*conflict: object) -> set[str]:
        refused = txn(2, 0, 3, 0, None, {"x": (None, 0)}, writes={"x": B}, ok=False)
        refused.conflicts = [conflict]  # type: ignore[list-item]
        findings, count = compare_conflicts([WRITER, refused], {(1, 0): 1}, {1: 77})
        assert count == 1
        return findings.names

    author = [0, 77, "python3"]
    assert reasons("x", 0, 1, 5, author) == set()
    assert reasons("y", 0, 1, 5, author) == {"wrong conflict"}, "y has never changed"
    assert reasons("x", 4, 1, 5, author) == {"wrong conflict"}, "it had read another version"
    assert reasons("x", 0, 9, 5, author) >= {"wrong conflict"}, "there is no such version"
    assert reasons("x", 0, 1, 5, [0, 78, "python3"]) == {"wrong author"}


def test_the_truth_has_the_state_of_every_version() -> None:
    second = txn(2, 2, 3, None, 4, writes={"x": None, "y": B, "gone": None})
    truth = Truth([WRITER, second], {(1, 0): 1, (2, 0): 4})
    assert truth.changes == {1: {"x": A}, 4: {"x": None, "y": B}}
    assert truth.state("", 0) == {}
    assert truth.state("", 3) == {"x": (A, 1)}
    assert truth.state("", 4) == truth.state("y", 9) == {"y": (B, 4)}
    assert truth.with_prefix("") == truth.with_prefix("x") == [1, 4]
    assert truth.with_prefix("y") == [4]


# ---------------------------------------------------------------------- faults planted in good histories


def good_history(seed: int) -> list[Txn]:
    """Return transactions of a simulated, correct store. They overlap, and some are refused."""
    chance = random.Random(seed)  # noqa: S311 - a test
    states: list[State] = [{}]
    history = []
    for number in range(GOOD_TRANSACTIONS):
        late = chance.choice([0, 0, 0, 1, 2]) if len(states) > 2 else 0
        seen = states[-1 - late]
        # The transaction began before the commits that it does not see had ended.
        first_time, last_time = 10 * number - 100 * late, 10 * number + 25
        each = Txn(1, number, first_time, last_time, True, STEP * (len(states) - 1 - late), None, {}, [], {})
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
    """Whether a key or range that the transaction read has changed."""
    reads = any(state.get(key, (None, 0)) != seen for key, seen in each.reads.items())
    return reads or any(_items(state, start, end) != items for start, end, items in each.ranges)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_replay_accepts_a_good_history(seed: int) -> None:
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


def commit_a_conflict(history: list[Txn], chance: random.Random) -> None:
    each = chance.choice([txn for txn in history if txn.ok is False])
    before = [txn.version for txn in history if txn.number < each.number and txn.version is not None]
    each.ok, each.version = True, before[-1] + 1


def lose_a_commit(history: list[Txn], chance: random.Random) -> None:
    seen = {value for txn in history for value, _ in txn.reads.values()}
    each = chance.choice([txn for txn in history if txn.version and mark(1, txn.number) in seen])
    each.version = None


def swap_two_commits(history: list[Txn], chance: random.Random) -> None:
    writers = [txn for txn in history if txn.version is not None]
    at = chance.randrange(len(writers) - 9)
    one, other = writers[at], writers[at + 8]
    one.version, other.version = other.version, one.version


@pytest.mark.parametrize(
    "plant", [see_an_older_value, miss_a_key_of_a_range, commit_a_conflict, lose_a_commit, swap_two_commits]
)
def test_the_replay_finds_a_planted_fault(plant: Callable[[list[Txn], random.Random], None]) -> None:
    for seed in range(SEEDS):
        history = good_history(seed)
        plant(history, random.Random(seed))  # noqa: S311 - a test
        assert replay(history, acknowledged(history)), seed
