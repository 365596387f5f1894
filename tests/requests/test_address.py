"""Addresses: where a daemon listens and where a client connects."""

import pathlib

import pytest

from kvd.protocol import address


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("localhost:7070", ("localhost", 7070)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("host:0080", ("host", 80)),
    ],
)
def test_host_and_port(text: str, parsed: tuple[str, int]) -> None:
    assert address.parse_host_port(text) == parsed
    assert address.parse_tcp("tcp://" + text) == parsed


@pytest.mark.parametrize(
    "text",
    ["", ":", "host", "host:", ":80", "[]:80", "host:65536", "host:-1", "host:8o", "host:٣", "host: 80", "host:1e3"],
)
def test_the_error_for_a_malformed_address_quotes_it(text: str) -> None:
    for parse, argument in ((address.parse_host_port, text), (address.parse_tcp, "tcp://" + text)):
        with pytest.raises(ValueError, match="not HOST:PORT: ") as error:
            parse(argument)
        assert repr(text) in str(error.value)


@pytest.mark.parametrize("text", ["/run/kvd/kvd.sock", "kvd.sock", "", "TCP://host:80", "host:80"])
def test_any_other_text_is_the_path_of_a_socket(text: str) -> None:
    assert address.parse_tcp(text) is None


def test_a_user_has_a_daemon_in_the_runtime_directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 1234)
    own = f"{tmp_path}/kvd/kvd.sock"
    assert address.user_socket() == address.default_socket() == own
    assert address.candidate_sockets() == [own, "/run/kvd/kvd.sock"]


def test_without_a_runtime_directory_the_socket_is_in_the_home_directory(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "not there"))
    assert address.user_socket() == f"{tmp_path}/.local/state/kvd/kvd.sock"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)  # a uid without a user
    assert address.user_socket() == f"{tmp_path}/.local/state/kvd/kvd.sock"


def test_root_uses_the_system_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 0)
    assert address.default_socket() == address.SYSTEM_SOCKET
    assert address.candidate_sockets() == [address.SYSTEM_SOCKET]
