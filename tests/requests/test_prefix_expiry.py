"""Expiry by prefix: the default TTL of a prefix and its maximum."""

from typing import TYPE_CHECKING, Any

import pytest

from kvd.store.prefixes import PrefixRule, PrefixRules

if TYPE_CHECKING:
    from tests.harness.in_memory import InMemoryClient

RULES = PrefixRules(
    [
        PrefixRule(prefix="s/", ttl_ms=100, max_ttl_ms=1_000),
        PrefixRule(prefix="s/free/"),
        PrefixRule(prefix="m/", max_ttl_ms=500),
    ]
)


@pytest.fixture
def ruled(client: "InMemoryClient") -> "InMemoryClient":
    client.database.memory.set_rules(RULES)
    return client


WRITES: dict[str, Any] = {
    "set": lambda key, options: ["set", {key: b"1"}, options],
    "commit": lambda key, options: ["commit", {key: b"1"}, {}, [], None, options],
    "increment": lambda key, options: ["increment", key, 1, options],
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    ("key", "options", "left"),
    [
        ("s/a", None, 100),
        ("s/a", {"ttl": 1_000}, 1_000),
        ("m/a", None, 500),
        ("m/a", {"ttl": 7}, 7),
        ("s/free/a", None, -1),
        ("a", None, -1),
        ("a", {"ttl": 10**9}, 10**9),
    ],
)
def test_keys_get_the_ttl_of_their_prefix_unless_the_write_has_one(
    ruled: "InMemoryClient", write: str, key: str, options: dict[str, int] | None, left: int
) -> None:
    assert ruled.code(*WRITES[write](key, options)) == ""
    assert ruled.ask("ttl", [key]) == [left]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("options", [{"ttl": 1_001}, {"ttls": {"s/a": 1_001}}])
def test_a_ttl_over_the_maximum_of_the_prefix_is_an_error_and_nothing_is_written(
    ruled: "InMemoryClient", write: str, options: dict[str, Any]
) -> None:
    assert ruled.code(*WRITES[write]("s/a", options)) == "bad_request"
    assert ruled.ask("get", "s/a") is None


@pytest.mark.parametrize("ttl", [1_001, None])
def test_a_touch_over_the_maximum_ttl_is_an_error_and_touches_no_key(ruled: "InMemoryClient", ttl: int | None) -> None:
    ruled.ask("set", {"s/a": b"1", "a": b"1"})
    assert ruled.code("touch", ["a", "s/a"], ttl) == "bad_request"
    assert ruled.ask("ttl", ["a", "s/a"]) == [-1, 100]
    assert ruled.ask("touch", ["a", "s/a"], 1_000) == [True, True]
    assert ruled.ask("ttl", ["a", "s/a"]) == [1_000, 1_000]


def test_an_increment_keeps_the_ttl_of_its_key(ruled: "InMemoryClient") -> None:
    ruled.ask("increment", "s/n", 1, {"ttl": 1_000})
    ruled.timer.now += 400_000
    ruled.ask("increment", "s/n", 1)
    assert ruled.ask("ttl", ["s/n"]) == [600]


def test_every_write_of_a_run_gets_the_ttl_of_its_prefix(ruled: "InMemoryClient") -> None:
    ruled.batch(["set", {"s/a": b"1"}], ["set", {"m/a": b"1"}], ["set", {"a": b"1"}])
    assert ruled.ask("ttl", ["s/a", "m/a", "a"]) == [100, 500, -1]
    ruled.timer.now += 100_000
    assert ruled.ask("get_many", ["s/a", "m/a", "a"]) == [None, b"1", b"1"]
