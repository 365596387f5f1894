"""Each fast path of a commit leaves the store as the reference path does, in random states, for random writes.

Two equal stores get the same writes: one by the fast path that the store chooses, the other by the reference path, one
commit after the other. Afterwards everything that a reader can see must be equal, and so must the counters. Only the
groups in the window may differ: a batch is one group, and the reference path makes a group of each commit.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import wraps
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kvd.store import batch as batch_module
from kvd.store import keyspace as keyspace_module
from kvd.store.authors import EVICTED, Author
from kvd.store.contents import Counters
from kvd.store.draft import Draft
from kvd.store.heads import Head
from kvd.store.history import versions
from kvd.store.lifetimes import Expiry
from kvd.store.steps import chunks
from kvd.store.store import Store
from kvd.store.window import GROUP_BYTES, Group

KEYS = ["a", "b", "ba", "c", "d", "\xe9", "f", "\U0001f382"]
ME = Author(1, 2, "me")
FAST_PATHS = [
    (batch_module, "write_all"),
    (batch_module, "delete_heads"),
    (batch_module, "_replace_each"),
    (batch_module, "_add_each"),
    (batch_module, "_link_each"),
    (Store, "_commit_one"),
    (Store, "_commit_draft"),
]

Writes = dict[str, bytes | None]
keys = st.sampled_from(KEYS)
values = st.binary(max_size=5)
writes = st.dictionaries(keys, values | values | st.none(), max_size=6)
# The steps that make the state: commits, deadlines for some keys, dropped history.
steps = st.tuples(st.sampled_from(["write", "write", "expire at", "drop"]), writes)
filled = st.sampled_from([0, 2, 5, 8]).map(lambda count: ("write", dict.fromkeys(KEYS[:count], b"old")))
befores = st.builds(lambda first, then: [first, *then], filled, st.lists(steps, max_size=4))
# One commit of some keys; commits of one key each, of any keys, of existing keys or of absent ones; an eviction.
acts = st.one_of(
    st.tuples(st.just("commit"), writes),
    st.tuples(st.just("commit"), st.dictionaries(keys, values, min_size=2, max_size=6)),
    st.tuples(st.just("set each"), st.lists(st.tuples(keys, values), max_size=8)),
    st.tuples(st.just("replace each"), st.lists(values, min_size=2, max_size=4)),
    st.tuples(st.just("add each"), st.lists(values, min_size=2, max_size=4)),
    st.tuples(st.just("evict"), st.sets(keys).map(sorted)),
    # One commit that is prepared in steps, and the writes between these; None drops history.
    st.tuples(
        st.just("draft"),
        st.tuples(
            st.dictionaries(keys, values | st.none(), min_size=3, max_size=8), st.lists(writes | st.none(), max_size=6)
        ),
    ),
)
examples = given(st.sampled_from([0, 3, 1_000, 1_000]), befores, st.lists(acts, min_size=1, max_size=3))


def make_store(first_keys: int, before: list[tuple[str, Writes]]) -> Store:
    """Return a store after the steps of ``before``, all taken by the reference path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyspace_module, "FIRST_KEYS", first_keys)
        store = Store()
    for number, (act, entries) in enumerate(before):
        store.advance(1_000 + number)
        if act == "drop":
            store.trim_history(200 * len(entries), store.version, 10**6, even_pinned=True)
        else:
            reference(store, "commit", entries)
            if act == "expire at":
                store.lifetimes.record_write(
                    [key for key in entries if store.exists(key)], Expiry(deadline=10**9 + number)
                )
    store.advance(2_000)
    return store


def resolved(store: Store, act: str, data: Any) -> tuple[str, Any]:  # noqa: ANN401
    """Choose keys for "replace each" (existing ones) and "add each" (absent ones)."""
    if act not in ("replace each", "add each"):
        return act, data
    chosen = [key for key in KEYS if store.exists(key) == (act == "replace each")]
    return "set each", list(zip(chosen, data, strict=False))


