"""Tests of the checkers: they name the anomalies of small bad histories, and find faults planted in good ones."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.histories.list_append import Txn, check
from tests.histories.replay import differences

GOOD_TRANSACTIONS = 2_000


def r(key: str, *values: int) -> tuple[str, str, list[int]]:
    return "r", key, list(values)


def a(key: str, value: int) -> tuple[str, str, int]:
    return "append", key, value


def txn(start: int, end: int | None, *ops: Any, ok: bool | None = True) -> Txn:  # noqa: ANN401 - r() or a()
    return Txn(start, end, ok, ops)


BAD: dict[str, list[Txn]] = {
    "internal": [txn(0, 9, a("x", 1), r("x"))],
    "duplicate": [txn(0, 9, a("x", 1)), txn(0, 9, r("x", 1, 1))],
    "garbage": [txn(0, 9, r("x", 7))],
    "G1a": [txn(0, 9, a("x", 1), ok=False), txn(0, 9, r("x", 1))],
    "G1b": [txn(0, 9, a("x", 1), a("x", 2)), txn(0, 9, r("x", 1)), txn(0, 9, r("x", 1, 2))],
    "incompatible-order": [txn(0, 9, a("x", 1)), txn(0, 9, a("x", 2)), txn(0, 9, r("x", 1)), txn(0, 9, r("x", 2))],
    "G0": [
        txn(0, 9, a("x", 1), a("y", 1)), txn(0, 9, a("x", 2), a("y", 2)), txn(0, 9, r("x", 1, 2), r("y", 2, 1)),
    ],
    "G1c": [txn(0, 9, a("x", 1), r("y", 1)), txn(0, 9, a("y", 1), r("x", 1))],
    "G-single": [txn(0, 9, a("x", 1), a("y", 1)), txn(0, 9, r("x"), r("y", 1)), txn(0, 9, r("x", 1))],
    "lost-update": [txn(0, 9, r("x"), a("x", 1)), txn(0, 9, r("x"), a("x", 2)), txn(0, 9, r("x", 1, 2))],
    "G2": [txn(0, 9, r("x"), a("y", 1)), txn(0, 9, r("y"), a("x", 1)), txn(0, 9, r("x", 1), r("y", 1))],
    "G-nonadjacent": [
        txn(0, 9, a("x", 1)), txn(0, 9, a("y", 1)), txn(0, 9, r("x", 1), r("y")), txn(0, 9, r("x"), r("y", 1)),
        txn(0, 9, r("x", 1), r("y", 1)),
    ],
    "G0-rt": [txn(0, 1, a("x", 1)), txn(2, 3, a("x", 2)), txn(0, 9, r("x", 2, 1))],
    "G1c-rt": [txn(0, 1, r("x", 1)), txn(2, 3, a("x", 1))],
    "G-single-rt": [txn(0, 1, a("x", 1)), txn(2, 3, r("x")), txn(4, 5, r("x", 1))],
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_the_checker_names_each_anomaly(name: str) -> None:
    assert name in check(BAD[name]).names


def test_the_checker_finds_an_acknowledged_append_that_vanished() -> None:
    """A read does not see it, although the read began after the acknowledgement."""
    assert check([txn(0, 1, a("x", 1)), txn(2, 3, r("x"))]).names == {"G-single-rt"}


def test_an_append_of_unknown_outcome_may_be_present_or_absent() -> None:
    unknown = txn(0, None, a("x", 1), ok=None)
    assert not check([unknown, txn(5, 6, r("x"))]).names
    assert not check([unknown, txn(5, 6, r("x", 1))]).names
    assert check([unknown, txn(5, 6, r("x", 1)), txn(7, 8, r("x"))]).names, "once seen, it must stay"


def good_history(seed: int, count: int = GOOD_TRANSACTIONS) -> list[Txn]:
    """Return transactions that overlap in time; each takes effect at one moment of its own."""
    chance = random.Random(seed)  # noqa: S311 - a test
    lists: dict[str, list[int]] = {}
    history = []
    for number in range(count):
        moment = number * 10
        own: dict[str, list[int]] = {key: list(lists.get(key, ())) for key in "abcd"}
        ops: list[Any] = []
        for turn in range(chance.randrange(1, 5)):
            key = chance.choice("abcd")
            if chance.random() < 0.5:
                ops.append(r(key, *own[key]))
            else:
                own[key].append(number * 10 + turn)
                ops.append(a(key, own[key][-1]))
        if chance.random() < 0.02:
            lists = {}  # as new keys would, because the lists must not grow for ever
            ops = [("r" if op[0] == "r" else "append", f"{op[1]}", op[2]) for op in ops]
        writes = any(op[0] == "append" for op in ops)
        history.append(
            Txn(
                moment - chance.randrange(60), moment + chance.randrange(1, 60), True, ops,
                version=moment if writes else None, snapshot=moment,
            )
        )  # fmt: skip
        lists = own
    return history


def with_epochs(history: list[Txn]) -> list[Txn]:
    """Rename all keys every 50 transactions, so that lists stay short."""
    history_with_epochs = []
    lists: dict[str, list[int]] = {}
    for number, each in enumerate(history):
        epoch = number // 50
        ops: list[Any] = []
        for kind, key, value in each.ops:
            name = f"{key}{epoch}"
            if kind == "append":
                lists.setdefault(name, []).append(value)
                ops.append(a(name, value))
            else:
                ops.append(r(name, *lists.get(name, ())))
        history_with_epochs.append(Txn(each.start, each.end, True, ops, each.version, each.snapshot))
    return history_with_epochs


@pytest.mark.parametrize("seed", range(5))
def test_both_checkers_accept_a_good_history(seed: int) -> None:
    history = with_epochs(good_history(seed))
    assert sum(len(each.ops) for each in history) > GOOD_TRANSACTIONS
    assert check(history).anomalies == []
    assert differences(history) == []


def forget_an_append(history: list[Txn], chance: random.Random) -> None:
    """Remove an append from a later read that must see it."""
    readers = [txn for txn in history if any(op[0] == "r" and len(op[2]) > 1 for op in txn.ops)]
    reader = chance.choice(readers[len(readers) // 2 :])
    reader.ops = [(op[0], op[1], op[2][:-1]) if op[0] == "r" and len(op[2]) > 1 else op for op in reader.ops]


def swap_two(history: list[Txn], chance: random.Random) -> None:
    """Swap two appends in what one reader reads."""
    readers = [txn for txn in history if any(op[0] == "r" and len(op[2]) > 2 for op in txn.ops)]
    reader = chance.choice(readers)
    ops = []
    for op in reader.ops:
        is_long = op[0] == "r" and len(op[2]) > 2
        ops.append(("r", op[1], [*op[2][:-2], op[2][-1], op[2][-2]]) if is_long else op)
    reader.ops = ops


def refuse_a_seen_append(history: list[Txn], chance: random.Random) -> None:
    """Mark a transaction as refused although another one read its append."""
    seen = {value for txn in history for op in txn.ops if op[0] == "r" for value in op[2]}
    chance.choice([t for t in history if any(op[0] == "append" and op[2] in seen for op in t.ops)]).ok = False


@pytest.mark.parametrize("fault", [forget_an_append, swap_two, refuse_a_seen_append])
def test_the_checkers_find_a_planted_fault(fault: Callable[[list[Txn], random.Random], None]) -> None:
    findings = 0
    for seed in range(20):
        history = with_epochs(good_history(seed, 400))
        fault(history, random.Random(seed))  # noqa: S311 - a test
        findings += bool(check(history).anomalies)
        assert check(history).anomalies or differences(history), f"{fault.__name__}, {seed}"
    assert findings >= 18, "what one transaction saw may fit another moment, but rarely does"


@pytest.mark.parametrize("change", [{"version": 5}, {"version": 10**9}])
def test_the_replay_finds_versions_that_disagree_with_time_or_reads(change: dict[str, int]) -> None:
    history = with_epochs(good_history(1, 200))
    middle = next(txn for txn in history[100:] if txn.version is not None and len(txn.ops) > 1)
    middle.version = change["version"]
    assert differences(history)
