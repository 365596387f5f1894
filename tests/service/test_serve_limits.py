"""Limits on connections: a connection too many is refused with a reason, and the others notice nothing."""

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.harness.real_daemon import STARTED

if TYPE_CHECKING:
    from tests.harness.real_daemon import RealDaemon

# Opens N connections as another user, and prints whether each is served; ends with its stdin.
CONNECT = """
import socket, sys
ping = b"\\0\\0\\0\\x07\\x91\\x91\\xa4ping"
answers = []
for _ in range(int(sys.argv[2])):
    answers.append(socket.socket(socket.AF_UNIX))
    answers[-1].settimeout(30)
    answers[-1].connect(sys.argv[1])
    try:
        answers[-1].sendall(ping)
    except BrokenPipeError:
        pass
    reply = answers[-1].recv(1000)
    print("busy" if b"busy" in reply else "served" if reply == b"\\0\\0\\0\\2\\x91\\xc3" else reply, flush=True)
input()
"""
OTHER_UID = 65533


def serve(kvd: "RealDaemon", limits: str, *flags: str) -> None:
    """Start a daemon without connecting to it, because a closed connection counts until the daemon has noticed."""
    process = kvd.start("--config", kvd.configure(limits), *flags)
    assert process.stdout is not None
    assert process.stdout.readline() == STARTED


def is_served(kvd: "RealDaemon") -> bool:
    try:
        return bool(kvd.ask(["ping"]) == [True])
    except (BrokenPipeError, EOFError):
        return False  # refused before the request was sent


def connect_as_other(kvd: "RealDaemon", times: int) -> tuple["subprocess.Popen[str]", list[str]]:
    """Another user's process with that many connections open, and whether each was served."""
    process = subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-c", CONNECT, kvd.path, str(times)], env=kvd.environment(), cwd="/", text=True,
        user=OTHER_UID, group=OTHER_UID, extra_groups=[], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    return process, [process.stdout.readline().strip() for _ in range(times)]


def test_one_connection_too_many_is_refused_with_a_reason_and_logged_in_one_line(kvd: "RealDaemon") -> None:
    serve(kvd, "limits.max_connections = 3\n")
    connected = [kvd.connect() for _ in range(3)]
    assert all(peer.ask(["ping"]) == [True] for peer in connected)
    with kvd.connect() as fourth:
        (refusal,) = fourth.frames()
    assert refusal["error"] == "busy"
    assert "try again later" in refusal["message"]
    assert [line for line in kvd.log_lines() if "refused" in line] == [
        f"WARNING refused uid {os.getuid()} pid {os.getpid()}: 3 connections are open, which is the limit"
    ]
    assert all(peer.ask(["ping"]) == [True] for peer in connected)
    for peer in connected:
        peer.close()


def test_a_closed_connection_makes_place_for_another(kvd: "RealDaemon") -> None:
    serve(kvd, "limits.max_connections = 1\n")
    for _ in range(5):
        kvd.eventually(lambda: is_served(kvd))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_one_user_cannot_take_all_connections(kvd: "RealDaemon") -> None:
    os.chmod(kvd.folder, 0o755)  # noqa: S103 - a directory of the test's own
    serve(kvd, "limits.max_connections_per_uid = 2\n", "--socket-mode", "0666")
    greedy, outcomes = connect_as_other(kvd, 4)
    assert outcomes == ["served", "served", "busy", "busy"]
    assert kvd.ask(["ping"]) == [True]
    refused = [line for line in kvd.log_lines() if "refused" in line]
    assert refused == [f"WARNING refused uid {OTHER_UID} pid {greedy.pid}: uid {OTHER_UID} has 2 connections open"] * 2
    greedy.communicate("\n", timeout=30)
    kvd.eventually(lambda: kvd.status()["connections"] == 1)
    again, outcomes = connect_as_other(kvd, 1)
    again.communicate("\n", timeout=30)
    assert outcomes == ["served"]


def test_the_daemons_own_user_is_not_counted(kvd: "RealDaemon") -> None:
    kvd.serve("--config", kvd.configure("limits.max_connections_per_uid = 1\n"))
    with kvd.connect() as one, kvd.connect() as two:
        assert one.ask(["ping"]) == two.ask(["ping"]) == [True]


def test_hello_shows_the_limits_in_force(kvd: "RealDaemon") -> None:
    kvd.serve("--config", kvd.configure("limits.max_connections = 3\nlimits.max_key_bytes = 10\n"))
    limits = kvd.ask(["hello", 1, "test"])[0][4]
    assert (limits["max_connections"], limits["max_key_bytes"]) == (3, 10)
