"""Malformed and unusual frames, sent to a real daemon."""

import random
from typing import TYPE_CHECKING

import pytest

from kvd.protocol.messages import encode_replies
from tests.harness.raw_peer import frame, packed
from tests.harness.scale import TIMES

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon

LIMIT = 16 * 1024 * 1024
HTTP = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def is_bad_request(reply: object) -> bool:
    return isinstance(reply, dict) and reply["error"] == "bad_request"


def test_a_frame_may_come_byte_by_byte_and_many_in_one_write(daemon: "Daemon") -> None:
    peer = daemon.connect()
    for byte in frame(["set", {"a": b"1"}], ["get", "a"]):
        peer.send(bytes([byte]))
    assert peer.receive() == [1, b"1"]
    peer.send(frame(["get", "a"]) * 300 + frame(["ping"]))
    assert [peer.receive() for _ in range(301)] == [[b"1"]] * 300 + [[True]]


def test_a_split_at_every_byte_makes_no_difference(daemon: "Daemon") -> None:
    peer = daemon.connect()
    whole = frame(["set", {"k": b"value"}], ["get_many", ["k", "no"]]) + frame(["ping"])
    for cut in range(1, len(whole)):
        peer.send(whole[:cut])
        peer.send(whole[cut:])
        version, values = peer.receive()
        assert (type(version), values, peer.receive()) == (int, [b"value", None], [True])


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"\x90", b"\x91", b"\x91\x90", b"\x91\x91", b"\x80", b"\xdd\xff\xff\xff\xff", b"\x91" * 1_000_000,
     b"\x91\x92\xa3get\xdb\xff\xff\xff\xff", b"\x91\x92\xa3get\xa1\xff", b"\xc7\x01\x01\x00", HTTP,
     bytes(range(256))],
)  # fmt: skip
def test_garbage_in_a_frame_is_an_error_and_the_connection_stays_open(daemon: "Daemon", payload: bytes) -> None:
    peer = daemon.connect()
    peer.send(packed(payload))
    assert is_bad_request(peer.receive())
    assert peer.ask(["ping"]) == [True]


@pytest.mark.parametrize(
    "request_",
    [["nope"], ["get"], ["get", 1], ["get", b"a"], ["get", "a", "b"], ["set", {"a": "text"}], ["set", {1: b""}],
     ["set", [1]], ["set", {"a": b"1"}, {"tll": 5}], ["delete", "a"], ["delete", ["a"], 1], ["scan"], ["get_many", 0],
     ["scan", "", None, "10"], "get", 5, None, {"get": "a"}],
)  # fmt: skip
def test_with_a_malformed_request_no_request_of_its_frame_runs(daemon: "Daemon", request_: object) -> None:
    peer = daemon.connect()
    assert is_bad_request(peer.ask(["set", {"before": b"1"}], request_))
    assert is_bad_request(peer.ask(request_, ["set", {"after": b"1"}]))
    assert peer.ask(["get_many", ["before", "after"]]) == [[None, None]]


@pytest.mark.parametrize("length", [LIMIT + 1, 2**31, 2**32 - 1, int.from_bytes(HTTP[:4], "big")])
def test_a_huge_length_gets_an_error_and_closes_the_connection(daemon: "Daemon", length: int) -> None:
    peer = daemon.connect()
    peer.send(frame(["ping"]) + length.to_bytes(4, "big") + b"rest")
    assert peer.receive() == [True]
    assert peer.receive()["error"] == "too_large"
    assert peer.says_nothing_more()


def test_a_frame_of_exactly_the_limit_is_accepted(daemon: "Daemon") -> None:
    peer = daemon.connect()
    entries = {key: bytes(LIMIT // 3) for key in "abc"}
    payload = encode_replies([["set", entries]])
    entries["c"] = bytes(LIMIT // 3 + LIMIT - len(payload))
    whole = frame(["set", entries])
    assert len(whole) == 4 + LIMIT
    peer.send(whole)
    assert peer.receive() == [1]


def test_declared_lengths_alone_allocate_no_memory(daemon: "Daemon") -> None:
    before = daemon.status()["memory_rss_bytes"]
    peers = [daemon.connect() for _ in range(500)]
    for peer in peers:
        peer.send(LIMIT.to_bytes(4, "big") + b"\x91")
    assert daemon.status()["connections"] == 501
    assert daemon.status()["memory_rss_bytes"] - before < 8 * 1024 * 1024


def test_a_large_frame_runs_in_order_and_other_clients_are_served_meanwhile(daemon: "Daemon") -> None:
    slow, quick = daemon.connect(), daemon.connect()
    slow.ask(["set", {"key": b"x" * 16}])
    slow.send(frame(*([["get", "key"]] * 65_535 + [["ping"]])) + frame(["get", "key"]))
    assert quick.ask(["ping"]) == [True]
    assert slow.receive() == [b"x" * 16] * 65_535 + [True]
    assert slow.receive() == [b"x" * 16]


def test_a_frame_with_too_many_requests_is_an_error(daemon: "Daemon") -> None:
    peer = daemon.connect()
    assert is_bad_request(peer.ask(*[["ping"]] * 65_537))
    assert peer.ask(["ping"]) == [True]


def test_with_a_bad_request_at_the_end_of_a_large_frame_no_request_runs(daemon: "Daemon") -> None:
    peer = daemon.connect()
    assert is_bad_request(peer.ask(*[["set", {f"k{n}": b"v" * 50}] for n in range(5_000)], ["nope"]))
    assert peer.ask(["scan", "", None, 10]) == [[[], None]]


def test_the_largest_frame_of_the_shortest_keys_takes_limited_memory(daemon: "Daemon") -> None:
    peer = daemon.connect()
    before = daemon.status()["memory_rss_bytes"]
    one = encode_replies(["get_many", [f"{n % 97:02d}" for n in range(60_000)]])
    count = (LIMIT - 10) // len(one)
    peer.send(packed(b"\xdd" + count.to_bytes(4, "big") + one * count))
    assert len(peer.receive()) == count
    growth = daemon.status()["memory_rss_bytes"] - before
    assert growth < 8 * LIMIT, f"{growth / LIMIT:.1f} times the frame"


def test_a_reply_that_does_not_fit_is_replaced_and_later_ones_are_answered(daemon: "Daemon") -> None:
    peer = daemon.connect()
    peer.ask(["set", {"big": bytes(8 * 1024 * 1024)}])
    replies = peer.ask(*[["get", "big"]] * 9, ["ping"])
    assert [len(reply) for reply in replies[:7]] == [8 * 1024 * 1024] * 7
    assert [reply["error"] for reply in replies[7:9]] == ["reply_too_large"] * 2
    assert replies[9] is True


def test_random_bytes_disturb_no_other_client(daemon: "Daemon") -> None:
    seed = random.randrange(2**32)  # noqa: S311 - no secret
    chance = random.Random(seed)  # noqa: S311 - no secret
    canary = daemon.connect()
    canary.ask(["set", {"canary": b"sings"}])
    valid = frame(["get", "a"], ["get_many", ["a", "b"]], ["scan", "", None, 5, None, True], ["delete", ["z"], True])
    for _ in range(300 * TIMES):
        stream = bytearray(valid * 3)
        for _ in range(chance.randrange(1, 8)):
            stream[chance.randrange(len(stream))] = chance.randrange(256)
        peer = daemon.connect()
        peer.send(bytes(stream[: chance.randrange(1, len(stream))]) if chance.random() < 0.5 else bytes(stream))
        peer.socket.close()
        assert canary.ask(["get", "canary"]) == [b"sings"], f"seed {seed}"