def copies(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same entries with other key objects, as a decoder makes them."""
    return {"".join(list(key)): value for key, value in entries.items()}


def fast(store: Store, act: str, data: Any) -> object:  # noqa: ANN401
    """Write as the daemon does."""
    if act == "draft":
        return fast_draft(store, *data)
    if act == "commit":
        return store.write(copies(data), ME)
    if act == "set each":
        return store.set_each([copies({key: value}) for key, value in data], ME)
    heads = [head for head in store.find_all(data) if head is not None and head.value is not None]
    return store.evict(heads) if heads else None


def between(store: Store, entries: Writes | None) -> None:
    if entries is None:
        store.trim_history(10**9, store.version, 10**6, even_pinned=True)
    else:
        reference(store, "commit", entries)


def fast_draft(store: Store, entries: Writes, others: list[Writes | None]) -> object:
    with Draft(store, dict.fromkeys(copies(entries))) as draft:
        for _ in draft.prepare():
            if others:
                between(store, others.pop(0))
        for each in others:
            between(store, each)
        return draft.commit(lambda: store.write(copies(entries), ME))


def reference(store: Store, act: str, data: Any) -> object:  # noqa: ANN401
    """Write the same by the reference path alone."""
    if act == "draft":
        for each in data[1]:
            between(store, each)
        return reference(store, "commit", data[0])
    if act == "commit":
        there = {key: value for key, value in data.items() if value is not None or store.exists(key)}
        # A write stores its values first, then it deletes.
        return commit(store, dict(sorted(there.items(), key=lambda item: item[1] is None)))
    if act == "set each":
        return [commit(store, {key: value}) for key, value in data]
    gone = dict.fromkeys(key for key in data if store.exists(key))
    store.counters.evicted_keys += len(gone)
    store.counters.delete_operations -= len(gone)
    return commit(store, gone, EVICTED) if gone else None


def commit(store: Store, entries: Writes, author: Author = ME) -> int:
    store.lifetimes.clear(entries.keys())
    stored = [len(value) for value in entries.values() if value is not None]
    store.counters.set_operations += len(stored)
    store.counters.delete_operations += len(entries) - len(stored)
    if not entries:
        return store.version
    return store._commit_key_by_key(entries, list(map(store.first.get, entries)), stored, author)


def seen(store: Store) -> dict[str, object]:
    """Return everything that the store shows or counts, except how commits are grouped."""
    groups = store.window.groups
    readable = range(store.window.oldest_readable, store.version + 1)
    return {
        "version": (store.version, store.time, store.window.oldest_readable, store.window.oldest_time),
        "counters": {name: getattr(store.counters, name) for name in Counters.__slots__},
        "sizes": (store.largest_value_bytes, store.key_bytes, store.window.bytes - GROUP_BYTES * len(groups)),
        "forgotten": store.forgotten_keys,
        "commits": [commit_row(group, *each) for group in groups for each in group.each()],
        "number of commits": store.window.commits,
        "keys": sorted(store._keyspace),
        "index": (list(store.keys_between("", None)), list(store.living_between("", None))),
        "chains": {key: chain(store.find(key)) for key in KEYS},
        "deadlines": store.lifetimes.deadlines_of(KEYS),
        "values": [store.get_many(KEYS, version) for version in readable],
        "pages": [store.scan("", None, 100, at=version).items for version in readable],
        "histories": [versions(store, key, 100, None, 10_000) for key in KEYS],
    }


def commit_row(group: Group, version: int, heads: tuple[Head, ...]) -> object:
    return version, group.time, group.author, [(head.key, head.value) for head in heads]


def chain(head: Head | None) -> list[tuple[int, bytes | None]]:
    found = []
    while head is not None:
        found.append((head.version, head.value))
        head = head.previous
    return found


def check_whole(store: Store) -> None:
    """Check what holds in each store by itself: all heads of a key share one key object, and the flags are right."""
    for part in store.parts():
        for key, head in part.items():
            current: Head | None = head
            while current is not None:
                assert current.key is key
                current = current.previous
    assert all(group.has_tombstones == any(head.value is None for head in group.heads) for group in store.window.groups)
    assert all(store.first[key] is store.find(key) for key in store.first)


def compare(first_keys: int, before: list[tuple[str, Writes]], todo: list[tuple[str, Any]]) -> None:
    one, other = make_store(first_keys, before), make_store(first_keys, before)
    for act, data in (resolved(one, *each) for each in todo):
        assert fast(one, act, deepcopy(data)) == reference(other, act, data)
        check_whole(one)
        assert seen(one) == seen(other)
    # Finally drop the whole history: what is left must be equal, too.
    for store in (one, other):
        store.trim_history(10**9, store.version, 10**6, even_pinned=True)
    assert seen(one) == seen(other)


def counting(owner: object, name: str, taken: "Counter[str]") -> Callable[..., Any]:
    path = getattr(owner, name)

    @wraps(path)
    def counted(*arguments: Any) -> Any:  # noqa: ANN401
        result = path(*arguments)
        taken[name] += result is not None
        return result

    return counted


def test_each_fast_path_equals_the_reference_path(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Counter[str]()
    monkeypatch.setattr(chunks, "__defaults__", (2,))
    for owner, name in FAST_PATHS:
        monkeypatch.setattr(owner, name, counting(owner, name, taken))
    check = examples(compare)
    settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])(check)()
    assert all(taken[name] >= 20 for _, name in FAST_PATHS), f"a path was hardly taken: {taken}"


def wrong_value_sizes(written: batch_module.Written) -> batch_module.Written:
    heads, new, superseded, size = written
    return heads, new, superseded, size + 1


def wrong_count(written: batch_module.Written) -> batch_module.Written:
    heads, new, superseded, size = written
    return heads, new, superseded + 1, size


def key_missing_in_the_index(written: batch_module.Written) -> batch_module.Written:
    heads, new, superseded, size = written
    return heads, new[1:], superseded, size


def history_cut_off(written: batch_module.Written) -> batch_module.Written:
    for head in written[0]:
        head.previous = None
    return written


def versions_shifted(written: batch_module.Written) -> batch_module.Written:
    for head in written[0]:
        head.version += 1
    return written


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("write_all", wrong_value_sizes),
        ("write_all", wrong_count),
        ("write_all", key_missing_in_the_index),
        ("write_all", history_cut_off),
        ("delete_heads", wrong_value_sizes),
        ("delete_heads", history_cut_off),
        ("_replace_each", wrong_count),
        ("_replace_each", versions_shifted),
        ("_add_each", key_missing_in_the_index),
        ("_link_each", wrong_value_sizes),
        ("_link_each", history_cut_off),
    ],
)
def test_a_fault_in_a_fast_path_is_found(path: str, fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    right = getattr(batch_module, path)

    def wrong(*arguments: Any) -> Any:  # noqa: ANN401
        written = right(*arguments)
        return written and fault(written)

    monkeypatch.setattr(batch_module, path, wrong)
    check = examples(compare)
    quick = settings(max_examples=2_000, deadline=None, database=None, phases=[Phase.generate], derandomize=True)
    with pytest.raises(AssertionError):
        quick(check)()
