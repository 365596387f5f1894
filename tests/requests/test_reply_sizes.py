"""The replies to a frame never exceed their room: neither where they are counted nor where that seems not needed."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.msgpack import decode, encode

from kvd.engine.generations import GenerationTable
from kvd.protocol.limits import Limits
from kvd.protocol.messages import decode_batch
from kvd.requests.peer import Peer
from kvd.requests.reply_size import may_exceed, reply_bytes

if TYPE_CHECKING:
    from tests.harness.in_memory import InMemoryClient

Connect = Callable[..., "InMemoryClient"]
ROOM = 4_096
# Each reply that is replaced becomes an error of no more than this.
REPLACED_BYTES = 150
ways = pytest.mark.parametrize("way", ["whole", "in slices"])


def replies_to(client: "InMemoryClient", way: str, *requests: list[Any]) -> list[Any]:
    payload = encode(requests)
    replies: list[Any] = client.frame(payload) if way == "whole" else client.sliced(payload)
    return replies


def full(client: "InMemoryClient", kind: str) -> list[Any]:
    """Prepare replies of about 6 KiB, and make the request for one."""
    big = b"x" * 3_000
    if kind == "fetch":
        client.ask("set", {"a": big, "b": big})
        return ["fetch", ["a", "b"]]
    if kind == "fetch of absent keys":
        return ["fetch", [f"{number}" for number in range(1_000)]]
    if kind == "history":
        client.batch(["set", {"a": big}], ["set", {"a": big}])
        return ["history", "a", 10]
    if kind == "log":
        client.ask("set", {f"{number:04}" + "x" * 100: b"" for number in range(60)})
        return ["log", 0, 10]
    if kind == "newest log":
        client.ask("set", {f"{number:04}" + "x" * 100: b"" for number in range(60)})
        return ["log", None, 1]
    if kind == "scan":
        client.ask("set", {"a": big, "b": big})
        return ["scan", "", None, 10]
    if kind == "conflict":
        client.ask("set", {f"{number:04}" + "x" * 20: b"" for number in range(100)})
        return ["commit", {"w": b""}, None, [["", None]], 0]
    assert kind == "get_many"
    client.ask("set", {"a": big, "b": big})
    return ["get_many", ["a", "b"]]


KINDS = ("fetch", "fetch of absent keys", "history", "log", "newest log", "scan", "conflict", "get_many")


@ways
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_reply_that_does_not_fit_is_replaced_and_small_ones_are_not(
    connect: Connect, kind: str, way: str, count: int
) -> None:
    client = connect(Limits(max_reply_bytes=ROOM))
    request = full(client, kind)
    roomy = connect(Limits(), uid=0)
    assert len(encode(roomy.ask(*full(roomy, kind)))) > ROOM, "there is something to replace"
    replies = replies_to(client, way, *[request] * count, ["ping"])
    assert [reply["error"] for reply in replies[:-1]] == ["reply_too_large"] * count
    assert replies[-1] is True
    assert len(encode(replies)) < ROOM


@ways
@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_that_fits_is_left_alone_and_the_next_that_does_not_is_replaced(
    connect: Connect, kind: str, way: str
) -> None:
    client = connect(Limits(max_reply_bytes=ROOM * 2))
    request = full(client, kind)
    first, second = replies_to(client, way, request, request)
    assert not isinstance(first, dict) or first["error"] == "conflict"
    assert second["error"] == "reply_too_large"


def test_the_log_of_a_very_large_commit_does_not_break_the_bound(connect: Connect) -> None:
    """A page of the log holds one commit at least: keys that died with their connection may be hundreds of MiB."""
    client = connect()
    other = client.another()
    for first in range(0, 20_000, 2_000):
        keys = {f"{number:05}" + "x" * 4_000: b"" for number in range(first, first + 2_000)}
        assert other.code("set", keys, {"ephemeral": True}) == ""
    other.disconnect()
    assert client.code("log", None, 1) == "reply_too_large"


@pytest.mark.parametrize("request_", [["hello", 1, ""], ["metrics"], ["status"], ["reload"]])
def test_short_requests_with_long_replies_are_counted(connect: Connect, request_: list[Any]) -> None:
    client = connect(Limits(max_reply_bytes=ROOM))
    client.backend.status = lambda: [("listening", "tcp://127.0.0.1:7070 " * 60)]
    replies = client.batch(*[request_] * 4)
    kept = [reply for reply in replies if not isinstance(reply, dict) or reply["error"] != "reply_too_large"]
    assert len(encode(kept)) <= ROOM + 5


def test_what_a_conflict_says_is_bounded_whatever_the_keys(connect: Connect) -> None:
    """Keys of four-byte characters, the last of them the longest, changed by an author with the longest name."""
    from kvd.requests.reply_size import CONFLICT_BYTES

    client = connect(Limits(max_key_bytes=65_536))
    client.peer = Peer("x", 2**32 - 2, 2**22, "\ufffd" * 64)
    client.ask("set", {"\U0001f382" * 16_384: b""})
    client.ask("set", {f"{number:03}" + "\U0001f382" * 37: b"" for number in range(99)})
    refused = client.ask("commit", {}, None, [["", None]], 0)
    assert len(refused["conflicts"]) == 100
    assert len(encode(refused)) < CONFLICT_BYTES


# ---------------------------------------------------------------------- any frame at all

KEYS = ["a", "b", "c", "\U0001f382" * 6, "x" * 24, "", "absent", "\x01" * 24]
keys = st.sampled_from(KEYS)
many_keys = st.lists(keys, max_size=8)
small = st.integers(0, 12)
requests = st.one_of(
    st.tuples(st.just("get"), keys),
    st.tuples(st.just("get_many"), many_keys, st.none() | st.integers(-1, 3)),
    st.tuples(st.just("fetch"), many_keys, st.none() | st.integers(-1, 3)),
    st.tuples(st.just("set"), st.dictionaries(keys, st.binary(max_size=200), max_size=3)),
    st.tuples(st.just("delete"), many_keys, st.booleans()),
    st.tuples(st.just("increment"), keys, st.integers(-(2**63), 2**64 - 1)),
    st.tuples(st.just("touch"), many_keys, st.none() | st.integers(-1, 5)),
    st.tuples(st.just("ttl"), many_keys),
    st.tuples(st.just("scan"), keys, st.none() | keys, st.sampled_from([0, 1, 100]), st.none(), st.booleans()),
    st.tuples(st.just("history"), keys, st.sampled_from([0, 1, 100])),
    st.tuples(st.just("log"), st.none() | small, st.sampled_from([0, 1, 100])),
    st.tuples(st.just("commit"), st.just({}), st.dictionaries(keys, small, max_size=5)),
    st.tuples(st.just("commit"), st.just({}), st.none(), st.just([["", None]]), small),
    st.tuples(st.just("version_at"), st.integers(0, 2**63)),
    st.tuples(st.just("end"), small),
    st.tuples(st.sampled_from(["begin", "ping", "metrics", "status", "reload"])),
    st.tuples(st.just("hello"), st.integers(0, 2), st.just("")),
    st.tuples(st.just("watch"), keys),
)
frames = st.lists(requests, min_size=1, max_size=12).flatmap(
    lambda some: st.integers(1, 20).map(lambda times: [list(request) for request in some] * times)
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@example(some=[["hello", 1, ""]] * 60, room=ROOM, near=False)
@example(some=[["metrics"]] * 60, room=ROOM, near=False)
@example(some=[["fetch", [], 0]] * 60, room=ROOM, near=False)
@example(some=[["fetch", ["absent", "\x01" * 24] * 4]] * 20, room=ROOM, near=True)
@given(some=frames, room=st.sampled_from([ROOM, 2 * ROOM, 10 * ROOM, 1_000 * ROOM]), near=st.booleans())
def test_replies_that_need_not_be_counted_fit(connect: Connect, some: list[list[Any]], room: int, near: bool) -> None:
    limits = Limits(max_key_bytes=24, max_value_bytes=200, max_snapshots_per_connection=3)
    client = connect(limits, max_commits=30)
    if near:
        tell_generations(client)
    for number in range(20):
        client.ask("set", {key: bytes([number]) * number * 10 for key in KEYS[:5]}, {"ttl": 1_000_000})
    payload = encode(some)
    decoded = decode_batch(payload)
    kinds, largest = set(map(type, decoded)), max(client.database.store.largest_value_bytes, len(payload))
    is_to_be_counted = may_exceed(room, kinds, len(decoded), len(payload), largest)
    size = len(encode(client.frame(payload)))
    assert is_to_be_counted or size <= room + 5
    # And where they are counted, they are counted right.
    client = connect(Limits(max_key_bytes=24, max_value_bytes=200, max_reply_bytes=room), max_commits=30)
    if near:
        tell_generations(client)
    replies = client.frame(payload)
    kept = [reply for reply in replies if not isinstance(reply, dict) or reply["error"] != "reply_too_large"]
    assert len(encode(kept)) <= room + 5
    assert len(encode(replies)) <= room + len(replies) * REPLACED_BYTES


def tell_generations(client: "InMemoryClient") -> None:
    """As if somebody had a near cache: fetch tells slots and generations, the widest there are."""
    table = GenerationTable(1 << 17)
    table._raised = 1 << 60
    table.bump([*KEYS, "a", "b"])
    client.database.generations.table = table


@settings(max_examples=200, deadline=None)
@given(some=frames, near=st.booleans())
def test_no_reply_is_larger_than_it_is_counted(connect: Connect, some: list[list[Any]], near: bool) -> None:
    client = connect(max_commits=30)
    if near:
        tell_generations(client)
    client.ask("set", dict.fromkeys(KEYS[:4], b"x" * 300), {"ttl": 1_000_000})
    for request in decode_batch(encode(some)):
        reply = client.run_one(request)
        assert len(encode(reply)) <= reply_bytes(request, reply)
        assert decode(encode(reply)) is not ...
