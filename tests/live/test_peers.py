"""Slow, silent, numerous and disconnected peers."""

import contextlib
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

import kv
from tests.harness.raw_peer import frame
from tests.harness.scale import TIMES
from tests.harness.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon

IDLE = 10_000
MAX_DESCRIPTORS = 253  # in one message: SCM_MAX_FD of the kernel
MIB = 1024 * 1024


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Allow enough descriptors for this process's ends of IDLE connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = IDLE + 1_000
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"only {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ten_thousand_idle_connections_take_little_memory_and_are_all_served(
    daemon: "Daemon", many_descriptors: None
) -> None:
    descriptors, before = daemon.descriptors(), daemon.status()["memory_rss_bytes"]
    peers = [daemon.connect() for _ in range(IDLE)]
    assert daemon.status()["connections"] == IDLE + 1
    assert daemon.status()["memory_rss_bytes"] - before < 64 * MIB
    assert all(peer.ask(["ping"]) == [True] for peer in peers[::97])
    for peer in peers:
        peer.socket.close()
    eventually(lambda: daemon.status()["connections"] == 1)
    assert daemon.descriptors() <= descriptors + 1  # one for the status request itself


def test_peers_that_never_read_take_little_memory_and_delay_no_client(daemon: "Daemon") -> None:
    canary = daemon.connect()
    canary.ask(["set", {"big": bytes(MIB), "small": b"s"}])
    before = daemon.status()["memory_rss_bytes"]
    greedy = [daemon.connect() for _ in range(10)]
    for peer in greedy:
        peer.send(frame(["get", "big"]) * 500)
        assert canary.ask(["get", "small"]) == [b"s"]
    assert daemon.status()["memory_rss_bytes"] - before < 64 * MIB
    for _ in range(500):  # each peer still gets all its replies once it reads
        assert greedy[0].receive() == [bytes(MIB)]


def test_a_peer_that_never_reads_is_closed(start: "Callable[..., Daemon]") -> None:
    daemon = start("limits.stalled_peer_timeout_ms = 200\n")
    peer = daemon.connect()
    peer.ask(["set", {"big": bytes(MIB)}])
    peer.send(frame(*([["get", "big"]] * 20)))
    eventually(lambda: daemon.status()["connections"] == 1)
    assert "it kept the server waiting" in daemon.log()


def test_a_frame_that_has_begun_must_end_in_time(start: "Callable[..., Daemon]") -> None:
    daemon = start("limits.frame_timeout_ms = 200\n")
    idle, slow = daemon.connect(), daemon.connect()
    slow.send(frame(["ping"])[:-1])
    assert slow.says_nothing_more()
    assert idle.ask(["ping"]) == [True], "a peer without an incomplete frame has no deadline"


def test_a_half_closed_peer_gets_its_replies(daemon: "Daemon") -> None:
    peer = daemon.connect()
    peer.send(frame(["set", {"a": b"1"}], ["get", "a"]) * 100)
    peer.socket.shutdown(socket.SHUT_WR)
    assert [peer.receive()[1] for _ in range(100)] == [b"1"] * 100
    assert peer.says_nothing_more()


def test_a_half_closed_peer_gets_its_replies_to_a_large_frame_too(daemon: "Daemon") -> None:
    peer = daemon.connect()
    peer.send(frame(*([["get", "key"]] * 30_000)) + frame(["ping"]))
    peer.socket.shutdown(socket.SHUT_WR)
    assert peer.receive() == [None] * 30_000
    assert peer.receive() == [True]
    assert peer.says_nothing_more()


def test_closed_connections_leave_no_memory_or_descriptors(daemon: "Daemon") -> None:
    def connect_and_close(times: int) -> None:
        for _ in range(times):
            peer = daemon.connect()
            assert peer.ask(["get", "a"]) == [None]
            peer.socket.close()

    connect_and_close(500)
    before, descriptors = daemon.status()["memory_rss_bytes"], daemon.descriptors()
    connect_and_close(3_000 * TIMES)
    assert daemon.status()["memory_rss_bytes"] - before < MIB * TIMES
    assert daemon.descriptors() <= descriptors + 1


def test_a_connection_over_the_limit_gets_an_error(start: "Callable[..., Daemon]") -> None:
    daemon = start("limits.max_connections = 3\n")
    peers = [daemon.connect() for _ in range(3)]
    assert all(peer.ask(["ping"]) == [True] for peer in peers)
    extra = daemon.connect()
    assert extra.receive()["error"] == "busy"
    assert extra.says_nothing_more()
    peers.pop().socket.close()
    while (retry := daemon.connect()).ask(["ping"]) != [True]:
        retry.socket.close()


def test_descriptors_that_a_peer_sends_are_not_kept(daemon: "Daemon") -> None:
    peer = daemon.connect()
    assert peer.ask(["ping"]) == [True]
    before = daemon.descriptors()
    with open(os.devnull, "rb") as null:
        for _ in range(1_000 * TIMES):
            socket.send_fds(peer.socket, [frame(["ping"])], [null.fileno()] * MAX_DESCRIPTORS)
            assert peer.receive() == [True]
    assert daemon.descriptors() == before


def test_a_client_waits_while_the_connection_queue_is_full(daemon: "Daemon", many_descriptors: None) -> None:
    os.kill(daemon.process.pid, signal.SIGSTOP)
    queued = []
    with contextlib.suppress(BlockingIOError):
        while True:
            connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            queued.append(connecting)
            connecting.connect(daemon.path)
    with kv.connect(daemon.path, timeout=0.05) as hasty, pytest.raises(kv.Unavailable, match="no answer in time"):
        hasty.ping()
    with kv.connect(daemon.path, timeout=DEADLINE_S) as patient:
        threading.Timer(0.05, os.kill, (daemon.process.pid, signal.SIGCONT)).start()
        patient.ping()
    for connecting in queued:
        connecting.close()


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user, whose connections are counted")
def test_rejected_connections_do_not_raise_a_users_limit(start: "Callable[..., Daemon]") -> None:
    daemon = start('listen.socket_mode = "0666"\nlimits.max_connections = 4\nlimits.max_connections_per_uid = 2\n')
    for folder in pathlib.Path(daemon.path).parents[:2]:
        folder.chmod(0o711)
    script = """if True:
        import os, socket, sys
        os.setuid(65533)
        kept = []
        for line in sys.stdin:
            kept.append(socket.socket(socket.AF_UNIX))
            kept[-1].connect(sys.argv[1])
            try:
                kept[-1].sendall(b"\\0\\0\\0\\7\\x91\\x91\\xa4ping")
            except BrokenPipeError:
                pass  # rejected already; the error can still be read
            print("busy" if b"busy" in kept[-1].recv(4096) else "served", flush=True)
    """
    with subprocess.Popen(  # noqa: S603 - a peer of another user
        [sys.executable, "-c", script, daemon.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as stranger:
        assert stranger.stdin is not None
        assert stranger.stdout is not None

        def connect() -> str:
            print(file=stranger.stdin, flush=True)
            return stranger.stdout.readline().strip()

        assert [connect(), connect(), connect()] == ["served", "served", "busy"]
        own = [daemon.connect() for _ in range(2)]
        assert all(peer.ask(["ping"]) == [True] for peer in own)
        assert [connect() for _ in range(3)] == ["busy"] * 3  # all connections are in use
        for peer in own:
            peer.socket.close()
        while (own := daemon.connect()).ask(["ping"]) != [True]:
            own.close()  # until a connection is free again
        assert connect() == "busy", "the other user still has its two connections"
        stranger.stdin.close()
