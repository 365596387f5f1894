"""The replies to a frame never exceed their limit, whether they are counted or the estimate says that they fit."""

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
REPLY_BYTES = 4_096
# The maximum size of the error that replaces a reply.
REPLACED_BYTES = 150
all_paths = pytest.mark.parametrize("path", ["whole", "in slices"])


def replies_to(client: "InMemoryClient", path: str, *requests: list[Any]) -> list[Any]:
    payload = encode(requests)
    replies: list[Any] = client.frame(payload) if path == "whole" else client.sliced(payload)
    return replies


def prepare_large_reply(client: "InMemoryClient", kind: str) -> list[Any]:
    """Prepare a reply of about 6 KiB. Return the request for it."""
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


@all_paths
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_reply_that_does_not_fit_is_replaced_and_small_ones_are_not(
    connect: Connect, kind: str, path: str, count: int
) -> None:
    client = connect(Limits(max_reply_bytes=REPLY_BYTES))
    request = prepare_large_reply(client, kind)
    unlimited = connect(Limits(), uid=0)
    assert len(encode(unlimited.ask(*prepare_large_reply(unlimited, kind)))) > REPLY_BYTES, (
        "the reply is over the limit"
    )
    replies = replies_to(client, path, *[request] * count, ["ping"])
    assert [reply["error"] for reply in replies[:-1]] == ["reply_too_large"] * count
    assert replies[-1] is True
    assert len(encode(replies)) < REPLY_BYTES


@all_paths
@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_that_fits_is_kept_and_the_next_that_does_not_is_replaced(
    connect: Connect, kind: str, path: str
) -> None:
    client = connect(Limits(max_reply_bytes=REPLY_BYTES * 2))
    request = prepare_large_reply(client, kind)
    first, second = replies_to(client, path, request, request)
    assert not isinstance(first, dict) or first["error"] == "conflict"
    assert second["error"] == "reply_too_large"


def test_the_log_of_a_very_large_commit_does_not_exceed_the_limit(connect: Connect) -> None:
    """A page of the log has at least one commit. One of the ends of ephemeral keys may have some MiB."""
    client = connect()
    client.server.set_limits(Limits(max_reply_bytes=1_000_000))
    other = client.another()
    keys = {f"{number:05}" + "x" * 4_000: b"" for number in range(2_000)}
    assert other.code("set", keys, {"ephemeral": True}) == ""
    other.disconnect()
    assert client.code("log", None, 1) == "reply_too_large"


@pytest.mark.parametrize("request_", [["hello", 1, ""], ["metrics"], ["status"], ["reload"]])
def test_short_requests_with_long_replies_are_counted(connect: Connect, request_: list[Any]) -> None:
    client = connect(Limits(max_reply_bytes=REPLY_BYTES))
    client.backend.status = lambda: [("listening", "tcp://127.0.0.1:7070 " * 60)]
    replies = client.batch(*[request_] * 4)
    kept = [reply for reply in replies if not isinstance(reply, dict) or reply["error"] != "reply_too_large"]
    assert len(encode(kept)) <= REPLY_BYTES + 5


def test_the_size_of_a_conflict_error_is_bounded_whatever_the_keys(connect: Connect) -> None:
    """The keys have four-byte characters, the last key is the longest, and so is the author's name."""
    from kvd.requests.reply_size import CONFLICT_BYTES

    client = connect(Limits(max_key_bytes=65_536))
    client.peer = Peer("x", 2**32 - 2, 2**22, "\ufffd" * 64)
    client.ask("set", {"\U0001f382" * 16_384: b""})
    client.ask("set", {f"{number:03}" + "\U0001f382" * 37: b"" for number in range(99)})
    error = client.ask("commit", {}, None, [["", None]], 0)
    assert len(error["conflicts"]) == 100
    assert len(encode(error)) < CONFLICT_BYTES


# ---------------------------------------------------------------------- random frames

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
    lambda sequence: st.integers(1, 20).map(lambda times: [list(request) for request in sequence] * times)
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@example(requests_=[["hello", 1, ""]] * 60, max_reply_bytes=REPLY_BYTES, near=False)
@example(requests_=[["metrics"]] * 60, max_reply_bytes=REPLY_BYTES, near=False)
@example(requests_=[["fetch", [], 0]] * 60, max_reply_bytes=REPLY_BYTES, near=False)
@example(requests_=[["fetch", ["absent", "\x01" * 24] * 4]] * 20, max_reply_bytes=REPLY_BYTES, near=True)
@given(
    requests_=frames,
    max_reply_bytes=st.sampled_from([REPLY_BYTES, 2 * REPLY_BYTES, 10 * REPLY_BYTES, 1_000 * REPLY_BYTES]),
    near=st.booleans(),
)
def test_replies_that_need_not_be_counted_fit(
    connect: Connect, requests_: list[list[Any]], max_reply_bytes: int, near: bool
) -> None:
    limits = Limits(max_key_bytes=24, max_value_bytes=200, max_snapshots_per_connection=3)
    client = connect(limits, max_commits=30)
    if near:
        share_wide_generations(client)
    for number in range(20):
        client.ask("set", {key: bytes([number]) * number * 10 for key in KEYS[:5]}, {"ttl": 1_000_000})
    payload = encode(requests_)
    decoded = decode_batch(payload)
    kinds, largest = set(map(type, decoded)), max(client.database.store.largest_value_bytes, len(payload))
    must_count = may_exceed(max_reply_bytes, kinds, len(decoded), len(payload), largest)
    size = len(encode(client.frame(payload)))
    assert must_count or size <= max_reply_bytes + 5
    # And if the replies are counted, they are counted correctly.
    client = connect(Limits(max_key_bytes=24, max_value_bytes=200, max_reply_bytes=max_reply_bytes), max_commits=30)
    if near:
        share_wide_generations(client)
    replies = client.frame(payload)
    kept = [reply for reply in replies if not isinstance(reply, dict) or reply["error"] != "reply_too_large"]
    assert len(encode(kept)) <= max_reply_bytes + 5
    assert len(encode(replies)) <= max_reply_bytes + len(replies) * REPLACED_BYTES


def share_wide_generations(client: "InMemoryClient") -> None:
    """Make fetch answer slots and generations of the widest form, as if a client had a near cache."""
    table = GenerationTable(1 << 17)
    table._raised = 1 << 60
    table.bump([*KEYS, "a", "b"])
    client.database.generations.table = table


@settings(max_examples=200, deadline=None)
@given(requests_=frames, near=st.booleans())
def test_no_reply_is_larger_than_it_is_counted(connect: Connect, requests_: list[list[Any]], near: bool) -> None:
    client = connect(max_commits=30)
    if near:
        share_wide_generations(client)
    client.ask("set", dict.fromkeys(KEYS[:4], b"x" * 300), {"ttl": 1_000_000})
    for request in decode_batch(encode(requests_)):
        reply = client.run_one(request)
        assert len(encode(reply)) <= reply_bytes(request, reply)
        assert decode(encode(reply)) is not ...
