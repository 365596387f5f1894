"""Into how many steps the daemon cuts the worst input of each kind of request: others have their turn between them.

The clock of slices moves by more than a slice each time it is read, so each step of the work is a turn of the loop of
its own. How long a step takes is measured by `make bench BENCHARGS='--only worst'`.
"""

from collections.abc import Callable
from typing import Any, get_args

import msgspec
import pytest

from bench.worst_inputs import WORST, WORST_ROUTES, Worst, WorstRoute
from kvd.http.listener import ROUTES, Listener
from kvd.http.requests import Request
from kvd.http.responses import Response
from kvd.protocol.limits import Limits
from kvd.protocol.messages import AnyRequest
from kvd.requests.access import AccessRule
from kvd.requests.peer import Peer
from kvd.requests.turns import SLICE_NS, Turns
from tests.harness.clocks import ManualScheduler, SliceClock
from tests.harness.in_memory import InMemoryServer, build

N = 4_096
BIG_BYTES = 1_000_000
KINDS = {kind.__struct_config__.tag for kind in get_args(AnyRequest)}
LIMITS = Limits(max_snapshots_per_connection=100_000)
encode = msgspec.msgpack.encode


def new_server(limits: Limits = LIMITS) -> InMemoryServer:
    return build(limits, clock_ns=SliceClock(), turn_ns=0)


def turns_of(server: InMemoryServer, send: Callable[[], None], is_answered: Callable[[], object]) -> int:
    """How many turns of the loop pass until what ``send`` sends is answered, that of its arrival included."""
    scheduler: Any = server.server.loop
    assert isinstance(scheduler, ManualScheduler)
    scheduler.calls.clear()
    send()
    scheduler.advance()
    assert is_answered()
    return 1 + sum(isinstance(getattr(call.callback, "__self__", None), Turns) for call in scheduler.calls)


def test_each_kind_of_request_has_a_worst_input() -> None:
    assert {worst.kind for worst in WORST} == KINDS


def test_each_route_has_a_worst_input() -> None:
    assert {route.route for route in WORST_ROUTES} == {*map(bytes.decode, ROUTES), "/v1/{key}", "/v2/keys/{key}"}


@pytest.mark.parametrize("worst", WORST, ids=lambda worst: f"{worst.kind}: {worst.title}")
def test_the_worst_input_of_each_kind_runs_in_steps(worst: Worst) -> None:
    server = new_server()
    connection = server.open(1)
    connection.peer.apply_access(server.access)
    if worst.kind in {"reload", "access", "slowlog", "largest", "hottest", "checkpoint", "backup", "shutdown"}:
        connection.session.peer = connection.peer = Peer("administrator", 0)
    send_all(server, connection, worst)
    before = len(connection.replies())
    payload = encode(worst.frame(N, BIG_BYTES))
    turns = turns_of(server, lambda: deliver(connection, payload), lambda: len(connection.replies()) > before)
    assert turns >= worst.steps(N), f"{turns} turns"
    assert turns <= 8 * N + 1_000, "no step is without work"
    reply = connection.replies()[before]
    assert isinstance(reply, list), reply
    assert len(reply) == len(worst.frame(N, BIG_BYTES))


def send_all(server: InMemoryServer, connection: Any, worst: Worst) -> None:  # noqa: ANN401 - a FakeTransport
    scheduler: Any = server.server.loop
    for requests in worst.load(N, BIG_BYTES):
        deliver(connection, encode(requests))
        scheduler.advance()
    assert not any(isinstance(reply, dict) for reply in connection.replies())


def deliver(connection: Any, payload: bytes) -> None:  # noqa: ANN401
    """A frame arrives, in pieces as large as the loop's read buffer."""
    data = len(payload).to_bytes(4, "big") + payload
    for begin in range(0, len(data), 256 * 1024):
        connection.receive(data[begin : begin + 256 * 1024])


