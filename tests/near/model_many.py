"""Several keys of a near cache, read as of one instant: a second model, for the same ``explore``.

A writer always gives both keys the same number, in one commit. One thread of a client reads both keys. Another thread
fetches one or the other at any time, so entries are replaced at any moment. No server dies here. A piggy-backed refresh
(``kv/near_cache/refresh.py``) is such a fetch: it comes with its own generation, at any moment.
"""

from collections.abc import Iterator
from typing import NamedTuple

from tests.near.model import StaleRead

WRITES = 3
KEYS = (0, 1)

BROKEN = (
    "compares each entry when it takes it out",
    "does not compare again after fetching the rest",
)
Entry = tuple[int, int]  # value, generation


class State(NamedTuple):
    """Pairs have one element for each of the two keys."""

    generations: tuple[int, int] = (0, 0)
    value: int = 0
    bumped: int = 0  # how many generations have been bumped for the commit under way
    floor: int = 0
    entries: tuple[Entry | None, Entry | None] = (None, None)
    filling: tuple[int, Entry] | None = None  # what the other thread has fetched and not kept yet
    step: str = "idle"
    begun: int = 0
    taken: tuple[Entry | None, Entry | None] = (None, None)
    compared: int = 0
    fetched: int | None = None  # the key that the reader has just fetched; it needs no comparison


Step = tuple[str, State]


def next_states(state: State, variant: str = "") -> Iterator[Step]:
    """Yield everything that can happen next. Raises StaleRead."""
    yield from _writer(state)
    yield from _other_thread(state)
    yield from _reader(state, variant)


def _set(pair: tuple[Entry | None, Entry | None], key: int, entry: Entry | None) -> tuple[Entry | None, Entry | None]:
    return (entry, pair[1]) if key == 0 else (pair[0], entry)


def _writer(state: State) -> Iterator[Step]:
    if state.bumped < len(KEYS):
        if state.value < WRITES:
            first, second = state.generations
            generations = (first + 1, second) if state.bumped == 0 else (first, second + 1)
            yield "bumped", state._replace(generations=generations, bumped=state.bumped + 1)
    else:
        value = state.value + 1
        yield "changed and acknowledged", state._replace(value=value, bumped=0, floor=value)


def _other_thread(state: State) -> Iterator[Step]:
    if state.filling is not None:
        key, entry = state.filling
        yield f"other thread keeps {key}", state._replace(entries=_set(state.entries, key, entry), filling=None)
    elif state.bumped == 0:
        for key in KEYS:
            fetched = (key, (state.value, state.generations[key]))
            yield f"other thread fetches {key}", state._replace(filling=fetched)


def _reader(state: State, variant: str) -> Iterator[Step]:
    one_by_one = variant == "compares each entry when it takes it out"
    if state.step == "idle":
        yield "begins", state._replace(step="take 0", begun=state.floor, taken=(None, None), compared=0, fetched=None)
    elif state.step == "take 0":
        following = "compare first" if one_by_one else "take 1"
        yield "takes 0", state._replace(step=following, taken=_set(state.taken, 0, state.entries[0]))
    elif state.step == "compare first":
        same = _unchanged(state, 0)
        yield "compares 0", state._replace(step="take 1", taken=state.taken if same else _set(state.taken, 0, None))
    elif state.step == "take 1":
        taken = state._replace(taken=_set(state.taken, 1, state.entries[1]))
        yield "takes 1", taken._replace(step="compare", compared=1 if one_by_one else 0)
    elif state.step == "compare":
        yield from _compare(state, "compared")
    elif state.step == "compared" and None not in state.taken:
        yield "answers from the cache", _returned(state)
    elif state.step == "compared" and state.bumped == 0:
        yield from _fetch_the_rest(state, variant)
    elif state.step == "compare again":
        yield from _compare(state, "done")
    elif state.step == "done" and None not in state.taken:
        yield "answers", _returned(state)
    elif state.step == "done" and state.bumped == 0:
        both = ((state.value, state.generations[0]), (state.value, state.generations[1]))
        yield "fetches both", _returned(state._replace(taken=both))


def _fetch_the_rest(state: State, variant: str) -> Iterator[Step]:
    first, second = (each or (state.value, state.generations[key]) for key, each in zip(KEYS, state.taken, strict=True))
    both = state._replace(taken=(first, second), step="done")
    if state.taken == (None, None) or variant == "does not compare again after fetching the rest":
        yield "fetches the rest", both
    else:
        yield "fetches the rest", both._replace(step="compare again", compared=0, fetched=state.taken.index(None))


def _compare(state: State, following: str) -> Iterator[Step]:
    if state.compared == len(KEYS):
        yield "has compared", state._replace(step=following)
        return
    key = state.compared
    if key == state.fetched:
        yield f"need not compare {key}", state._replace(compared=key + 1)
        return
    taken = state.taken if _unchanged(state, key) else _set(state.taken, key, None)
    yield f"compares {key}", state._replace(compared=key + 1, taken=taken)


def _unchanged(state: State, key: int) -> bool:
    entry = state.taken[key]
    return entry is not None and entry[1] == state.generations[key]


def _returned(state: State) -> State:
    first, second = state.taken
    assert first is not None
    assert second is not None
    if first[0] != second[0]:
        raise StaleRead(f"{first[0]} and {second[0]} were read together")
    if first[0] < state.begun:
        raise StaleRead(f"{first[0]} was read although {state.begun} had been seen before")
    floor = max(state.floor, first[0])
    return state._replace(step="idle", begun=0, taken=(None, None), compared=0, fetched=None, floor=floor)
