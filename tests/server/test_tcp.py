"""Peers over TCP, which must say hello first."""

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import kv
from kvd.protocol.keepalive import IDLE_S
from tests.harness.raw_peer import MIB, PING, PONG, encode, frame, packed
from tests.harness.real_daemon import TOKEN
from tests.harness.waiting import eventually

if TYPE_CHECKING:
    from tests.harness.raw_peer import RawPeer
    from tests.harness.watched_daemon import WatchedDaemon
    from tests.server.conftest import Start

TIMEOUT_MS = 200
KEEPALIVE, ESTABLISHED = 2, "01"  # in /proc/net/tcp
HELLO = frame(["hello", 1, "test", TOKEN])
UNAUTHENTICATED = {"error": "unauthenticated", "message": "say hello with a token first"}
LAST = {"error": "unauthenticated", "message": "the first frame must say hello with a valid token"}


@pytest.fixture(scope="module")
def tcp(start: "Start") -> "WatchedDaemon":
    """A daemon that also listens on TCP, with time limits of 0.2 seconds."""
    return start(f"limits.hello_timeout_ms = {TIMEOUT_MS}\nlimits.frame_timeout_ms = {TIMEOUT_MS}\n", tcp=True)


@pytest.fixture
def stranger(tcp: "WatchedDaemon") -> "Iterator[RawPeer]":
    """A TCP connection that has not said hello."""
    with tcp.stranger() as peer:
        yield peer


def reset(peer: "RawPeer") -> None:
    """Close with a reset, so that the other end finds the connection gone instead of ended."""
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


def test_a_peer_that_has_said_hello_in_time_may_be_idle(tcp: "WatchedDaemon", stranger: "RawPeer") -> None:
    with tcp.greeted() as idle:
        assert stranger.says_nothing_more(), "a peer without hello is closed, so the time limit has passed"
        with tcp.stranger() as another:
            assert another.says_nothing_more()
        assert idle.ask(["ping"]) == [True]


def test_a_peer_that_sends_only_a_part_of_hello_is_closed(tcp: "WatchedDaemon", stranger: "RawPeer") -> None:
    stranger.send(HELLO[:-1])
    assert stranger.says_nothing_more()


def test_a_frame_after_hello_has_its_own_time_limit(tcp: "WatchedDaemon") -> None:
    with tcp.greeted() as slow:
        slow.send(PING[:-1])
        assert slow.says_nothing_more()


def test_connections_that_are_reset_before_accept_leave_no_descriptors(tcp: "WatchedDaemon") -> None:
    before = tcp.descriptors()
    with tcp.held_still():
        for _ in range(20):
            reset(tcp.stranger())
    tcp.counts(0)
    eventually(lambda: tcp.descriptors() <= before, "for their descriptors to be closed")


def test_hello_and_a_larger_frame_may_arrive_together(stranger: "RawPeer") -> None:
    stranger.send(HELLO + frame(["set", {"a": b"x" * 10_000}], ["delete", ["a"]]))
    assert stranger.receive()[0][0] == 1
    (version, (later, count)) = stranger.receive()
    assert (later - version, count) == (1, 1)


@pytest.mark.parametrize("cut", [None, 1, 4, 20])
def test_after_a_first_frame_without_a_token_no_input_is_read(
    tcp: "WatchedDaemon", stranger: "RawPeer", cut: int | None
) -> None:
    whole = frame(["get", "a"], ["ping"]) + HELLO + PING
    if cut:
        stranger.send(whole[:cut])
        tcp.has_read()
    stranger.send(whole[cut:])
    assert stranger.rest() == frame(UNAUTHENTICATED, UNAUTHENTICATED) + packed(encode(LAST))


@pytest.mark.parametrize("cut", [0, 1])
def test_a_rejected_peer_is_disconnected_even_if_it_does_not_close(
    tcp: "WatchedDaemon", stranger: "RawPeer", cut: int
) -> None:
    stranger.send(PING[:cut])
    tcp.has_read()
    stranger.send(PING[cut:])
    assert stranger.receive() == [UNAUTHENTICATED]
    assert stranger.receive() == LAST
    eventually(lambda: send_more(stranger) or tcp.connections() == 0, "for the end of a peer that goes on sending")


def send_more(peer: "RawPeer") -> None:
    try:
        peer.send(b"more")
    except (BrokenPipeError, ConnectionResetError):
        return


@pytest.mark.parametrize("length", [4096, 4097, 2**32 - 1])
def test_before_hello_a_frame_has_at_most_4_kib(stranger: "RawPeer", length: int) -> None:
    if length == 4096:
        hello = frame(["hello", 1, "", TOKEN])
        stranger.send(frame(["hello", 1, "x" * (length - len(hello) + 2), TOKEN]))
        assert stranger.receive()[0][0] == 1
        return
    stranger.send(length.to_bytes(4, "big"))
    text = f"a frame has at most 4096 bytes, this one says {length}"
    assert stranger.receive() == {"error": "too_large", "message": text}
    assert stranger.says_nothing_more()


def test_an_idle_peer_is_closed_on_tcp_and_not_on_unix(start: "Start") -> None:
    daemon = start("limits.tcp_idle_timeout_ms = 100\n", tcp=True)
    with daemon.connect() as unix, daemon.greeted() as tcp:
        assert tcp.says_nothing_more()
        assert unix.ask(["ping"]) == [True]
    assert "idle for too long" in daemon.log()


def timers(port: int, *, remote: bool) -> list[tuple[int, float]]:
    """The kernel's timers on open connections of a local or a remote port: kind and seconds, proc(5)."""
    pending = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, other, state, _, timer, *_ = line.split()
        if state == ESTABLISHED and int((other if remote else local).split(":")[1], 16) == port:
            kind, jiffies = timer.split(":")
            pending.append((int(kind), int(jiffies, 16) / os.sysconf("SC_CLK_TCK")))
    return pending


@pytest.mark.parametrize("end", ["the daemon's", "the client's"])
def test_keepalive_is_on_at_both_ends_of_a_tcp_connection(tcp: "WatchedDaemon", tmp_path: Path, end: str) -> None:
    def waits_for_keepalive() -> bool:
        (one,) = timers(tcp.tcp_port, remote=end == "the client's")
        return one[0] == KEEPALIVE and one[1] <= IDLE_S  # before that, the timer is for the last acknowledgement

    (tmp_path / "token").write_text(TOKEN)
    with kv.connect(f"tcp://127.0.0.1:{tcp.tcp_port}", token_file=str(tmp_path / "token")) as db:
        db.ping()
        eventually(waits_for_keepalive, "for the keepalive timer")


def test_replies_are_not_lost_when_later_input_closes_the_connection(tcp: "WatchedDaemon") -> None:
    """With input unread, close(2) resets a TCP connection, and the peer may discard replies sent before."""
    with tcp.greeted() as peer:
        peer.send(PING * 50 + (2**32 - 1).to_bytes(4, "big") + bytes(MIB))
        assert peer.read(50 * len(PONG)) == PONG * 50
        assert peer.receive()["error"] == "too_large"
        assert peer.says_nothing_more()


def test_requests_work_over_tcp_as_over_unix(tcp: "WatchedDaemon") -> None:
    with tcp.greeted() as peer:
        requests = [["set", {"a": b"1"}], ["get", "a"], ["get_many", ["a", "b"]], ["delete", ["a"]], ["status"]]
        version, one, both, deleted, status = peer.ask(*requests)
        assert (one, both, deleted) == (b"1", [b"1", None], [version + 1, 1])
        assert dict(status)["pid"] == tcp.process.pid