@pytest.mark.parametrize("worst", WORST_ROUTES, ids=lambda worst: f"{worst.method} {worst.route}: {worst.title}")
def test_the_worst_input_of_each_route_runs_in_steps(worst: WorstRoute) -> None:
    server = new_server()
    client = server.connect()
    for requests in worst.load(N, BIG_BYTES):
        client.batch(*requests)
    listener = Listener(server.server, hosts=[], is_open=True, max_json_bytes=16 * 1024 * 1024)
    headers = {b"host": b"localhost", b"content-type": b"application/json"}
    request = Request(worst.method, worst.target(N).encode(), headers)
    request.body = worst.body(N)
    answers: list[object] = []
    steps = 0
    work = listener.answer(request, client.peer)
    while not answers:
        try:
            next(work)
            steps += 1
        except StopIteration as end:
            answers.append(end.value[0])
    assert steps + 1 >= worst.steps(N)
    if isinstance(answers[0], Response):
        assert answers[0].status in ((400,) if "nested" in worst.title else (200, 201)), answers[0].body


# ---------------------------------------------------------------------- what is checked first


RULES = [AccessRule(prefix=f"w{number:03}", rights=("read", "write"), uid=1000) for number in range(500)]


def ranges(count: int) -> list[object]:
    return ["commit", {"w0": b""}, None, [[f"w000{number}", f"w000{number}~"] for number in range(count)], 1]


def restricted(server: InMemoryServer) -> Any:  # noqa: ANN401 - a FakeTransport
    """A connection of a user to whom many rules apply."""
    server.set_rules([AccessRule(prefix="w0", rights=("read", "write"), uid=1000), *RULES])
    connection = server.open(1)
    connection.peer.apply_access(server.access)
    assert connection.peer.is_restricted
    return connection


def test_rights_to_many_ranges_are_checked_in_steps() -> None:
    server = new_server()
    server.connect().ask("set", {"a": b""})
    connection = restricted(server)
    turns = turns_of(server, lambda: deliver(connection, encode([ranges(N)])), connection.replies)
    assert turns >= N // 256
    assert connection.replies() == [[2]]


def test_ranges_are_counted_before_rights_to_them_are_checked() -> None:
    server = new_server(Limits(max_keys_per_request=N - 1))
    connection = restricted(server)
    turns = turns_of(server, lambda: deliver(connection, encode([ranges(N)])), connection.replies)
    assert connection.replies()[0][0]["error"] == "too_large"
    assert turns < 8


@pytest.mark.parametrize("kind", ["get_many", "fetch", "ttl", "touch", "delete", "set"])
def test_rights_to_many_keys_are_checked_in_steps(kind: str) -> None:
    server = new_server()
    connection = restricted(server)
    keys = [f"w0000{number}" for number in range(N)] + ["not allowed"]
    request = {"touch": [kind, keys, 5], "delete": [kind, keys, True], "set": [kind, dict.fromkeys(keys, b"")]}
    payload = encode([request.get(kind, [kind, keys])])
    turns = turns_of(server, lambda: deliver(connection, payload), connection.replies)
    assert connection.replies()[0][0]["error"] == "forbidden"
    assert turns >= N // 256


# ---------------------------------------------------------------------- the greeting


def stranger(server: InMemoryServer) -> Any:  # noqa: ANN401 - a FakeTransport
    connection = server.open(1)
    connection.session.peer = connection.peer = Peer("stranger", None)
    return connection


def test_the_first_frame_of_a_tcp_peer_runs_in_steps() -> None:
    server = build(LIMITS, clock_ns=SliceClock(), turn_ns=0, tokens={"secret": None})
    connection = stranger(server)
    payload = encode([["hello", 1, "x", "secret"], *[["exposition"]] * 300])
    turns = turns_of(server, lambda: deliver(connection, payload), connection.replies)
    assert turns > 300
    (replies,) = connection.replies()
    assert len(replies) == 301
    assert not any(isinstance(reply, dict) for reply in replies)


def test_a_first_frame_that_does_not_authenticate_is_the_last() -> None:
    server = build(LIMITS, clock_ns=SliceClock(), turn_ns=0, tokens={"secret": None})
    connection = stranger(server)
    payload = encode([["hello", 1, "x", "wrong"], *[["exposition"]] * 300])
    turns_of(server, lambda: deliver(connection, payload), connection.replies)
    replies, last = connection.replies()
    assert [reply["error"] for reply in replies] == ["unauthenticated"] * 301
    assert last["error"] == "unauthenticated"
    assert connection.is_closed


