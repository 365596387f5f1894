"""More keys due at once than can expire in one step: nobody sees one after its time, and nobody waits for all."""

from collections.abc import Callable
from typing import Any

import pytest

from kvd.engine.expiry import EXPIRED_KEYS
from kvd.protocol import messages
from kvd.protocol.messages import AnyRequest
from tests.harness.in_memory import InMemoryClient, connect, deadlines_us

MANY = 5 * EXPIRED_KEYS
TTL_MS = 10
VERSION = object()
# Requests of a key that is due, and what each answers: what it would if the key had never been.
NAMED: list[tuple[list[list[Any]], list[Any]]] = [
    ([["get", "KEY"]], [None]),
    ([["get", "KEY"], ["get", "stays"]], [None, b"here"]),
    ([["get_many", ["KEY", "stays"]]], [[None, b"here"]]),
    ([["ttl", ["KEY"]]], [[None]]),
    ([["touch", ["KEY"], 1000]], [[False]]),
    ([["commit", {"other": b"x"}, {"KEY": 0}]], [VERSION]),
    ([["fetch", ["KEY"]]], [[[None, 0, None, None, None]]]),
]


def with_many_due() -> tuple[InMemoryClient, Callable[[], list[int]]]:
    """Keys k0 to k(MANY - 1) are due; and in how many microseconds each timer was set since."""
    client = connect()
    client.ask("set", {f"k{number}": b"x" for number in range(MANY)}, {"ttl": TTL_MS})
    client.ask("set", {"stays": b"here"})
    client.server.scheduler.calls.clear()
    client.timer.now += TTL_MS * 1000
    return client, lambda: deadlines_us(client.database)


def left(client: InMemoryClient) -> int:
    return int(client.metric("keys_stored")) - 1


@pytest.mark.parametrize("requests", [[["get", "stays"]], [["ping"]], [["get_many", ["stays"]]]])
def test_no_frame_lets_more_expire_than_one_step(requests: list[list[Any]]) -> None:
    client, timers = with_many_due()
    for _ in range(10):
        client.batch(*requests)
    assert left(client) == MANY - EXPIRED_KEYS
    assert timers() == [0], "a timer goes on, and was set once"


def a_dead_key(client: InMemoryClient) -> str:
    """One that is due and still there."""
    client.ask("ping")  # the first step
    return next(key for key in (f"k{number}" for number in range(MANY)) if client.database.store.exists(key))


def of(key: str, part: Any) -> Any:  # noqa: ANN401
    """A request with this key in it."""
    if isinstance(part, list):
        return [of(key, each) for each in part]
    if isinstance(part, dict):
        return {of(key, name): value for name, value in part.items()}
    return key if part == "KEY" else part


@pytest.mark.parametrize(("requests", "expected"), NAMED, ids=lambda case: str(case[0])[:12])
def test_keys_that_are_named_are_gone_at_their_time(requests: list[Any], expected: list[Any]) -> None:
    client, _ = with_many_due()
    key = a_dead_key(client)
    replies = client.batch(*of(key, requests))
    assert replies == ([replies[0]] if expected == [VERSION] else expected)
    assert expected != [VERSION] or isinstance(replies[0], int)
    assert not client.database.store.exists(key)
    assert left(client) >= MANY - EXPIRED_KEYS - 1, "and no others go with it"


def test_a_number_does_not_go_on_from_a_dead_one() -> None:
    client, _ = with_many_due()
    assert client.ask("increment", a_dead_key(client), 5)[0] == 5


def test_what_is_set_meanwhile_ends_the_dead_one_first() -> None:
    client, _ = with_many_due()
    key = a_dead_key(client)
    client.ask("set", {key: b"new"})
    assert [version[1] for version in client.ask("history", key, 10)] == [b"new", None, b"x"]


def test_a_transaction_that_read_a_dead_key_meets_its_end() -> None:
    client = connect()
    version = client.ask("set", {f"k{number}": b"x" for number in range(MANY)}, {"ttl": TTL_MS})
    client.timer.now += TTL_MS * 1000
    client.ask("ping")
    waiting = next(key for key in (f"k{number}" for number in range(MANY)) if client.database.store.exists(key))
    assert client.code("commit", {"other": b"x"}, {waiting: version}) == "conflict"


@pytest.mark.parametrize(
    "request_",
    [["scan", "", None, 1000], ["begin"], ["commit", {"a": b"x"}, None, [["k", "l"]], 1]],
    ids=lambda r: r[0],
)
def test_what_sees_all_keys_waits_until_all_have_expired(request_: list[Any]) -> None:
    client, _ = with_many_due()
    reply = client.ask(*request_)
    if request_[0] == "scan":
        assert [item[0] for item in reply[0]] == ["stays"]
    assert left(client) == (0 if request_[0] != "commit" or isinstance(reply, dict) else 1)


def test_it_waits_in_steps() -> None:
    client, _ = with_many_due()
    requests: list[AnyRequest] = [messages.Scan("", None, 10)]
    assert client.run(requests, 20) is None, "in slices, then"
    assert left(client) == MANY - EXPIRED_KEYS


def test_the_timer_ends_it() -> None:
    client, _ = with_many_due()
    client.ask("ping")
    steps = 1
    while not client.database.expire_step():
        steps += 1
    assert (left(client), steps) == (0, MANY // EXPIRED_KEYS - 1)
    assert client.database.expire_due_bounded()
    client.ask("set", {"k1": b"again"}, {"ttl": TTL_MS})
    client.timer.now += TTL_MS * 1000
    assert client.ask("get", "k1") is None, "few at a time are not put off"


def test_a_watcher_that_is_told_everything_is_told_of_no_dead_key() -> None:
    """In steps, too, and only what has expired before it began."""
    client, _ = with_many_due()
    assert client.ask("watch", "", 10**9) is True  # of another store, so all is told
    feed = client.peer.feed
    assert feed is not None
    events = []
    while not feed.is_drained:
        before = left(client)
        events += feed.next_events()
        assert left(client) >= before - EXPIRED_KEYS
    assert [event[1] for event in events if event[0] == "item"] == ["stays"]
