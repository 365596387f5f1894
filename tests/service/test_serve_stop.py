"""How a daemon goes: every frame that it read is answered, and everybody else is told that nothing ran."""

import os
import select
import signal
import threading
from collections import Counter
from typing import TYPE_CHECKING

from tests.harness.raw_peer import frame
from tests.harness.scale import TIMES

if TYPE_CHECKING:
    from tests.harness.raw_peer import RawPeer
    from tests.harness.real_daemon import RealDaemon

FRAMES = 3_000
CALLERS = 4
ROUNDS = 6 * TIMES


def send_frames(peer: "RawPeer", first_sent: threading.Event) -> None:
    """Frame n sets "n" to n and reads it back; goes on until the daemon takes no more."""
    try:
        for number in range(FRAMES):
            value = b"%d" % number
            peer.socket.sendall(frame(["set", {"n": value}], ["get", "n"]))
            first_sent.set()
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has left


def test_each_frame_is_answered_in_order_or_followed_by_the_goodbye(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    with kvd.connect() as peer:
        first_sent = threading.Event()
        sending = threading.Thread(target=send_frames, args=(peer, first_sent))
        sending.start()
        assert first_sent.wait(30)
        first = peer.receive()
        process.terminate()
        *replies, goodbye = [first, *peer.frames()]
        sending.join()
    assert goodbye["error"] == "shutting_down"
    assert [value for _, value in replies] == [b"%d" % number for number in range(len(replies))]
    assert process.wait(30) == 0


def test_a_frame_in_work_is_finished_and_what_came_behind_it_did_not_run(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    with kvd.connect() as peer:
        peer.request(*[["get", "key"]] * 60_000)  # returns when nearly all of it is taken
        process.terminate()
        *replies, goodbye = peer.frames()
    assert goodbye["error"] == "shutting_down"
    assert replies in ([], [[None] * 60_000])


def call_until_refused(kvd: "RealDaemon", ends: Counter[str]) -> None:
    """Connect, ask, close, again and again; count how each connection ended."""
    while True:
        try:
            peer = kvd.connect()
        except (ConnectionRefusedError, FileNotFoundError):
            return
        with peer:
            try:
                peer.request(["ping"])
            except (BrokenPipeError, ConnectionResetError):
                pass  # what it said before that can still be read
            last = next(peer.frames(), None)
            ends["answered" if last == [True] else last["error"] if last else "without a word"] += 1


def test_whoever_could_connect_is_answered_or_told(kvd: "RealDaemon") -> None:
    """Also in the last moment, between the last accept and the end of the queue."""
    ends: Counter[str] = Counter()
    for _ in range(ROUNDS):
        process = kvd.serve()
        callers = [threading.Thread(target=call_until_refused, args=(kvd, ends)) for _ in range(CALLERS)]
        for caller in callers:
            caller.start()
        answered = ends["answered"]
        kvd.eventually(lambda answered=answered: ends["answered"] >= answered + 50)
        assert kvd.stop(process) == 0
        for caller in callers:
            caller.join()
    assert ends["shutting_down"] >= ROUNDS
    assert set(ends) == {"answered", "shutting_down"}, ends


def test_the_queue_of_its_own_socket_is_told(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    os.kill(process.pid, signal.SIGSTOP)
    waiting = [kvd.connect() for _ in range(20)]
    process.terminate()
    os.kill(process.pid, signal.SIGCONT)
    for peer in waiting:
        with peer:
            assert [said["error"] for said in peer.frames()] == ["shutting_down"]
    assert process.wait(30) == 0


def test_a_peer_that_never_reads_holds_it_up_no_longer_than_the_drain_time(kvd: "RealDaemon") -> None:
    process = kvd.serve("--config", kvd.configure("[limits]\ndrain_timeout_ms = 200\n"))
    with kvd.connect() as peer:
        peer.ask(["set", {"big": bytes(1 << 20)}])
        peer.request(*[["get", "big"]] * 20)
        assert kvd.ask(["ping"]) == [True]
        assert kvd.stop(process) == 0
        assert kvd.log_lines()[-2:] == [
            "WARNING 1 connections did not take their last replies in time",
            f"INFO stopped: pid {process.pid}",
        ]
    assert kvd.files() == []


def test_every_frame_that_was_read_is_answered_however_late_the_peer_reads(kvd: "RealDaemon") -> None:
    """The daemon reads all of them at once, and answers one: then the peer has to take some of it."""
    process = kvd.serve()
    with kvd.connect() as peer:
        peer.ask(["set", {"big": bytes(1 << 20)}])
        peer.socket.sendall(frame(["get", "big"]) * 20)
        assert kvd.ask(["ping"]) == [True], "from here on they are read"
        process.terminate()
        kvd.eventually(lambda: kvd.log_lines()[-1] == "INFO stopping: SIGTERM")
        *replies, goodbye = peer.frames()
    assert [len(reply[0]) for reply in replies] == [1 << 20] * 20
    assert goodbye["error"] == "shutting_down"
    assert process.wait(30) == 0


def test_shutdown_is_answered_before_it_ends(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    with kvd.connect() as peer:
        peer.request(["set", {"a": b"1"}], ["shutdown"], ["get", "a"])
        replies, goodbye = peer.frames()
    assert replies == [1, [process.pid], b"1"]
    assert goodbye["error"] == "shutting_down"
    assert process.wait(30) == 0


def test_kv_shutdown_returns_when_the_daemon_is_gone(kvd: "RealDaemon") -> None:
    process = os.pidfd_open(kvd.detach())
    done = kvd.kv("shutdown")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Kvd stopped.\n", b"")
    assert select.select([process], [], [], 0)[0], "it still runs"
    os.close(process)
    assert kvd.files() == []