def test_the_first_frame_of_a_tcp_peer_shows_no_key_after_its_deadline() -> None:
    server = build(LIMITS, tokens={"secret": None})
    client = server.connect()
    names = [f"k{number}" for number in range(2_000)]
    client.ask("set", dict.fromkeys(names, b"x"), {"ttl": 10})
    server.timer.now += 10_000
    first = server.connect(None)
    hello, *values, page = first.batch(
        ["hello", 1, "x", "secret"], *[["get", name] for name in reversed(names)], ["scan", "", None, 100]
    )
    assert isinstance(hello, list)
    assert values == [None] * 2_000
    assert page == [[], None]


# ---------------------------------------------------------------------- several connections in one turn


CONNECTIONS = 16


def test_many_connections_together_do_not_extend_a_turn() -> None:
    """A turn runs some steps, whichever connections they are of; a small frame is answered meanwhile."""
    turn_steps = 4
    server = build(LIMITS, clock_ns=SliceClock(), turn_ns=turn_steps * SLICE_NS)
    attackers = [server.open(number) for number in range(1, CONNECTIONS + 1)]
    payload = encode([["status"]] * 500)
    for attacker in attackers:
        deliver(attacker, payload)
    other = server.open(99)
    deliver(other, encode([["ping"]]))
    assert other.replies() == [[True]], "before any of the others is answered"
    assert not any(attacker.replies() for attacker in attackers)
    scheduler: Any = server.server.loop
    scheduler.calls.clear()
    scheduler.advance()
    assert all(len(attacker.replies()[0]) == 500 for attacker in attackers)
    turns = sum(isinstance(getattr(call.callback, "__self__", None), Turns) for call in scheduler.calls)
    assert turns >= CONNECTIONS * 500 // turn_steps


def test_when_a_turn_is_over_large_input_waits_and_small_input_does_not() -> None:
    server = new_server()
    turns = server.server.turns
    first, second, large, small = (server.open(number) for number in (1, 2, 3, 4))
    deliver(first, encode([["status"]]))  # more than this turn's time
    deliver(second, encode([["status"]]))
    assert turns.is_over
    deliver(large, encode([["set", {f"{number}": b"x"}] for number in range(100)]))
    deliver(small, encode([["get", "a"]]))
    assert (large.replies(), small.replies()) == ([], [[None]])
    scheduler: Any = server.server.loop
    scheduler.advance()
    assert large.replies() == [list(range(1, 101))]


def test_events_of_many_feeds_share_the_turns_of_the_loop() -> None:
    server = new_server(Limits(max_watches_per_uid=CONNECTIONS))
    scheduler: Any = server.server.loop
    watchers = [server.open(number) for number in range(1, CONNECTIONS + 1)]
    for watcher in watchers:
        deliver(watcher, encode([["watch", ""]]))
    scheduler.advance()
    before = [len(watcher.replies()) for watcher in watchers]
    writer = server.open(99)
    turns = turns_of(server, lambda: deliver(writer, encode([["set", {"a": b"1"}]])), writer.replies)
    assert all(len(watcher.replies()) > count for watcher, count in zip(watchers, before, strict=True))
    assert turns > CONNECTIONS


# ---------------------------------------------------------------------- copies


def test_a_large_value_is_sent_without_a_copy() -> None:
    server = new_server()
    connection = server.open(1)
    value = bytes(BIG_BYTES)
    server.database.set({"big": value}, connection.peer.author)
    for request in (["get", "big"], ["get_many", ["big"]], ["fetch", ["big"]]):
        written: list[bytes] = []
        connection.write = written.append
        deliver(connection, encode([request] * 3))
        scheduler: Any = server.server.loop
        scheduler.advance()
        assert sum(piece is value for piece in written) == 3
        replies = msgspec.msgpack.decode(b"".join(written)[4:])
        assert b"".join(written).count(value) == 3
        assert len(replies) == 3
