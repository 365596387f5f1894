"""What connections make the daemon hold: bounded together, and never at the cost of other users' data and writes."""

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.harness.raw_peer import KIB, MIB, frame
from tests.harness.waiting import eventually

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon
    from tests.harness.raw_peer import RawPeer

MAX_BYTES = 96 * MIB
# The bound for the process in docs/memory.md.
BOUND_BYTES = MAX_BYTES * 3 // 2 + 64 * MIB
CACHE_KEYS = 5_000
CONFIGURATION = (
    f"memory.max_bytes = {MAX_BYTES}\nlimits.max_reply_bytes = {8 * MIB}\n"
    + '[[prefix]]\nprefix = "c/"\nevict = true\n'
)


@pytest.fixture
def full(start: "Callable[..., Daemon]") -> "Daemon":
    """A daemon whose memory is two thirds full of evictable keys."""
    daemon = start(CONFIGURATION)
    peer = daemon.connect()
    for begin in range(0, CACHE_KEYS, 500):
        keys = range(begin, begin + 500)
        peer.ask(["set", {f"c/{key:04}": key.to_bytes(4, "big") * (3 * KIB) for key in keys}])
    assert kept(peer) == CACHE_KEYS
    return daemon


def kept(peer: "RawPeer") -> int:
    return int(dict(peer.ask(["metrics"])[0])["keys_stored"])


def send_all(peer: "RawPeer", data: bytes) -> None:
    """Send as much as the daemon takes before it closes."""
    try:
        peer.send(data)
    except (BrokenPipeError, ConnectionResetError):
        return


def check_others(daemon: "Daemon") -> None:
    other = daemon.connect()
    [version] = other.ask(["set", {"k": b"value"}])
    assert isinstance(version, int), version
    assert other.ask(["get", "k"]) == [b"value"]
    assert kept(other) == CACHE_KEYS + 1, "no data is evicted for buffers"
    assert daemon._memory("VmHWM") <= BOUND_BYTES


def test_frames_begun_are_bounded_together_and_evict_nothing(full: "Daemon") -> None:
    begun = (16 * MIB).to_bytes(4, "big") + bytes(15 * MIB)
    peers = [full.connect() for _ in range(30)]
    for peer in peers:
        send_all(peer, begun)
    check_others(full)
    assert "hold too much" in full.log()


def test_a_connection_that_is_closed_for_its_buffers_is_told_so(full: "Daemon") -> None:
    begun = (16 * MIB).to_bytes(4, "big") + bytes(15 * MIB)
    first = full.connect()
    send_all(first, begun)
    for _ in range(2):
        send_all(full.connect(), begun)
    assert first.receive()["error"] == "busy"
    assert first.says_nothing_more()


def test_replies_that_are_not_read_are_bounded_together_and_evict_nothing(full: "Daemon") -> None:
    full.connect().ask(["set", {"c/0000": bytes(7 * MIB)}])
    peers = [full.connect() for _ in range(40)]
    for peer in peers:
        peer.send(frame(["get_many", [f"c/{key:04}" for key in range(1, 600)]]))
    eventually(lambda: "hold too much" in full.log())
    check_others(full)


def test_small_replies_of_many_connections_are_bounded_together(full: "Daemon") -> None:
    peers = [full.connect() for _ in range(400)]
    for peer in peers:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        peer.send(frame(["get", "c/0000"]) * 30)
    eventually(lambda: "hold too much" in full.log())
    check_others(full)


def test_a_frame_in_work_ends_when_its_peer_has_gone(start: "Callable[..., Daemon]") -> None:
    daemon = start("")
    peer = daemon.connect()
    for begin in range(0, 60_000, 10_000):
        peer.ask(["set", {f"k/{key:06}": b"v" for key in range(begin, begin + 10_000)}])
    peer.send(frame(*([["scan", "k/", None, 10_000]] * 2_000)))
    peer.socket.close()
    eventually(lambda: daemon.status()["connections"] == 1)
