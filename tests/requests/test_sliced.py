"""Large frames run in slices. No request of a frame runs if one of them cannot be decoded."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from kvd.protocol.messages import MAX_REQUESTS
from kvd.requests.costs import PIECE_REQUESTS
from kvd.requests.sliced import PART_BYTES

if TYPE_CHECKING:
    from tests.harness.in_memory import InMemoryClient

Connect = Callable[..., "InMemoryClient"]
encode = msgspec.msgpack.encode


def steps(client: "InMemoryClient", payload: bytes) -> list[list[bytes] | None]:
    return [None if result is None else result[0] for result in client.slices(payload)]


def test_the_reply_comes_last_and_once(client: "InMemoryClient") -> None:
    *slices, reply = steps(client, encode([["ping"]] * 5))
    assert slices == [None] * 3, "the steps: copy, decode, run"
    assert b"".join(reply or [])[4:] == b"\xdd\0\0\0\5" + b"\xc3" * 5


def test_no_request_runs_before_all_are_decoded(client: "InMemoryClient") -> None:
    payload = encode([["set", {f"{number}": b"x" * 100}] for number in range(3 * PIECE_REQUESTS)])
    slices = client.slices(payload)
    versions = []
    for step in slices:
        versions.append(client.metric("version"))
        if step is not None:
            break
    checked = versions.count(0)
    assert checked > 3, "copied, then decoded in slices"
    assert versions[checked:] == [*sorted(set(versions[checked:])), 3 * PIECE_REQUESTS], "then run in slices"
    assert client.metric("keys_stored") == 3 * PIECE_REQUESTS


def test_no_slice_is_larger_than_a_slice(client: "InMemoryClient", monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    run = client.server.executor.run_slice

    def record_size(requests: Any, peer: Any, budget_bytes: int) -> Any:  # noqa: ANN401
        sizes.append((len(requests), len(encode(requests))))
        return run(requests, peer, budget_bytes)

    monkeypatch.setattr(client.server.executor, "run_slice", record_size)
    steps(client, encode([["ping"]] * (2 * PIECE_REQUESTS + 1)))
    assert [count for count, _ in sizes] == [PIECE_REQUESTS, PIECE_REQUESTS, 1]
    sizes.clear()
    value = b"x" * 1000
    steps(client, encode([["set", {"a": value}]] * 200))
    assert sum(count for count, _ in sizes) == 200
    assert all(size < PART_BYTES + 2 * len(value) for _, size in sizes)
    assert len(sizes) == 12


BAD = {
    "unknown": encode(["nonsense"]),
    "wrong type": encode(["get", 1]),
    "not an array": encode({"get": "a"}),
    "too long": encode(["ping", 1]),
    "not UTF-8": b"\x92\xa3get\xa1\xff",
    "nested without end": b"\x92\xa3get" + b"\x91" * 5_000 + b"\xc0",
    "not MessagePack": b"\xc1",
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [0, 1, 700, PIECE_REQUESTS, 2_499, 2_500])
def test_with_a_bad_request_anywhere_no_request_runs(client: "InMemoryClient", bad: str, place: int) -> None:
    good = encode(["set", {"a": b"x"}])
    parts = [good] * 2_500
    parts.insert(place, BAD[bad])
    reply = client.sliced(b"\xdc" + len(parts).to_bytes(2, "big") + b"".join(parts))
    assert reply["error"] == "bad_request"
    assert len(reply["message"]) <= 301
    assert client.metric("version") == client.metric("set_operations") == 0


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\x90", b"\xc0", b"\x81\xa1a\x01", encode([["ping"]]) + b"\0", encode([["ping"]] * 2)[:-1],
        encode([["get", 1]]), b"\x91" * 1_000_000, b"\x81\xa1a" * 400_000, b"\x91" + b"\x81\xa1a" * 400_000 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        encode([["ping"]] * (MAX_REQUESTS + 1)),
    ],
    ids=lambda payload: payload[:6].hex() + f" of {len(payload)}",
)  # fmt: skip
def test_a_malformed_batch_gets_the_same_error_as_in_a_small_frame(client: "InMemoryClient", payload: bytes) -> None:
    assert client.sliced(payload)["error"] == client.frame(payload)["error"] == "bad_request"


def test_a_large_frame_of_one_request_is_answered(client: "InMemoryClient") -> None:
    value = b"x" * 200_000
    assert client.sliced(encode([["set", {"a": value}]])) == [1]
    assert client.sliced(encode([["get_many", ["a"]]])) == [[value]]


def test_the_largest_batch_is_answered(client: "InMemoryClient") -> None:
    replies = client.sliced(encode([["get", "a"]] * MAX_REQUESTS))
    assert replies == [None] * MAX_REQUESTS
    assert client.metric("get_operations") == MAX_REQUESTS


def test_the_memory_of_a_sliced_frame_is_counted_while_it_runs(client: "InMemoryClient") -> None:
    client.ask("set", {"a": bytes(10_000)})
    payload = encode([["get", "a"]] * 5_000)
    sizes = []
    for step in client.slices(payload):
        if step is None:
            sizes.append(client.server.sliced_bytes)
    assert sizes == sorted(sizes)
    assert sizes[1] == len(payload)
    assert sizes[-1] > len(payload) + 5_000 * 10_000
    assert client.server.sliced_bytes == 0
    cancelled = client.slices(payload)
    next(cancelled)
    assert client.server.sliced_bytes == len(payload)
    cancelled.close()
    assert client.server.sliced_bytes == 0
