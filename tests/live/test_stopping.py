"""An orderly stop: every frame that was read is answered, and all other clients get the error ``shutting_down``."""

import os
import signal
from typing import TYPE_CHECKING, Any

import kv
from tests.harness.raw_peer import frame
from tests.harness.waiting import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.daemon import Daemon
    from tests.harness.raw_peer import RawPeer


def replies_and_last_error(peer: "RawPeer") -> tuple[list[Any], Any]:
    """All replies before the last frame, and that frame."""
    replies = []
    while isinstance(reply := peer.receive(), list):
        replies.append(reply)
    assert peer.says_nothing_more()
    return replies, reply


def test_frames_are_answered_in_order_or_have_certainly_not_run(daemon: "Daemon") -> None:
    peer = daemon.connect()
    assert peer.ask(["ping"]) == [True]
    for number in range(200):
        peer.send(frame(["set", {"n": b"%d" % number}], ["get", "n"]))
    daemon.process.send_signal(signal.SIGTERM)
    replies, last_error = replies_and_last_error(peer)
    assert last_error["error"] == "shutting_down"
    assert [value for _, value in replies] == [b"%d" % number for number in range(len(replies))]
    assert daemon.process.wait(DEADLINE_S) == 0


def test_a_running_large_frame_is_finished(daemon: "Daemon") -> None:
    peer = daemon.connect()
    peer.send(frame(*([["get", "key"]] * 65_536)))
    assert daemon.connect().ask(["ping"]) == [True]
    daemon.process.send_signal(signal.SIGTERM)
    replies, last_error = replies_and_last_error(peer)
    assert last_error["error"] == "shutting_down"
    assert replies in ([], [[None] * 65_536])
    assert daemon.process.wait(DEADLINE_S) == 0


def test_idle_clients_get_an_error_and_do_not_delay_the_stop(daemon: "Daemon") -> None:
    peers = [daemon.connect() for _ in range(50)]
    assert all(peer.ask(["ping"]) == [True] for peer in peers)
    assert daemon.terminate() == 0
    assert all(peer.receive()["error"] == "shutting_down" for peer in peers)


def test_a_stop_leaves_no_socket_and_no_lock_file(daemon: "Daemon") -> None:
    assert daemon.terminate(signal.SIGINT) == 0
    assert not os.path.exists(daemon.path)
    assert not os.path.exists(daemon.path + ".lock")


def test_a_peer_that_does_not_read_delays_the_stop_by_a_limited_time(start: "Callable[..., Daemon]") -> None:
    daemon = start("limits.drain_timeout_ms = 300\n")
    peer = daemon.connect()
    peer.ask(["set", {"big": bytes(1 << 20)}])
    peer.send(frame(*([["get", "big"]] * 20)))
    assert daemon.connect().ask(["ping"]) == [True]
    assert daemon.terminate() == 0
    assert "did not take their last replies in time" in daemon.log()


def test_a_second_signal_has_no_effect(start: "Callable[..., Daemon]") -> None:
    daemon = start("limits.drain_timeout_ms = 1000\n")
    peer = daemon.connect()
    peer.ask(["set", {"big": bytes(1 << 20)}])
    peer.send(frame(*([["get", "big"]] * 20)))
    assert daemon.connect().ask(["ping"]) == [True]
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.send_signal(signal.SIGTERM)
    assert [len(reply) for reply in replies_and_last_error(peer)[0]] == [20]
    assert daemon.process.wait(DEADLINE_S) == 0


def test_connections_in_the_accept_queue_get_an_error(daemon: "Daemon") -> None:
    os.kill(daemon.process.pid, signal.SIGSTOP)
    waiting = [daemon.connect() for _ in range(5)]
    for peer in waiting:
        peer.send(frame(["set", {"a": b"1"}]))
    daemon.process.send_signal(signal.SIGTERM)
    os.kill(daemon.process.pid, signal.SIGCONT)
    for peer in waiting:
        last = peer.receive()
        while isinstance(last, list):
            last = peer.receive()
        assert last["error"] == "shutting_down"
    assert daemon.process.wait(DEADLINE_S) == 0


def test_a_client_resends_requests_that_did_not_run(start: "Callable[..., Daemon]") -> None:
    first = start()
    with kv.connect(first.path) as db:
        db.set("a", b"1")
        assert first.terminate() == 0
        second = start()
        os.symlink(second.path, first.path)
        assert db.get("a") is None, "a new, empty store answers"
        assert db.set("a", b"2") == 1
