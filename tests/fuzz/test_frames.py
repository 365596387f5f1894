"""Frames that no client sends: each is answered or refused, nothing of it is a fault, and others go on."""

import random
from collections.abc import Iterator

import msgspec
import pytest

from kvd.protocol import frame
from kvd.protocol.limits import Limits
from tests.harness.in_memory import InMemoryServer, build
from tests.harness.mutations import distorted, mutated
from tests.harness.scale import TIMES

ROUNDS = 3_000 * TIMES
SAMPLES: list[list[list[object]]] = [
    [["get", "a"]], [["get", "a"], ["get", "b"]], [["set", {"a": b"1", "b": b"2"}], ["increment", "a", 2]],
    [["set", {"a": b"word"}], ["increment", "a", 1]], [["set", {"a": b"1"}, {"ttl": 5}]],
    [["set", {"a": b"1"}, {"ephemeral": True}]], [["delete", ["a", "b"]]], [["delete", ["a"], True]],
    [["scan", "", None, 10]], [["scan", "a", "b", 10, None, True]], [["begin"], ["end", 1]],
    [["get_many", ["a", "b"]]], [["set", {"a": b"x"}], ["get_many", ["a"], 1]],
    [["commit", {"a": b"1", "b": None}, {"a": 0}, [["a", "b"]], 0]], [["increment", "n", 1]], [["fetch", ["a"]]],
    [["history", "a", 10]], [["log", 1, 10]], [["touch", ["a"], 1000]], [["ttl", ["a"]]], [["watch", "a", 0]],
    [["metrics"]], [["status"]], [["ping"]], [["hello", 1, "fuzz"]], [["access", "a", 1, [2, 3]]],
    [["version_at", 1]], [["slowlog", 10]], [["reload"]], [["exposition"]], [["largest", "", 10]],
    [["hottest", "reads", 10]], [["checkpoint"]],
]  # fmt: skip


def encoded() -> list[bytes]:
    return [msgspec.msgpack.encode(sample) for sample in SAMPLES]


def settle(server: InMemoryServer) -> None:
    """Let the work under way end."""
    for _ in range(100):
        server.scheduler.advance(0.01)


def errors(replies: object) -> Iterator[str]:
    """Yield the codes of all errors in a frame of replies."""
    for reply in replies if isinstance(replies, list) else [replies]:
        if isinstance(reply, dict) and "error" in reply:
            yield reply["error"]


def frames_of(seed: int) -> bytes:
    """Damage the bytes of a batch, or what stands in it."""
    chance = random.Random(seed)  # noqa: S311 - to repeat a failure
    if seed % 3 == 0:
        return mutated(chance.choice(encoded()), encoded(), chance)
    batch = [request for _ in range(chance.randint(1, 4)) for request in chance.choice(SAMPLES)]
    return msgspec.msgpack.encode(distorted(batch, chance, SAMPLES))


@pytest.mark.parametrize("sample", SAMPLES, ids=repr)
def test_each_sample_is_a_request(sample: list[object]) -> None:
    transport = build().open(1)
    transport.receive(frame(msgspec.msgpack.encode(sample)))
    assert "bad_request" not in [code for reply in transport.replies() for code in errors(reply)]


def test_no_frame_is_a_fault_and_others_are_answered_all_the_same() -> None:
    server = build(Limits(max_frame_bytes=65_536, max_snapshots_per_connection=4))
    other = server.open(2)
    codes: set[str] = set()
    served = 0
    for seed in range(ROUNDS):
        payload = frames_of(seed)
        transport = server.open(1)
        transport.receive(frame(payload[:60_000]))
        settle(server)
        replies = transport.replies()
        of_this = [code for reply in replies for code in errors(reply)]
        assert "internal" not in of_this, (seed, payload, replies)
        codes.update(of_this)
        served += not of_this
        transport.session.connection_lost(None)
        if seed % 50 == 0:
            other.sent.clear()
            other.receive(frame(msgspec.msgpack.encode([["ping"]])))
            settle(server)
            assert len(other.replies()) == 1, f"after seed {seed}"
    assert {"bad_request", "forbidden", "not_found", "not_a_number", "too_large"} <= codes
    assert served > ROUNDS // 20, "some of what is left after the damage is still a request"


@pytest.mark.parametrize("seed", range(5 * TIMES))
def test_a_stream_of_random_bytes_in_random_pieces_ends_with_an_error_or_waits_for_more(seed: int) -> None:
    server = build(Limits(max_frame_bytes=65_536))
    chance = random.Random(seed)  # noqa: S311 - to repeat a failure
    for _ in range(200):
        transport = server.open(1)
        for _ in range(chance.randint(1, 20)):
            if transport.is_closed:
                break
            transport.receive(chance.randbytes(chance.choice((1, 3, 5, 100, 1000))))
        settle(server)
        assert "internal" not in [code for reply in transport.replies() for code in errors(reply)]
        transport.session.connection_lost(None)
    assert len(server.server.connections) == 0
