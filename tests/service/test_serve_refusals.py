"""Starts that must fail, in the foreground and as a daemon: one line says why, and no file is left or removed."""

import os
import pathlib
import re
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.real_daemon import RealDaemon

MAX_PATH_BYTES = 107
TOKEN = "long-enough-for-a-token"  # noqa: S105 - of no real daemon


@pytest.fixture(params=["foreground", "daemon"])
def how(request: pytest.FixtureRequest) -> list[str]:
    return ["--daemon"] if request.param == "daemon" else []


@pytest.fixture
def taken_port() -> Iterator[str]:
    """HOST:PORT that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def token_file(kvd: "RealDaemon") -> str:
    path = pathlib.Path(kvd.folder, "token")
    path.write_text(TOKEN, encoding="ascii")
    return str(path)


def test_a_wrong_configuration_file(kvd: "RealDaemon", how: list[str]) -> None:
    path = kvd.configure("[limits]\nmax_conections = 1\n")
    error = kvd.refused(78, *how, "--config", path)
    assert error.startswith(f"{path}: limits.max_conections: no such option; did you mean max_connections?")


def test_a_file_at_the_path_that_is_not_a_socket(kvd: "RealDaemon", how: list[str]) -> None:
    pathlib.Path(kvd.path).write_text("precious", encoding="ascii")
    assert kvd.refused(78, *how) == f"{kvd.path} is not a socket; move it away or choose another path"
    assert pathlib.Path(kvd.path).read_text(encoding="ascii") == "precious"


@pytest.mark.parametrize("backlog", ["room in its queue", "a full queue"])
def test_another_process_listens_at_the_path(kvd: "RealDaemon", how: list[str], backlog: str) -> None:
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as first:
        other.bind(kvd.path)
        other.listen(0)
        if backlog == "a full queue":
            first.connect(kvd.path)
        assert f"another process already listens at {kvd.path}; " in kvd.refused(75, *how)


def test_the_tcp_port_is_in_use(kvd: "RealDaemon", how: list[str], taken_port: str, token_file: str) -> None:
    error = kvd.refused(74, *how, "--tcp", taken_port, "--token-file", token_file)
    assert error == f"cannot listen on tcp {taken_port}: Address already in use"


def test_the_second_of_two_tcp_ports_is_in_use(kvd: "RealDaemon", taken_port: str, token_file: str) -> None:
    kvd.refused(74, "--tcp", "127.0.0.1:0", "--tcp", taken_port, "--token-file", token_file)


def test_tcp_beyond_loopback_without_tls(kvd: "RealDaemon", how: list[str], token_file: str) -> None:
    for address in ("0.0.0.0:0", "[::]:0", "192.0.2.1:7070"):
        error = kvd.refused(78, *how, "--tcp", address, "--token-file", token_file)
        assert f"{address!r}: beyond loopback only with TLS" in error


def test_tcp_without_a_token(kvd: "RealDaemon", how: list[str]) -> None:
    assert "TCP needs listen.token_file" in kvd.refused(78, *how, "--tcp", "127.0.0.1:0")


@pytest.mark.parametrize(
    ("token", "words"),
    [(None, "No such file"), ("short", "16 to 4096"), ("x" * 5000, "16 to 4096"), ("\udcff" * 20, "cannot read")],
)
def test_a_token_file_without_a_usable_token(kvd: "RealDaemon", token: str | None, words: str) -> None:
    path = pathlib.Path(kvd.folder, "token")
    if token is not None:
        path.write_bytes(os.fsencode(token))
    error = kvd.refused(78, "--tcp", "127.0.0.1:0", "--token-file", str(path))
    assert f"listen.token_file: {'cannot read ' if token is None else ''}{path}" in error or words in error
    assert words in error


@pytest.mark.parametrize("length", [MAX_PATH_BYTES - 3, MAX_PATH_BYTES, MAX_PATH_BYTES + 1, 300])
def test_a_path_that_is_too_long(kvd: "RealDaemon", how: list[str], length: int) -> None:
    path = f"{kvd.folder}/{'a' * (length - len(str(kvd.folder)) - 1)}"
    error = kvd.refused(78, *how, "--socket", path)
    assert re.search(r"the (socket's )?path .*has \d+ bytes", error)
    assert str(MAX_PATH_BYTES) in error


def test_a_path_of_the_maximum_length_works(kvd: "RealDaemon") -> None:
    """The limit does not depend on the pid: the same path works always or never."""
    kvd.path = f"{kvd.folder}/{'a' * (MAX_PATH_BYTES - 4 - len(str(kvd.folder)) - 1)}"
    kvd.serve()
    assert kvd.ask(["ping"]) == [True]


def test_a_directory_that_cannot_be_made(kvd: "RealDaemon", how: list[str]) -> None:
    error = kvd.refused(74, *how, "--socket", "/proc/kvd/s")
    assert error == "cannot make the directory /proc/kvd: No such file or directory"


def test_a_directory_that_cannot_be_written(kvd: "RealDaemon", how: list[str]) -> None:
    """Not even by root."""
    assert kvd.refused(74, *how, "--socket", "/proc/kvd").startswith("cannot open the lock file /proc/kvd.lock: ")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_a_directory_of_another_user(kvd: "RealDaemon", how: list[str]) -> None:
    os.chmod(kvd.folder, 0o755)  # noqa: S103 - a directory of the test's own
    pathlib.Path(kvd.log_path).touch()
    os.chown(kvd.log_path, 65533, 65533)
    error = kvd.refused(74, *how, user=65533, group=65533, extra_groups=[])
    assert error == f"cannot open the lock file {kvd.lock_path}: Permission denied"


def test_an_unknown_group(kvd: "RealDaemon", how: list[str]) -> None:
    error = kvd.refused(78, *how, "--socket-group", "no such group")
    assert error == "no such group: no such group; see listen.socket_group"


def test_a_log_that_cannot_be_written(kvd: "RealDaemon", how: list[str]) -> None:
    error = kvd.refused(74, *how, "--log-to", str(kvd.folder))
    assert error == f"cannot write the log to {kvd.folder}: Is a directory"


def test_a_daemon_that_logs_to_stderr(kvd: "RealDaemon") -> None:
    assert "a daemon has no stderr" in kvd.refused(78, "--daemon", "--log-to", "stderr")


def test_a_refused_start_does_not_hinder_the_next(kvd: "RealDaemon", taken_port: str, token_file: str) -> None:
    """A start that fails after it took the lock releases it."""
    kvd.refused(74, "--daemon", "--tcp", taken_port, "--token-file", token_file)
    process = kvd.serve()
    assert kvd.status()["pid"] == process.pid
