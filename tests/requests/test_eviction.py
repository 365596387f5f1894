"""The keys that are evicted when a cache is full, as clients see it through requests."""

from typing import Any

import pytest

from kvd.store.prefixes import PrefixRule, PrefixRules
from tests.harness.in_memory import InMemoryClient, connect

MAX_KEYS = 8


@pytest.fixture
def cache() -> InMemoryClient:
    """A full cache of MAX_KEYS keys. None of them has been read."""
    client = connect()
    client.database.memory.set_rules(PrefixRules([PrefixRule(prefix="", max_keys=MAX_KEYS, evict=True)]))
    for number in range(MAX_KEYS):
        client.ask("set", {f"k{number}": b"1"})
    return client


def present_keys(client: InMemoryClient) -> set[str]:
    return {item[0] for item in client.ask("scan", "", None, 100, None, True)[0]}


@pytest.mark.parametrize(
    "read",
    [[["get", "k0"]], [["get", "k0"], ["get", "k0"]], [["get_many", ["k0"]]], [["fetch", ["k0"]]]],
    ids=["get", "gets", "get_many", "fetch"],
)
def test_a_read_key_stays_and_unread_keys_are_evicted_oldest_first(cache: InMemoryClient, read: list[Any]) -> None:
    cache.batch(*read)
    cache.ask("set", {"new1": b"1"})
    cache.ask("set", {"new2": b"1"})
    assert present_keys(cache) == {"k0", *(f"k{number}" for number in range(3, MAX_KEYS)), "new1", "new2"}


@pytest.mark.parametrize(
    "requests",
    [[["get", "KEY"]], [["get", "KEY"], ["get", "k0"]], [["get_many", ["KEY"]]], [["fetch", ["KEY"]]]],
    ids=["get", "gets", "get_many", "fetch"],
)
def test_keys_that_are_read_once_do_not_evict_a_key_in_use(cache: InMemoryClient, requests: list[Any]) -> None:
    for number in range(3 * MAX_KEYS):
        cache.ask("get", "k0")
        name = f"scan{number}"
        cache.batch(
            *([*part[:1], name if part[1] == "KEY" else [name] if part[1] == ["KEY"] else part[1]] for part in requests)
        )
        cache.ask("set", {name: b"1"})
        assert "k0" in present_keys(cache)
        if number >= MAX_KEYS:  # all the others are evicted by then, and each new key evicts the one before it
            assert sum(key.startswith("scan") for key in present_keys(cache)) == MAX_KEYS - 1


def test_a_key_that_was_read_while_absent_begins_unmarked(cache: InMemoryClient) -> None:
    """The hand moves from the oldest key to the newest. It would skip this key once if the key had a mark."""
    for number in range(MAX_KEYS):
        cache.ask("get", f"k{number}")
    assert cache.ask("get", "absent") is None
    cache.ask("set", {"absent": b"1"})  # k0 is evicted; all others have lost their marks
    for number in range(1, MAX_KEYS):
        cache.ask("get", f"k{number}")
    cache.ask("set", {"other": b"1"})
    assert "absent" not in present_keys(cache)


def test_an_evicted_key_that_is_set_again_begins_newest_and_unmarked(cache: InMemoryClient) -> None:
    cache.ask("set", {"new": b"1"})
    assert "k0" not in present_keys(cache)
    cache.ask("set", {"k0": b"again"})  # k1 is evicted
    for number in range(2, MAX_KEYS):  # these evict the keys that are older than k0 and new
        cache.ask("set", {f"newer{number}": b"1"})
        assert f"k{number}" not in present_keys(cache)
        assert "k0" in present_keys(cache)
    cache.ask("set", {"last1": b"1"})
    cache.ask("set", {"last2": b"1"})
    assert not {"new", "k0"} & present_keys(cache), "new and k0 are the oldest now"


def test_a_key_that_is_deleted_and_set_repeatedly_takes_one_place(cache: InMemoryClient) -> None:
    for _ in range(5_000):
        cache.ask("delete", ["k0"])
        cache.ask("set", {"k0": b"1"})
    [quota] = cache.database.memory._quotas.all.values()
    assert quota.sieve is not None
    assert len(quota.sieve) < 2 * MAX_KEYS
