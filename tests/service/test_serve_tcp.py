"""TCP: without the token no request is answered, and no client is an administrator."""

import socket
from typing import TYPE_CHECKING

import pytest

from tests.harness.raw_peer import frame
from tests.harness.real_daemon import RealDaemon

if TYPE_CHECKING:
    from tests.harness.raw_peer import RawPeer

WRONG_TOKENS = {
    "none": [],
    "nil": [None],
    "empty": [""],
    "another of the same length": ["x" * 32],
    "the beginning of the right one": [RealDaemon.token[:20]],
    "the right one and more": [RealDaemon.token + "x"],
    "of other characters": ["é" * 20],
}


@pytest.fixture
def port(kvd: RealDaemon) -> int:
    """A daemon on this port of the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    kvd.serve("--tcp", f"127.0.0.1:{port}", "--token-file", kvd.write_token())
    return port


def ends(peer: "RawPeer") -> bool:
    """Return whether the daemon closes the connection without another frame."""
    return list(peer.frames()) == []


def warnings(kvd: RealDaemon) -> list[str]:
    return [line for line in kvd.log_lines() if line.startswith("WARNING ")]


def test_a_client_with_the_token_works_on_the_same_data(kvd: RealDaemon, port: int) -> None:
    kvd.ask(["set", {"a": b"1"}])
    with kvd.connect_tcp(port) as peer:
        assert peer.ask(["hello", 1, "test", kvd.token])[0][0] == 1
        assert peer.ask(["get", "a"]) == [b"1"]
        peer.ask(["set", {"a": b"2"}])
    assert kvd.ask(["get", "a"]) == [b"2"]


@pytest.mark.parametrize("wrong", WRONG_TOKENS)
def test_a_wrong_token_is_refused_and_logged_in_one_line_and_the_connection_closed(
    kvd: RealDaemon, port: int, wrong: str
) -> None:
    with kvd.connect_tcp(port) as peer:
        where = "{}:{}".format(*peer.socket.getsockname())
        replies = peer.ask(["hello", 1, "test", *WRONG_TOKENS[wrong]], ["get", "a"], ["shutdown"])
        assert [reply["error"] for reply in replies] == ["unauthenticated"] * 3
        assert peer.receive()["error"] == "unauthenticated"
        assert ends(peer)
    assert warnings(kvd) == [f"WARNING refused tcp {where}: wrong or missing token"]
    assert kvd.ask(["ping"]) == [True]


@pytest.mark.parametrize("request_", [["ping"], ["get", "a"], ["metrics"], ["status"], ["shutdown"]])
def test_nothing_is_answered_before_hello(kvd: RealDaemon, port: int, request_: list[str]) -> None:
    with kvd.connect_tcp(port) as peer:
        assert peer.ask(request_)[0]["error"] == "unauthenticated"
        assert peer.receive()["error"] == "unauthenticated"
        assert ends(peer)


def test_a_right_token_after_a_wrong_one_is_too_late(kvd: RealDaemon, port: int) -> None:
    wrong, right = frame(["hello", 1, "test", "wrong" * 10]), frame(["hello", 1, "test", kvd.token])
    with kvd.connect_tcp(port) as peer:
        peer.socket.sendall(wrong + right)
        assert peer.receive()[0]["error"] == "unauthenticated"
        assert isinstance(peer.receive(), dict)
        assert ends(peer)


@pytest.mark.parametrize("what", ["shutdown", "reload"])
def test_administration_is_forbidden_and_the_attempt_is_logged(kvd: RealDaemon, port: int, what: str) -> None:
    with kvd.connect_tcp(port) as peer:
        peer.ask(["hello", 1, "test", kvd.token])
        assert peer.ask([what])[0]["error"] == "forbidden"
        assert peer.ask(["ping"]) == [True]
        where = "{}:{}".format(*peer.socket.getsockname())
    assert warnings(kvd) == [f"WARNING refused tcp {where}: may not ask for {what}"]


def test_the_unix_socket_needs_no_token(kvd: RealDaemon, port: int) -> None:
    assert kvd.ask(["hello", 1, "test"], ["ping"])[1] is True


def test_a_connection_without_a_token_in_time_is_closed(kvd: RealDaemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = "127.0.0.1:{1}".format(*probe.getsockname())
    config = kvd.configure("limits.hello_timeout_ms = 10\n")
    kvd.serve("--config", config, "--tcp", address, "--token-file", kvd.write_token())
    with kvd.connect_tcp(int(address.rpartition(":")[2])) as peer:
        assert ends(peer)


def test_ipv6(kvd: RealDaemon) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
        port = probe.getsockname()[1]
    kvd.serve("--tcp", f"[::1]:{port}", "--token-file", kvd.write_token())
    assert kvd.status()["listening"] == f"{kvd.path} tcp://[::1]:{port}"
    with kvd.connect_tcp(port, host="::1") as peer:
        assert peer.ask(["hello", 1, "test", kvd.token], ["ping"])[1] is True
