"""How a daemon stops: it answers every frame that it has read, and tells the other clients that nothing ran."""

import os
import select
import signal
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

from tests.harness.raw_peer import frame
from tests.harness.scale import TIMES
from tests.harness.waiting import DEADLINE_S

if TYPE_CHECKING:
    from tests.harness.raw_peer import RawPeer
    from tests.harness.real_daemon import RealDaemon

FRAMES = 3_000
CALLERS = 4
ROUNDS = 6 * TIMES


def send_frames(peer: "RawPeer", first_sent: threading.Event) -> None:
    """Send frames until the daemon accepts no more. Frame n sets "n" to n and reads it back."""
    try:
        for number in range(FRAMES):
            value = b"%d" % number
            peer.socket.sendall(frame(["set", {"n": value}], ["get", "n"]))
            first_sent.set()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the daemon has closed the connection


def test_each_frame_is_answered_in_order_or_the_final_error_follows(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    with kvd.connect() as peer:
        first_sent = threading.Event()
        sending = threading.Thread(target=send_frames, args=(peer, first_sent))
        sending.start()
        assert first_sent.wait(30)
        first = peer.receive()
        process.terminate()
        *replies, final = [first, *peer.frames()]
        sending.join()
    assert final["error"] == "shutting_down"
    assert [value for _, value in replies] == [b"%d" % number for number in range(len(replies))]
    assert process.wait(30) == 0


def test_a_frame_that_runs_is_finished_and_later_frames_do_not_run(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    with kvd.connect() as peer:
        peer.request(*[["get", "key"]] * 60_000)  # returns when the daemon has read nearly all of it
        process.terminate()
        *replies, final = peer.frames()
    assert final["error"] == "shutting_down"
    assert replies in ([], [[None] * 60_000])


def call_until_refused(kvd: "RealDaemon", ends: Counter[str]) -> None:
    """Connect, ping and close, again and again; count how each connection ended."""
    while True:
        try:
            peer = kvd.connect()
        except (ConnectionRefusedError, FileNotFoundError):
            return
        with peer:
            try:
                peer.request(["ping"])
            except (BrokenPipeError, ConnectionResetError):
                pass  # the error that the daemon sent before can still be read
            last = next(peer.frames(), None)
            ends["answered" if last == [True] else last["error"] if last else "without a reply"] += 1


def test_every_client_that_connects_is_answered_or_gets_an_error(kvd: "RealDaemon") -> None:
    """Even at the last moment, between the last accept and the end of the queue."""
    ends: Counter[str] = Counter()
    rounds, deadline = 0, time.monotonic() + DEADLINE_S
    # The callers of a round may all be between two connections when the daemon stops. Then there are more rounds.
    while rounds < ROUNDS or (ends["shutting_down"] < ROUNDS and time.monotonic() < deadline):
        rounds += 1
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


def test_clients_in_the_queue_of_the_daemons_own_socket_get_an_error(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    os.kill(process.pid, signal.SIGSTOP)
    waiting = [kvd.connect() for _ in range(20)]
    process.terminate()
    os.kill(process.pid, signal.SIGCONT)
    for peer in waiting:
        with peer:
            assert [error["error"] for error in peer.frames()] == ["shutting_down"]
    assert process.wait(30) == 0


def test_a_client_that_never_reads_delays_the_stop_only_by_the_drain_timeout(kvd: "RealDaemon") -> None:
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


def test_every_frame_that_was_read_is_answered_however_late_the_client_reads(kvd: "RealDaemon") -> None:
    """The daemon reads all frames at once and answers one. For the others it waits until the client reads."""
    process = kvd.serve()
    with kvd.connect() as peer:
        peer.ask(["set", {"big": bytes(1 << 20)}])
        peer.socket.sendall(frame(["get", "big"]) * 20)
        assert kvd.ask(["ping"]) == [True], "the daemon has read the frames"
        process.terminate()
        kvd.eventually(lambda: kvd.log_lines()[-1] == "INFO stopping: SIGTERM")
        *replies, final = peer.frames()
    assert [len(reply[0]) for reply in replies] == [1 << 20] * 20
    assert final["error"] == "shutting_down"
    assert process.wait(30) == 0


def test_shutdown_is_answered_before_the_daemon_ends(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    with kvd.connect() as peer:
        peer.request(["set", {"a": b"1"}], ["shutdown"], ["get", "a"])
        replies, final = peer.frames()
    assert replies == [1, [process.pid], b"1"]
    assert final["error"] == "shutting_down"
    assert process.wait(30) == 0


def test_kv_shutdown_returns_when_the_daemon_has_ended(kvd: "RealDaemon") -> None:
    process = os.pidfd_open(kvd.detach())
    result = kvd.kv("shutdown")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"Kvd stopped.\n", b"")
    assert select.select([process], [], [], 0)[0], "it still runs"
    os.close(process)
    assert kvd.files() == []
