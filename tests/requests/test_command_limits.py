"""Each limit of a request, just below, at and just above it; and the size limit of replies."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from kvd.protocol import messages
from kvd.protocol.limits import Limits

if TYPE_CHECKING:
    from tests.harness.in_memory import InMemoryClient

Connect = Callable[..., "InMemoryClient"]
WIDTHS = {1: "a", 2: "é", 3: "\uffff", 4: "🎂"}  # bytes of UTF-8 → a character
KEY_BYTES = 24


def key_of(size: int, width: int) -> str:
    """A key of ``size`` bytes, with as many characters of ``width`` bytes as fit."""
    key = WIDTHS[width] * (size // width) + "a" * (size % width)
    assert len(key.encode()) == size
    return key


# Requests that name a key, alone in their frame and among others, because runs of one kind are taken together.
NAMING: dict[str, Callable[[str], list[list[Any]]]] = {
    "get": lambda key: [["get", key]],
    "get_many": lambda key: [["get_many", ["other", key]]],
    "set": lambda key: [["set", {"other": b"", key: b""}]],
    "delete": lambda key: [["delete", ["other", key], True]],
    "get among gets": lambda key: [["get", key], ["get", "other"]],
    "set among sets": lambda key: [["set", {key: b""}], ["set", {"other": b""}]],
    "set among bigger sets": lambda key: [["set", {key: b"", "x": b""}], ["set", {"other": b""}]],
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("naming", NAMING)
def test_keys_are_limited_by_their_bytes(connect: Connect, naming: str, width: int) -> None:
    for size in (1, KEY_BYTES // 4 - 1, KEY_BYTES // 4, KEY_BYTES // 4 + 1, KEY_BYTES - 1, KEY_BYTES):
        if size >= width:
            client = connect(Limits(max_key_bytes=KEY_BYTES))
            replies = client.batch(*NAMING[naming](key_of(size, width)))
            assert not [reply for reply in replies if isinstance(reply, dict)]
    client = connect(Limits(max_key_bytes=KEY_BYTES))
    first, *others = client.batch(*NAMING[naming](key_of(KEY_BYTES + 1, width)))
    text = f"a key has at most {KEY_BYTES} bytes"
    assert first == {"error": "too_large", "message": text, "limit": "max_key_bytes"}
    assert not [reply for reply in others if isinstance(reply, dict)]
    assert client.metric("keys_stored") == (1 if "sets" in naming else 0)


@pytest.mark.parametrize("naming", NAMING)
def test_a_key_is_never_empty(client: "InMemoryClient", naming: str) -> None:
    first, *others = client.batch(*NAMING[naming](""))
    assert first["error"] == "bad_request"
    assert not [reply for reply in others if isinstance(reply, dict)]


def test_values_are_limited(connect: Connect) -> None:
    for together in ([], [["set", {"other": b""}]]):
        for size, is_error in ((99, False), (100, False), (101, True)):
            client = connect(Limits(max_value_bytes=100))
            first, *others = client.batch(["set", {"a": b"", "b": b"x" * size}], *together)
            assert (isinstance(first, dict) and first["error"] == "too_large") == is_error
            assert client.metric("keys_stored") == (0 if is_error else 2) + len(together)
            assert not [reply for reply in others if isinstance(reply, dict)]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_keys_of_a_request_are_limited(connect: Connect, count: int) -> None:
    keys = [str(number) for number in range(count)]
    for request in (["get_many", keys], ["delete", keys, True]):
        assert connect(Limits(max_keys_per_request=3)).code(*request) == ("too_large" if count > 3 else "")


@pytest.mark.parametrize("together", [[], [["set", {"a": b""}]]], ids=["alone", "among others"])
def test_the_keys_of_a_set_are_limited(connect: Connect, together: list[list[Any]]) -> None:
    client = connect(Limits(max_keys_per_request=3))
    assert not isinstance(client.batch(["set", dict.fromkeys("abc", b"")], *together)[0], dict)
    assert client.batch(["set", dict.fromkeys("abcd", b"")], *together)[0]["error"] == "too_large"
    assert client.metric("keys_stored") == 3


@pytest.mark.parametrize(
    ("limit", "code"), [(-1, "bad_request"), (0, "bad_request"), (1, ""), (5, ""), (6, "bad_request")]
)
def test_the_limit_of_a_scan_is_limited(connect: Connect, limit: int, code: str) -> None:
    assert connect(Limits(max_keys_per_request=5)).code("scan", "", None, limit) == code


def test_the_requests_of_a_frame_are_limited(connect: Connect) -> None:
    client = connect(Limits(max_requests_per_frame=3))
    assert client.batch(*[["ping"]] * 3) == [True] * 3
    reply = client.frame(msgspec.msgpack.encode([["ping"]] * 4))
    assert reply["error"] in ("too_large", "bad_request")


def test_a_scans_page_ends_after_its_bytes(client: "InMemoryClient") -> None:
    client.ask("set", {f"{number:04}": b"x" * 1020 for number in range(1000)})
    items, next_start = client.ask("scan", "", None, 65_536)
    assert (len(items), next_start) == (256, "0256")


def test_a_failed_read_is_not_counted(client: "InMemoryClient") -> None:
    long = "x" * 5_000
    client.ask("set", {"a": b"1"})
    failing = [["get", ""], ["get", long], ["get_many", ["a", ""]], ["get_many", ["a"], 99], ["get_many", [long]]]
    for request in failing:
        assert client.code(*request)
    assert [isinstance(reply, dict) for reply in client.batch(*failing, ["get", long], ["get", ""])] == [True] * 7
    assert client.metric("get_operations") == 0
    client.batch(["get", "a"], ["get", ""], ["get", "missing"], ["get_many", ["a", "a"]])
    assert client.metric("get_operations") == 4


def test_a_failed_write_is_not_counted(client: "InMemoryClient") -> None:
    client.batch(["set", {"": b""}], ["set", {"a": b"", "x" * 5_000: b""}], ["delete", ["a"]], ["delete", [""], True])
    assert [client.metric(name) for name in ("set_operations", "delete_operations", "version")] == [0, 0, 0]


# ---------------------------------------------------------------------- the size limit of replies

REPLY_BYTES = 4_096
all_paths = pytest.mark.parametrize("path", ["whole", "in slices"])


def batch(client: "InMemoryClient", path: str, *requests: list[object]) -> list[Any]:
    payload = msgspec.msgpack.encode(requests)
    replies: list[Any] = client.frame(payload) if path == "whole" else client.sliced(payload)
    return replies


@all_paths
def test_only_the_reply_that_does_not_fit_is_replaced(connect: Connect, path: str) -> None:
    client = connect(Limits(max_reply_bytes=REPLY_BYTES))
    client.ask("set", {"big": b"x" * 3_000, "small": b"y" * 100})
    replies = batch(
        client, path, ["get", "big"], ["get", "small"], ["get", "big"], ["set", {"a": b"1"}],
        ["get_many", ["small", "big"]], ["scan", "big", None, 9], ["get", "small"], ["get_many", ["small"]], ["ping"],
    )  # fmt: skip
    assert [reply["error"] if isinstance(reply, dict) else reply for reply in replies] == [
        b"x" * 3_000, b"y" * 100, "reply_too_large", 2, "reply_too_large", "reply_too_large", b"y" * 100, [b"y" * 100],
        True,
    ]  # fmt: skip
    assert str(REPLY_BYTES) in replies[2]["message"]


@all_paths
def test_the_request_of_a_replaced_reply_has_run(connect: Connect, path: str) -> None:
    client = connect(Limits(max_reply_bytes=REPLY_BYTES))
    client.ask("set", {"a": b"x" * REPLY_BYTES})
    assert batch(client, path, ["get", "a"], ["ping"])[0]["error"] == "reply_too_large"
    assert client.metric("get_operations") == 1


@all_paths
def test_replies_may_fill_the_limit_to_the_last_byte(connect: Connect, path: str) -> None:
    for size, fits in ((REPLY_BYTES - 5, True), (REPLY_BYTES - 4, False)):
        client = connect(Limits(max_reply_bytes=REPLY_BYTES))
        client.ask("set", {"a": b"x" * size})
        first, last = batch(client, path, ["get", "a"], ["get", "missing"])
        assert (first == b"x" * size) == fits
        assert last is None or last["error"] == "reply_too_large"


def test_one_value_larger_than_the_limit_is_replaced_too(connect: Connect) -> None:
    """A frame of one get has a code path of its own."""
    client = connect(Limits(max_reply_bytes=REPLY_BYTES))
    client.ask("set", {"a": b"x" * (REPLY_BYTES + 1)})
    assert client.code("get", "a") == "reply_too_large"


def test_many_scans_in_a_small_frame_stay_within_the_limit(client: "InMemoryClient") -> None:
    client.ask("set", {f"{number:04}": b"x" * 64 for number in range(5_000)})
    requests = msgspec.msgpack.encode([["scan", "", None, 65_536]] * 400)
    assert len(requests) < 8 * 1024
    replies = client.frame(requests)
    assert len(msgspec.msgpack.encode(replies)) < Limits().max_reply_bytes + 2**20


def test_a_value_set_and_read_in_one_small_frame_stays_within_the_limit(client: "InMemoryClient") -> None:
    requests = msgspec.msgpack.encode([["set", {"k": b"x" * 50_000}], *[["get", "k"]] * 2_000])
    assert len(requests) < 64 * 1024
    replies = client.frame(requests)
    assert len(msgspec.msgpack.encode(replies)) < Limits().max_reply_bytes + 2**20


@pytest.mark.parametrize(
    "request_", [["set", {"a": b""}], ["increment", "a", 1], ["commit", {"a": b""}, None, None, None]]
)
def test_more_ttls_than_a_request_may_have_keys_refuse_the_frame(client: "InMemoryClient", request_: list[Any]) -> None:
    ttls = {f"{number}": 1 for number in range(messages.MAX_KEYS + 1)}
    payload = msgspec.msgpack.encode([[*request_, {"ttls": ttls}]])
    assert client.sliced(payload)["error"] == client.frame(payload)["error"] == "bad_request"
    assert client.metric("version") == 0
