"""Work in steps gives the same as work at once, whatever is committed between its steps, and no step is long."""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest

from kvd.store import following, heads, isolation, reading, steps
from kvd.store import keyspace as keyspace_module
from kvd.store.errors import Conflict, SnapshotGone, StoreError
from kvd.store.following import Commits
from kvd.store.heads import Head
from kvd.store.history import versions, versions_in_steps
from kvd.store.isolation import MAX_CHANGES, Range, Validation, validate
from kvd.store.steps import Steps
from kvd.store.store import CUT_KEYS, Store
from kvd.store.window import WindowLimits

NAMES = [f"{letter}{number:02}" for letter in "abc" for number in range(30)]  # fewer than a conflict names


def commit(store: Store, chosen: random.Random) -> None:
    """Make some commit: a set, a deletion, several sets together, or a change of deadlines."""
    names = chosen.sample(NAMES, chosen.randrange(1, 9))
    act = chosen.random()
    if act < 0.5:
        store.set({name: b"%d" % chosen.randrange(1000) for name in names})
    elif act < 0.7:
        store.delete(names, missing_ok=True)
    elif act < 0.8:
        store.set_each([{name: b"each"} for name in names])
    elif act < 0.9:
        store.touch(names, chosen.choice([None, chosen.randrange(1000)]))
    else:
        store.drop_history(chosen.randrange(20))


def filled(chosen: random.Random) -> Store:
    store = Store(WindowLimits(max_commits=chosen.choice([3, 40, 1000])))
    for _ in range(100):
        commit(store, chosen)
    return store


def between(work: Steps[Any], store: Store, chosen: random.Random) -> Any:  # noqa: ANN401 - of any work
    """Run ``work``, with commits between its steps; return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
        for _ in range(chosen.choice([0, 0, 1, 3])):
            commit(store, chosen)


@pytest.fixture
def short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each step be of a few keys, and most keys lie in shards."""
    for module in (steps, following, isolation):
        monkeypatch.setattr(module, "STEP_KEYS", 5)
    for module in (steps.chunks, steps.slices):
        monkeypatch.setattr(module, "__defaults__", (5,))
    monkeypatch.setattr(heads, "LINKS", 2)
    monkeypatch.setattr(keyspace_module, "FIRST_KEYS", 20)


def outcome(act: Callable[[], object]) -> object:
    try:
        return act()
    except StoreError as error:
        return type(error), str(error), [change.key for change in getattr(error, "changes", [])]


@pytest.mark.usefixtures("short_steps")
@pytest.mark.parametrize("seed", range(60))
def test_reads_in_steps_are_those_of_the_moment_at_which_they_end(seed: int) -> None:
    chosen = random.Random(seed)  # noqa: S311  # to be repeatable
    store = filled(chosen)
    keys = chosen.choices([*NAMES, "never"], k=90)
    assert between(reading.values(store, keys, None), store, chosen) == store.get_many(keys)
    assert between(reading.rows(store, keys, None), store, chosen) == store.fetch(keys)
    assert store.followers == []


@pytest.mark.usefixtures("short_steps")
@pytest.mark.parametrize("seed", range(60))
def test_reads_in_steps_at_a_version_are_those_at_once_or_the_version_is_gone(seed: int) -> None:
    chosen = random.Random(seed)  # noqa: S311  # to be repeatable
    store = filled(chosen)
    at = store.version if seed % 2 else chosen.randrange(store.window.oldest_readable, store.version + 1)
    if seed % 3:
        store.window.pin(store.version)
        at = store.version
    keys = chosen.choices(NAMES, k=60)
    expected = outcome(lambda: store.get_many(keys, at))
    read = outcome(lambda: between(reading.values(store, keys, at), store, chosen))
    assert read == expected or (isinstance(read, tuple) and read[0] is SnapshotGone)
    if seed % 3:
        assert read == expected
        page = store.scan("a", "c", 50, at=at, max_bytes=100)
        in_steps = store.scan_at("a", "c", 50, at=at, keys_only=False, max_bytes=100)
        assert between(in_steps, store, chosen) == page


@pytest.mark.usefixtures("short_steps")
@pytest.mark.parametrize("seed", range(150))
def test_a_validation_in_steps_refuses_what_a_validation_at_its_end_refuses(seed: int) -> None:
    chosen = random.Random(seed)  # noqa: S311  # to be repeatable
    store = filled(chosen)
    snapshot = store.version
    store.window.pin(snapshot)
    reads = {key: version for key, (_, version, _) in zip(NAMES, store.fetch(NAMES), strict=True)}
    read = dict(chosen.sample(sorted(reads.items()), chosen.choice([0, 1, 40])))
    bounds = [sorted(chosen.choices(NAMES, k=2)) for _ in range(chosen.randrange(30))]
    ranges: list[Range] = [(start, end) for start, end in bounds]
    for _ in range(chosen.choice([0, 0, 1, 5])):
        commit(store, chosen)
    if seed % 5 == 0:
        store.window.unpin(snapshot)
    with Validation(store, read, ranges, snapshot) as validation:
        result = outcome(lambda: between(validation.run(), store, chosen))
        if result is None:
            for _ in range(chosen.choice([0, 2])):  # as evictions for the commit are made
                commit(store, chosen)
            result = outcome(validation.check)
    expected = outcome(lambda: validate(store, read, ranges, snapshot))
    if isinstance(expected, tuple) and expected[0] is Conflict:
        assert isinstance(result, tuple)
        assert result[0] is Conflict
        assert set(result[2]) == set(expected[2]), "all that has changed is named"
    else:
        assert (result is None) == (expected is None)
    assert store.followers == []


