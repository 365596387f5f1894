"""More keys due at once than can expire in one step: no client sees a due key, and no client waits for all of them."""

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
# Requests that name a due key, with their replies: the same as if the key had never existed.
REQUESTS: list[tuple[list[list[Any]], list[Any]]] = [
    ([["get", "KEY"]], [None]),
    ([["get", "KEY"], ["get", "stays"]], [None, b"here"]),
    ([["get_many", ["KEY", "stays"]]], [[None, b"here"]]),
    ([["ttl", ["KEY"]]], [[None]]),
    ([["touch", ["KEY"], 1000]], [[False]]),
    ([["commit", {"other": b"x"}, {"KEY": 0}]], [VERSION]),
    ([["fetch", ["KEY"]]], [[[None, 0, None, None, None]]]),
]


def with_many_due() -> tuple[InMemoryClient, Callable[[], list[int]]]:
    """Make keys k0 to k(MANY - 1) due. The returned function gives the delays of all timers since, in microseconds."""
    client = connect()
    client.ask("set", {f"k{number}": b"x" for number in range(MANY)}, {"ttl": TTL_MS})
    client.ask("set", {"stays": b"here"})
    client.server.scheduler.calls.clear()
    client.timer.now += TTL_MS * 1000
    return client, lambda: deadlines_us(client.database)


def keys_left(client: InMemoryClient) -> int:
    return int(client.metric("keys_stored")) - 1


@pytest.mark.parametrize("requests", [[["get", "stays"]], [["ping"]], [["get_many", ["stays"]]]])
def test_no_frame_expires_more_keys_than_one_step(requests: list[list[Any]]) -> None:
    client, timers = with_many_due()
    for _ in range(10):
        client.batch(*requests)
    assert keys_left(client) == MANY - EXPIRED_KEYS
    assert timers() == [0], "one timer is set for the rest"


def due_key(client: InMemoryClient) -> str:
    """A key that is due and still in the store."""
    client.ask("ping")  # the first step
    return next(key for key in (f"k{number}" for number in range(MANY)) if client.database.store.exists(key))


def with_key(key: str, part: Any) -> Any:  # noqa: ANN401
    """A request with this key in place of KEY."""
    if isinstance(part, list):
        return [with_key(key, each) for each in part]
    if isinstance(part, dict):
        return {with_key(key, name): value for name, value in part.items()}
    return key if part == "KEY" else part


@pytest.mark.parametrize(("requests", "expected"), REQUESTS, ids=lambda case: str(case[0])[:12])
def test_a_request_that_names_a_due_key_expires_that_key_alone(requests: list[Any], expected: list[Any]) -> None:
    client, _ = with_many_due()
    key = due_key(client)
    replies = client.batch(*with_key(key, requests))
    assert replies == ([replies[0]] if expected == [VERSION] else expected)
    assert expected != [VERSION] or isinstance(replies[0], int)
    assert not client.database.store.exists(key)
    assert keys_left(client) >= MANY - EXPIRED_KEYS - 1, "no other keys expire with it"


def test_an_increment_of_a_due_key_starts_from_zero() -> None:
    client, _ = with_many_due()
    assert client.ask("increment", due_key(client), 5)[0] == 5


def test_a_set_of_a_due_key_expires_the_old_value_first() -> None:
    client, _ = with_many_due()
    key = due_key(client)
    client.ask("set", {key: b"new"})
    assert [version[1] for version in client.ask("history", key, 10)] == [b"new", None, b"x"]


def test_a_transaction_that_read_a_due_key_conflicts_with_its_expiry() -> None:
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
def test_a_request_that_sees_all_keys_waits_until_all_have_expired(request_: list[Any]) -> None:
    client, _ = with_many_due()
    reply = client.ask(*request_)
    if request_[0] == "scan":
        assert [item[0] for item in reply[0]] == ["stays"]
    assert keys_left(client) == (0 if request_[0] != "commit" or isinstance(reply, dict) else 1)


def test_a_request_that_sees_all_keys_runs_in_slices() -> None:
    client, _ = with_many_due()
    requests: list[AnyRequest] = [messages.Scan("", None, 10)]
    assert client.run(requests, 20) is None, "the request must run in slices"
    assert keys_left(client) == MANY - EXPIRED_KEYS


def test_the_timer_expires_the_rest() -> None:
    client, _ = with_many_due()
    client.ask("ping")
    steps = 1
    while not client.database.expire_step():
        steps += 1
    assert (keys_left(client), steps) == (0, MANY // EXPIRED_KEYS - 1)
    assert client.database.expire_due_bounded()
    client.ask("set", {"k1": b"again"}, {"ttl": TTL_MS})
    client.timer.now += TTL_MS * 1000
    assert client.ask("get", "k1") is None, "a few due keys expire at once"


def test_a_resynchronised_watcher_receives_no_due_key() -> None:
    """Its keys expire in steps, too, and before the first item is sent."""
    client, _ = with_many_due()
    assert client.ask("watch", "", 10**9) is True  # a version of another store, so all keys are sent
    feed = client.peer.feed
    assert feed is not None
    events = []
    while not feed.is_drained:
        before = keys_left(client)
        events += feed.next_events()
        assert keys_left(client) >= before - EXPIRED_KEYS
    assert [event[1] for event in events if event[0] == "item"] == ["stays"]


@pytest.mark.parametrize(
    "request_", [messages.Begin(), messages.Scan("", None, 10), messages.Commit({}, None, [("k", "l")], 1)]
)
def test_a_request_that_sees_all_keys_waits_only_for_those_that_were_due_when_it_came(request_: AnyRequest) -> None:
    client, _ = with_many_due()
    writer = client.another()
    for steps, _ in enumerate(client.server.executor.expire_for([request_])):
        writer.ask("set", {f"w{steps}.{number}": b"x" for number in range(4 * EXPIRED_KEYS)}, {"ttl": 1})
        client.timer.now += 1_000
        assert steps <= MANY // EXPIRED_KEYS + 1, "another client keeps it waiting"
    left = [item[0] for item in client.ask("scan", "k", "l", 1_000)[0]]
    assert left == []


def test_a_watch_is_resynchronised_although_other_keys_become_due_all_the_time() -> None:
    client, _ = with_many_due()
    writer = client.another()
    assert client.ask("watch", "k", 10**9) is True
    feed = client.peer.feed
    assert feed is not None
    steps = 0
    while not any(event[0] == "reset" for event in feed.next_events()):
        writer.ask("set", {f"w{steps}.{number}": b"x" for number in range(4 * EXPIRED_KEYS)}, {"ttl": 1})
        client.timer.now += 1_000
        steps += 1
        assert steps <= MANY // EXPIRED_KEYS + 1, "another client keeps it waiting"
