"""Each request is answered as if it had come alone, however requests are put into frames."""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvd.protocol.limits import Limits
from kvd.requests import sliced
from tests.harness.scale import SCALE

if TYPE_CHECKING:
    from tests.harness.in_memory import InMemoryClient

Connect = Callable[..., "InMemoryClient"]
many = settings(max_examples=max(50, int(500 * SCALE)), deadline=None, suppress_health_check=[HealthCheck.too_slow])
LIMITS = Limits(max_key_bytes=6, max_value_bytes=40)
WINDOW = {"max_commits": 6}

# Mostly valid keys; also absent, empty and too long ones (of one, two and four bytes a character).
keys = st.sampled_from(["a", "b", "c", "d", "é", "ééé", "🎂", "123456", "1234567", "éééé", "🎂🎂", ""])
good_keys = st.sampled_from("abcd")
some_keys = st.lists(good_keys | keys, max_size=4)
entries = st.dictionaries(good_keys | keys, st.binary(max_size=8) | st.just(b"x" * 41), max_size=3)
at = st.none() | st.integers(0, 12)
requests = st.one_of(
    st.tuples(st.just("get"), good_keys | keys),
    st.tuples(st.just("set"), st.dictionaries(good_keys, st.binary(max_size=8), min_size=1, max_size=1)),
    st.tuples(st.just("set"), entries),
    st.tuples(st.just("get_many"), some_keys, at),
    st.tuples(st.just("delete"), some_keys, st.booleans()),
    st.tuples(st.just("scan"), keys, st.none() | keys, st.integers(0, 4), at, st.booleans()),
    st.sampled_from([("ping",), ("status",), ("reload",), ("shutdown",), ("hello", 1, "me"), ("hello", 2, "me")]),
)
# The server takes runs of one kind together, so there must be many runs.
runs = st.lists(st.tuples(requests, st.integers(1, 4)), min_size=1, max_size=12).map(
    lambda runs: [request for request, times in runs for _ in range(times)]
)
batches = st.lists(requests, min_size=1, max_size=20) | runs


def identical(one: "InMemoryClient", other: "InMemoryClient") -> bool:
    """Whether two databases are the same in every readable version and every counter."""
    stores = [client.database.store for client in (one, other)]
    assert dict(one.database.metrics()).keys() == dict(other.database.metrics()).keys()
    # How much history is left, and so its size, depends on the number of batches.
    counts = [[getattr(store.counters, name) for name in store.counters.__slots__] for store in stores]
    newest = stores[0].version
    oldest = max(store.window.oldest_readable for store in stores)
    return (
        counts[0] == counts[1]
        and newest == stores[1].version
        and all(
            stores[0].scan("", None, 100, at=version) == stores[1].scan("", None, 100, at=version)
            for version in range(oldest, newest + 1)
        )
    )


def without_store_id(replies: list[Any]) -> list[Any]:
    """Remove the store's id from replies to hello, because the two stores differ in it."""
    return [reply[:2] + reply[3:] if isinstance(reply, list) and len(reply) == 5 else reply for reply in replies]


def without_times(requests: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Make all requests ask for the present only, because batches decide when old history is pruned."""
    places = {"get_many": 2, "scan": 4}
    return [
        (*request[: places[request[0]]], None, *request[places[request[0]] + 1 :]) if request[0] in places else request
        for request in requests
    ]


@many
@given(batches)
def test_a_batch_is_answered_like_its_requests_one_by_one(connect: Connect, batch: list[tuple[Any, ...]]) -> None:
    together, alone = connect(LIMITS), connect(LIMITS)
    replies = together.batch(*map(list, batch))
    assert without_store_id(replies) == without_store_id([alone.ask(*request) for request in batch])
    assert identical(together, alone)


@many
@given(st.lists(batches, min_size=1, max_size=3))
def test_batches_are_answered_like_single_requests_when_history_is_short(
    connect: Connect, frames: list[list[tuple[Any, ...]]]
) -> None:
    together, alone = connect(LIMITS, **WINDOW), connect(LIMITS, **WINDOW)
    for batch in map(without_times, frames):
        replies = together.batch(*map(list, batch))
        assert without_store_id(replies) == without_store_id([alone.ask(*request) for request in batch])
    assert identical(together, alone)


def test_a_batch_in_slices_is_answered_like_a_small_one(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    sliced_into: Counter[int] = Counter()

    @many
    @given(st.lists(batches, min_size=1, max_size=3), st.integers(8, 80), st.integers(1, 5))
    def run(frames: list[list[tuple[Any, ...]]], slice_bytes: int, slice_requests: int) -> None:
        monkeypatch.setattr(sliced, "PART_BYTES", slice_bytes)
        monkeypatch.setattr(sliced, "PIECE_REQUESTS", slice_requests)
        small, large = connect(LIMITS), connect(LIMITS)
        for batch in frames:
            payload = msgspec.msgpack.encode(batch)
            assert without_store_id(large.sliced(payload)) == without_store_id(small.frame(payload))
            sliced_into[len(batch) // slice_requests] += 1
        assert identical(small, large)

    run()
    print("slices:", sorted(sliced_into.items()))
    assert sum(times for slices, times in sliced_into.items() if slices > 1) >= 20


def test_each_request_kind_occurs_in_the_batches() -> None:
    seen: Counter[str] = Counter()

    @many
    @given(batches)
    def run(batch: list[tuple[Any, ...]]) -> None:
        seen.update(request[0] for request in batch)

    run()
    assert sorted(seen) == ["delete", "get", "get_many", "hello", "ping", "reload", "scan", "set", "shutdown", "status"]
    assert min(seen.values()) >= 10