def visited_in_each(store: Store, work: Steps[Any]) -> list[int]:
    """Run ``work``; return how many keys each step looked up or took from the index."""
    visited, counts = 0, []
    find_all, keys_between = store.find_all, store.keys_between

    def counted(keys: Sequence[str]) -> list[Head | None]:
        nonlocal visited
        visited += len(keys)
        return find_all(keys)

    def counted_between(start: str, end: str | None) -> Iterator[str]:
        nonlocal visited
        for key in keys_between(start, end):
            visited += 1
            yield key

    store.find_all, store.keys_between = counted, counted_between  # type: ignore[method-assign]
    for _ in work:
        counts.append(visited)
        visited = 0
    return [*counts, visited]


def large() -> Store:
    store = Store()
    for begin in range(0, 20_000, 1_000):
        store.set({f"k{number:05}": b"1" for number in range(begin, begin + 1_000)})
    return store


def test_no_step_of_a_validation_looks_at_more_than_a_bounded_number_of_keys() -> None:
    store = large()
    snapshot = store.pin()
    for _ in range(30):
        store.set({f"z{number:05}": b"1" for number in range(1_000)})
    for ranges in ([("k", "l")], [(f"k{number:05}", f"k{number:05}~") for number in range(20_000)]):
        validation = Validation(store, {}, ranges, snapshot)
        assert max(visited_in_each(store, validation.run())) <= 4 * steps.STEP_KEYS
    validation = Validation(store, {f"k{number:05}": 1 for number in range(20_000)}, [], snapshot)
    assert max(visited_in_each(store, validation.run())) <= steps.STEP_KEYS


def test_a_range_that_few_commits_followed_is_validated_without_a_look_at_its_keys() -> None:
    store = large()
    snapshot = store.pin()
    store.set({"z": b"1"})
    assert sum(visited_in_each(store, Validation(store, {}, [("k", "l")], snapshot).run())) <= steps.STEP_KEYS


def test_a_short_range_is_validated_without_a_look_at_all_the_commits_since() -> None:
    store = large()
    snapshot = store.pin()
    for _ in range(100):
        store.set({f"z{number:05}": b"1" for number in range(1_000)})
    assert len(list(Validation(store, {}, [("k00100", "k00200")], snapshot).run())) <= 5


def test_a_validation_ends_once_it_has_enough_conflicts_to_name() -> None:
    store = large()
    snapshot = store.pin()
    store.set({f"k{number:05}": b"2" for number in range(10_000)})
    with Validation(store, {}, [("k", "l")], snapshot) as validation:
        assert len(list(validation.run())) <= 5
        with pytest.raises(Conflict) as conflict:
            validation.check()
    assert len(conflict.value.changes) == MAX_CHANGES


def test_no_step_of_a_read_looks_up_more_than_a_bounded_number_of_keys() -> None:
    store = large()
    snapshot, keys = store.pin(), [f"k{number:05}" for number in range(20_000)]
    for work in (
        reading.values(store, keys, None),
        reading.values(store, keys, snapshot),
        reading.rows(store, keys, None),
    ):
        assert max(visited_in_each(store, work)) <= steps.STEP_KEYS


def test_an_old_version_is_reached_in_steps_of_a_bounded_number_of_links() -> None:
    store = Store()
    snapshot = store.set({"hot": b"old"})
    store.window.pin(snapshot)
    for _ in range(10 * heads.LINKS):
        store.set({"hot": b"new"})
    expected = 10
    assert len(list(reading.values(store, ["hot"], snapshot))) >= expected
    assert len(list(versions_in_steps(store, "hot", 10, snapshot + 1, 10**6))) >= expected
    assert len(list(store.scan_at("", None, 10, at=snapshot, keys_only=False, max_bytes=10**6))) >= expected
    assert [each.value for each in versions(store, "hot", 10, snapshot + 1, 10**6)] == [b"old"]


def test_the_store_notes_no_commits_for_those_that_have_gone() -> None:
    store = large()
    work = reading.values(store, ["k00001"] * 3, None)
    next(work)
    assert len(store.followers) == 1
    work.close()
    assert store.followers == []
    with Commits(store) as commits:
        store.set({"a": b"1"})
        assert [head.key for head in commits.take()] == ["a"]
    store.set({"b": b"1"})
    assert list(commits.take()) == []


def test_of_a_large_commit_that_leaves_the_history_a_bounded_number_of_keys_is_cut_off_in_one_step() -> None:
    store, keys = Store(WindowLimits(max_commits=0)), [f"k{number:05}" for number in range(3 * CUT_KEYS)]
    store.set(dict.fromkeys(keys, b"old"))
    store.delete(keys)
    left = [len(store)]
    for _ in range(10):
        store.advance(1)
        store.set({"other": b"x"})
        left.append(len(store) - 1)
        assert store.get_many(keys[:3]) == [None] * 3
    assert max(before - after for before, after in pairwise(left)) == CUT_KEYS
    assert left[-1] == 0
    assert list(store.keys_between("", None)) == ["other"]
