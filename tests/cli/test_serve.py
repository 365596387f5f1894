"""kv serve passes its flags on, as the daemon's behaviour shows. tests/service tests that behaviour itself."""

import os
import pathlib
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv

# Pass a listening socket on as systemd does: descriptor 3, for exactly this process.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""
Start = Callable[..., "tuple[Kv, subprocess.Popen[bytes]]"]


def free_port() -> int:
    """A free port of the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def token(tmp_path: pathlib.Path) -> str:
    """A file with a token."""
    (tmp_path / "token").write_text("not-a-secret-but-long-enough-for-one\n")
    (tmp_path / "token").chmod(0o600)
    return str(tmp_path / "token")


@pytest.fixture
def tcp(serving: Start, token: str) -> "tuple[Kv, subprocess.Popen[bytes]]":
    """``kv`` with a daemon on TCP, and the daemon."""
    address = f"127.0.0.1:{free_port()}"
    kv, process = serving("--tcp", address, "--token-file", token)
    kv.socket = f"tcp://{address}"
    return kv, process


def test_by_default_only_the_user_may_use_the_socket(serving: Start) -> None:
    kv, _ = serving()
    assert stat.S_IMODE(os.stat(str(kv.socket)).st_mode) == 0o600


def test_socket_mode_sets_the_permissions(serving: Start) -> None:
    kv, _ = serving("--socket-mode", "0660")
    assert stat.S_IMODE(os.stat(str(kv.socket)).st_mode) == 0o660


def test_the_socket_flag_stands_before_the_command_too(alone: "Kv") -> None:
    assert "valid" in alone.ok("-s", str(alone.socket), "serve", "--check-config")


def test_the_output_of_check_config_is_like_any_other(alone: "Kv") -> None:
    assert alone.ok("serve", "--check-config", "-q") == ""
    script = '"$@" serve --check-config >/dev/full'
    result = subprocess.run(  # noqa: S603 (the command under test)
        ["/bin/sh", "-c", script, "sh", *alone.command], env=alone.environment(), capture_output=True, check=False
    )
    assert (result.returncode, result.stderr) == (74, b"kv: error: cannot write the output: No space left on device\n")


@pytest.mark.parametrize(
    "flags",
    [["--socket-mode", "9"], ["--log-level", "loud"], ["--tcp", "127.0.0.1:1"],
     ["--config", "/does/not/exist"]],
)  # fmt: skip
def test_a_wrong_configuration_ends_with_78(alone: "Kv", flags: list[str]) -> None:
    alone.fails(78, "serve", "--check-config", *flags)
    alone.fails(78, "serve", *flags)


def test_a_socket_that_is_an_address_for_clients_is_wrong_usage(alone: "Kv") -> None:
    assert "--tcp HOST:PORT" in alone.fails(2, "serve", "--socket", "tcp://127.0.0.1:1")


def test_a_second_daemon_ends_with_75(serving: Start) -> None:
    kv, process = serving()
    assert str(process.pid) in kv.fails(75, "srv", "--socket", str(kv.socket))
    kv.ok("ping")


def test_the_daemon_flag_returns_when_the_daemon_answers(alone: "Kv", tmp_path: pathlib.Path) -> None:
    for flag in ("--daemon", "-d"):
        result = alone("serve", flag, "--socket", str(alone.socket), "--log-to", str(tmp_path / "log"))
        assert result.returncode == 0, result.stderr
        alone.ok("ping")
        assert alone("shutdown").returncode == 0
        alone.fails(69, "ping")


def test_tcp_works_with_the_token(tcp: "tuple[Kv, subprocess.Popen[bytes]]", token: str) -> None:
    kv, _ = tcp
    kv.ok("--token-file", token, "set", "a=1")
    assert kv.ok("get", "a", "--token-file", token) == "a: 1\n"


def test_tcp_without_the_token_ends_with_4(tcp: "tuple[Kv, subprocess.Popen[bytes]]", tmp_path: pathlib.Path) -> None:
    kv, _ = tcp
    (tmp_path / "wrong").write_text("a-wrong-token-though-as-long-as-any-other")
    kv.fails(4, "get", "a")
    kv.fails(4, "get", "a", "--token-file", str(tmp_path / "wrong"))


def test_administrative_commands_end_with_4_over_tcp(tcp: "tuple[Kv, subprocess.Popen[bytes]]", token: str) -> None:
    kv, _ = tcp
    kv.fails(4, "shutdown", "--token-file", token)
    kv.fails(4, "reload", "--token-file", token)
    kv.ok("ping", "--token-file", token)


def test_tab_offers_keys_over_tcp(tcp: "tuple[Kv, subprocess.Popen[bytes]]", token: str) -> None:
    kv, _ = tcp
    kv.ok("set", "here=1", "--token-file", token)
    line = f"kv --token-file {token} get h"
    variables = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "fish", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    result = subprocess.run(  # noqa: S603 (the command under test)
        ["/bin/sh", "-c", 'exec "$@" 8>&1', "sh", *kv.command],
        capture_output=True, env=kv.environment() | variables, timeout=30, check=False,
    )  # fmt: skip
    assert result.stdout.strip() == b"here"


def test_shutdown_from_another_pid_namespace_waits_for_the_end_of_the_connection(serving: Start) -> None:
    """From there, the daemon's process cannot be seen."""
    kv, process = serving()
    unshare = ["/usr/bin/unshare", "--pid", "--fork"]
    if subprocess.run([*unshare, "/bin/true"], capture_output=True, check=False).returncode:  # noqa: S603 (fixed)
        pytest.skip("may not make a pid namespace here")
    result = subprocess.run(  # noqa: S603 (the command under test)
        [*unshare, *kv.command, "shutdown"], capture_output=True, env=kv.environment(), timeout=30, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"Kvd stopped.\n", b"")
    assert process.wait(30) == 0


def test_shutdown_of_an_activated_daemon_says_that_it_starts_again(alone: "Kv") -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(alone.socket))
        listening.listen()
        process = subprocess.Popen(  # noqa: S603 (the command under test)
            [sys.executable, "-c", ACTIVATE, str(listening.fileno()), *alone.command, "serve"],
            env=alone.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            pass_fds=[listening.fileno()],
        )  # fmt: skip
        result = alone("shutdown")
        assert result.stdout == b"Kvd stopped.\n"
        assert result.stderr.count(b"\n") == 1
        assert b"systemctl stop kvd.socket kvd.service" in result.stderr
        assert process.wait(30) == 0
