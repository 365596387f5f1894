"""The keys that are read and written most often, and the largest keys."""

import random
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvd.protocol import messages
from kvd.requests.table import sampled_keys
from kvd.store.largest import PAGE_KEYS, largest
from kvd.store.store import Store
from kvd.telemetry.hot_keys import MAX_KEY, PERIOD_S, SAMPLE_EVERY, HotKeys, Summary
from tests.harness.clocks import ManualClock
from tests.harness.in_memory import InMemoryClient, connect


@pytest.fixture
def client() -> InMemoryClient:
    """A connection of the daemon's own user."""
    return connect()


@given(st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), max_size=400), st.integers(1, 8))
def test_a_summary_keeps_the_frequent_keys(keys: list[str], max_keys: int) -> None:
    summary = Summary(max_keys)
    for key in keys:
        summary.add([key])
    true = Counter(keys)
    assert len(summary.counts) <= 2 * max_keys
    for key, count in true.items():
        estimate = summary.counts.get(key, 0)
        assert count - len(keys) / max_keys <= estimate <= count


def test_single_gets_are_sampled_once_in_n_at_random_intervals() -> None:
    hot = HotKeys(seed=1)
    gaps = [hot.sample_get("a") for _ in range(20_000)]
    assert min(gaps) == 1
    assert max(gaps) == 2 * SAMPLE_EVERY - 1
    assert sum(gaps) / len(gaps) == pytest.approx(SAMPLE_EVERY, rel=0.03)


def test_the_estimates_are_near_the_truth() -> None:
    """Frames of all kinds, each sampled with the same probability, as the daemon does."""
    chosen = random.Random(2)  # noqa: S311  # to be repeatable
    hot = HotKeys(seed=3)
    reads: Counter[str] = Counter()
    writes: Counter[str] = Counter()
    for _ in range(200_000):
        several = [f"k{min(int(chosen.paretovariate(0.7)), 10_000)}" for _ in range(chosen.choice((1, 1, 3, 40)))]
        if chosen.random() < 0.5:
            reads.update(several)
            one_by_one: list[messages.AnyRequest] = [messages.Get(key) for key in several]
            frame = one_by_one if chosen.random() < 0.5 else [messages.GetMany(several)]
        else:
            writes.update(set(several))
            frame = [messages.Set(dict.fromkeys(several, b""))]
        if chosen.randrange(SAMPLE_EVERY) == 0:
            hot.sample_frame(frame, sampled_keys)
    for true, sampled in ((reads, hot.reads), (writes, hot.writes)):
        _, hottest = sampled.most_common(5)
        assert {key for key, _ in hottest} <= {key for key, _ in true.most_common(8)}
        for key, operations in hottest[:2]:
            assert operations == pytest.approx(true[key], rel=0.15)


def test_the_counts_cover_the_last_one_or_two_periods() -> None:
    clock = ManualClock(1000.0)
    hot = HotKeys(clock)
    hot.sample_frame([messages.Get("old")], sampled_keys)
    clock.now += PERIOD_S
    hot.sample_frame([messages.Get("new")], sampled_keys)
    covered_ms, hottest = hot.reads.most_common(10)
    assert (covered_ms, dict(hottest)) == (int(PERIOD_S * 1000), {"old": SAMPLE_EVERY, "new": SAMPLE_EVERY})
    clock.now += PERIOD_S
    assert hot.reads.most_common(10) == (int(PERIOD_S * 1000), [("new", SAMPLE_EVERY)])
    clock.now += 5 * PERIOD_S
    assert hot.reads.most_common(10)[1] == []


def test_a_very_long_key_is_not_kept() -> None:
    hot = HotKeys()
    hot.sample_frame([messages.Get("x" * (MAX_KEY + 1)), messages.Get("y" * MAX_KEY)], sampled_keys)
    hot.sample_get("x" * (MAX_KEY + 1))
    assert [key for key, _ in hot.reads.most_common(10)[1]] == ["y" * MAX_KEY]


def test_gets_that_are_alone_in_their_frames_are_counted(client: InMemoryClient) -> None:
    client.ask("set", {"a": b"1", "b": b"2"})
    for number in range(4_000):
        client.ask("get", "b" if number % 4 == 0 else "a")
    hottest = dict(client.ask("hottest", "reads", 10)[1])
    assert set(hottest) == {"a", "b"}
    assert 2_000 < hottest["a"] < 4_500
    assert hottest["b"] < hottest["a"]


def test_the_largest_keys_page_by_page() -> None:
    store = Store()
    sizes = {f"{number:05}": number * 7919 % 10_007 for number in range(2 * PAGE_KEYS + 10)}
    store.set({key: bytes(size) for key, size in sizes.items()})
    store.write({"00001": None})
    del sizes["00001"]
    result: list[tuple[str, int]] = []
    next_start: str | None = ""
    pages = 0
    while next_start is not None:
        page, next_start = largest(store, next_start, 5)
        result += page
        pages += 1
    assert pages == 3
    assert sorted(result, key=lambda item: -item[1])[:5] == sorted(sizes.items(), key=lambda item: -item[1])[:5]


def test_expired_keys_are_not_among_the_largest(client: InMemoryClient) -> None:
    client.ask("set", {"a": b"long"}, {"ttl": 5})
    client.ask("set", {"b": b"x"})
    assert client.ask("largest", "", 10) == [[["a", 4], ["b", 1]], None]
    client.timer.now += 5_000
    assert client.ask("largest", "", 10) == [[["b", 1]], None]


def test_only_administrators_may_ask(client: InMemoryClient) -> None:
    other = client.another(uid=54321)
    for request in (["largest", "", 10], ["hottest", "reads", 10], ["hottest", "writes", 10]):
        assert other.code(*request) == "forbidden"
        assert client.code(*request) == ""
        for limit in (0, 1_001):
            assert client.code(*request[:-1], limit) == "bad_request"


def test_frames_are_sampled_on_every_path(client: InMemoryClient) -> None:
    """Batched sets of several connections, several requests in a frame, and frames in slices."""
    payload = msgspec.msgpack.encode([["get", "in slices"]])
    for _ in range(40 * SAMPLE_EVERY):
        client.set_each([messages.Set({"together": b""}), messages.Set({"together": b""})])
        client.run([messages.Get("several"), messages.Get("several")], 40)
        client.sliced(payload)
    assert client.ask("hottest", "writes", 10)[1][0][0] == "together"
    assert {key for key, _ in client.ask("hottest", "reads", 10)[1]} == {"several", "in slices"}
    for key, operations in dict(client.ask("hottest", "reads", 10)[1]).items():
        assert operations > 10 * SAMPLE_EVERY, key
