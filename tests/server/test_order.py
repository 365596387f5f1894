"""Replies come in the order of their requests, however a connection sends them, and other clients do not wait."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.harness.raw_peer import KIB, MIB, PING, PONG, encode, frame, packed
from tests.harness.scale import TIMES

if TYPE_CHECKING:
    from tests.harness.raw_peer import RawPeer
    from tests.harness.watched_daemon import WatchedDaemon
    from tests.server.conftest import Start

READ_BYTES = 256 * KIB  # the server reads this much at a time
# The reply to a large frame has its count in the widest form.
WIDE = b"\xdd"


@contextmanager
def sending(peer: "RawPeer", data: bytes, *, half_close: bool = False) -> Iterator[None]:
    """Send in a separate thread, because the test must read the replies meanwhile."""

    def send() -> None:
        peer.send(data)
        if half_close:
            peer.socket.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    yield
    thread.join()


def pings_of(size: int) -> bytes:
    """Frames of ``size`` bytes in total: many of one ping each, and a last one of four pings and a hello."""
    count = size // len(PING) - 5
    missing = size - count * len(PING)
    shortest = len(frame(*[["ping"]] * 4, ["hello", 1, ""]))
    data = PING * count + frame(*[["ping"]] * 4, ["hello", 1, "x" * (missing - shortest)])
    assert len(data) == size
    return data


@pytest.fixture(params=["unix", "tcp"])
def wide_peer(request: pytest.FixtureRequest, both: "WatchedDaemon") -> "Iterator[RawPeer]":
    """A connection whose send buffer holds more than the server reads at a time."""
    with both.greeted() if request.param == "tcp" else both.connect() as peer:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
        if peer.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 2 * READ_BYTES:
            pytest.skip("the system's net.core.wmem_max is too low for this test")
        yield peer


@pytest.fixture(scope="module")
def both(start: "Start") -> "WatchedDaemon":
    """A daemon that also listens on TCP."""
    return start(tcp=True)


def test_many_frames_in_one_write_are_answered_in_order(daemon: "WatchedDaemon", peer: "RawPeer") -> None:
    daemon.ask(["set", {f"{number}": b"%d" % number for number in range(5_000)}])
    frames = [frame(["get", f"{number}"]) for number in range(5_000)]
    with sending(peer, b"".join(frames)):
        for number in range(5_000):
            assert peer.receive() == [b"%d" % number]


def test_pipelined_frames_never_pile_up_in_the_server(both: "WatchedDaemon", wide_peer: "RawPeer") -> None:
    growth = both.peak_from_here()
    size = 8 * MIB * TIMES
    with sending(wide_peer, PING * (size // len(PING))):
        assert wide_peer.read(size // len(PING) * len(PONG)) == PONG * (size // len(PING))
    assert growth() < 2 * MIB


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_a_half_closed_peer_gets_all_replies_wherever_its_input_ends(wide_peer: "RawPeer", offset: int) -> None:
    """When its buffer is full, the server does not know yet that the end comes next."""
    data = pings_of(4 * READ_BYTES + offset)
    with sending(wide_peer, data, half_close=True):
        pongs = (len(data) // len(PING) - 5) * PONG
        rest = wide_peer.rest()
    assert rest[: len(pongs)] == pongs
    assert rest[len(pongs) + 4 :].startswith(b"\x95" + b"\xc3" * 4 + b"\x95\x01"), "then the reply to the last frame"


def test_small_and_large_frames_of_one_connection_are_answered_in_order(
    daemon: "WatchedDaemon", peer: "RawPeer"
) -> None:
    daemon.ask(["set", {f"{number}": b"%d" % number for number in range(7)}])

    def of_size(number: int, count: int) -> tuple[bytes, bytes]:
        reply = encode([b"%d" % (number % 7)] * count)
        if count * 7 > 64 * KIB:  # each request takes 7 bytes
            reply = WIDE + count.to_bytes(4, "big") + encode(b"%d" % (number % 7)) * count
        return frame(*[["get", f"{number % 7}"]] * count), packed(reply)

    pairs = [of_size(number, count) for number, count in enumerate([1, 20_000, 1, 1, 9_000, 40_000, 3, 9_900, 2] * 5)]
    with sending(peer, b"".join(sent for sent, _ in pairs)):
        for number, (_, expected) in enumerate(pairs):
            assert peer.read(len(expected)) == expected, number


@pytest.mark.parametrize("kind", ["gets", "sets", "one key each"])
def test_a_ping_is_answered_before_another_clients_large_frame(
    daemon: "WatchedDaemon", peer: "RawPeer", kind: str
) -> None:
    requests = {
        "gets": [["get", "key"]] * 65_536,
        "sets": [["set", {"key": b"x"}]] * 65_536,
        "one key each": [["get_many", ["key"]]] * 65_536,
    }[kind]
    peer.send(frame(*requests))
    for _ in range(5):
        assert daemon.ask(["ping"]) == [True]
        assert not peer.is_answered(), "the other client's frame is still running"
    assert len(peer.receive()) == 65_536


def test_a_ping_is_answered_before_another_clients_many_scans(daemon: "WatchedDaemon", peer: "RawPeer") -> None:
    """Their frame is small, but each scan may read thousands of keys."""
    for first in range(0, 20_000, 1_000):
        daemon.ask(["set", {f"{number:08}": b"" for number in range(first, first + 1_000)}])
    peer.send(frame(*[["scan", "", None, 8_000, None, True]] * 100))
    for _ in range(10):
        assert daemon.ask(["ping"]) == [True]
        assert not peer.is_answered(), "the other client's frame is still running"
    pages = peer.receive()
    assert [len(page[0]) for page in pages] == [8_000] * 100


def test_scans_are_answered_in_order_with_the_requests_around_them(daemon: "WatchedDaemon", peer: "RawPeer") -> None:
    scan = ["scan", "a", "b", 10]
    before = daemon.metrics()["version"]
    with sending(peer, frame(["set", {"a": b"1"}], scan, ["get", "a"], ["delete", ["a"]], scan) * 20 + PING):
        for number in range(20):
            first = before + 2 * number + 1
            page = [[["a", b"1", first]], None]
            assert peer.receive() == [first, page, b"1", [first + 1, 1], [[], None]]
        assert peer.read(len(PONG)) == PONG


def test_large_frames_of_several_connections_do_not_mix(both: "WatchedDaemon") -> None:
    """All frames come through one buffer, and run in slices while the next ones arrive."""
    sizes = (70 * KIB, 150 * KIB, 300 * KIB)
    with both.connect() as first, both.connect() as second:
        for size in sizes * 5 * TIMES:
            peers = {first: b"a" * size, second: b"b" * size}
            for peer, value in peers.items():
                name = value[:1].decode()
                data = frame(*[["set", {f"{name}{number}": value[:100]}] for number in range(size // 120)])
                peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
                peer.send(data + frame(["get", f"{name}7"]))
            for peer, value in peers.items():
                versions = peer.receive()
                assert all(type(version) is int for version in versions)
                assert len(versions) == size // 120
                assert peer.receive() == [value[:100]]
