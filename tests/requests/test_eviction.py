"""Which keys go when a cache is full: as its users see it, by requests."""

from typing import Any

import pytest

from kvd.store.prefixes import PrefixRule, PrefixRules
from tests.harness.in_memory import InMemoryClient, connect

MOST = 8


@pytest.fixture
def cache() -> InMemoryClient:
    """A cache of MOST keys, all of which are there, and none of which was read."""
    client = connect()
    client.database.memory.set_rules(PrefixRules([PrefixRule(prefix="", max_keys=MOST, evict=True)]))
    for number in range(MOST):
        client.ask("set", {f"k{number}": b"1"})
    return client


def there(client: InMemoryClient) -> set[str]:
    return {item[0] for item in client.ask("scan", "", None, 100, None, True)[0]}


@pytest.mark.parametrize(
    "read",
    [[["get", "k0"]], [["get", "k0"], ["get", "k0"]], [["get_many", ["k0"]]], [["fetch", ["k0"]]]],
    ids=["get", "gets", "get_many", "fetch"],
)
def test_what_is_read_stays_and_what_is_not_goes_oldest_first(cache: InMemoryClient, read: list[Any]) -> None:
    cache.batch(*read)
    cache.ask("set", {"new1": b"1"})
    cache.ask("set", {"new2": b"1"})
    assert there(cache) == {"k0", *(f"k{number}" for number in range(3, MOST)), "new1", "new2"}


@pytest.mark.parametrize(
    "ask",
    [[["get", "KEY"]], [["get", "KEY"], ["get", "k0"]], [["get_many", ["KEY"]]], [["fetch", ["KEY"]]]],
    ids=["get", "gets", "get_many", "fetch"],
)
def test_a_scan_of_keys_that_are_asked_for_once_does_not_drive_out_what_is_in_use(
    cache: InMemoryClient, ask: list[Any]
) -> None:
    for number in range(3 * MOST):
        cache.ask("get", "k0")
        name = f"scan{number}"
        cache.batch(
            *([*part[:1], name if part[1] == "KEY" else [name] if part[1] == ["KEY"] else part[1]] for part in ask)
        )
        cache.ask("set", {name: b"1"})
        assert "k0" in there(cache)
        if number >= MOST:  # by then all the others have gone, and each new one has to make way for the next
            assert sum(key.startswith("scan") for key in there(cache)) == MOST - 1


def test_a_key_that_was_asked_for_in_vain_begins_unmarked(cache: InMemoryClient) -> None:
    """The hand passes from the oldest to the newest: with a mark it would pass over this one once."""
    for number in range(MOST):
        cache.ask("get", f"k{number}")
    assert cache.ask("get", "in vain") is None
    cache.ask("set", {"in vain": b"1"})  # k0 goes; all others have lost their marks
    for number in range(1, MOST):
        cache.ask("get", f"k{number}")
    cache.ask("set", {"other": b"1"})
    assert "in vain" not in there(cache)


def test_an_evicted_key_that_comes_again_begins_at_the_end_unmarked(cache: InMemoryClient) -> None:
    cache.ask("set", {"new": b"1"})
    assert "k0" not in there(cache)
    cache.ask("set", {"k0": b"again"})  # k1 goes
    for number in range(2, MOST):  # and now all that are older than k0, and new
        cache.ask("set", {f"newer{number}": b"1"})
        assert f"k{number}" not in there(cache)
        assert "k0" in there(cache)
    cache.ask("set", {"last1": b"1"})
    cache.ask("set", {"last2": b"1"})
    assert not {"new", "k0"} & there(cache), "then they are the oldest"


def test_a_key_that_is_deleted_and_set_again_and_again_takes_one_place(cache: InMemoryClient) -> None:
    for _ in range(5_000):
        cache.ask("delete", ["k0"])
        cache.ask("set", {"k0": b"1"})
    [quota] = cache.database.memory._quotas.all.values()
    assert quota.sieve is not None
    assert len(quota.sieve) < 2 * MOST
