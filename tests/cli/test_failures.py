"""How the command ends after a failure: one line, the right exit code, never a traceback."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from kv.cli.output import Output
from kvd.protocol import exits

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv


@pytest.fixture
def silent(tmp_path: pathlib.Path) -> Iterator[socket.socket]:
    """A listening socket whose server never answers."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "nobody.sock"))
        listening.listen()
        yield listening


@pytest.mark.parametrize("arguments", [["nonsense"], ["get"], ["--nonsense"], ["get", "k", "--timeout", "soon"]])
def test_wrong_usage_ends_with_2(alone: "Kv", arguments: list[str]) -> None:
    alone.fails(2, *arguments)


def test_an_unknown_command_gets_a_suggestion(alone: "Kv") -> None:
    assert "did you mean 'shutdown'?" in alone.fails(2, "shutdwon")


def test_an_unknown_option_gets_a_suggestion(alone: "Kv") -> None:
    assert "unknown option: --tll=5 (did you mean --ttl?)" in alone.fails(2, "set", "--tll=5", "a=1")
    assert "unknown option: --versoin (did you mean --version?)" in alone.fails(2, "get", "--versoin", "a")
    assert "unknown option: -x=1 (write '--' before an operand that " in alone.fails(2, "set", "-x=1")


def test_a_malformed_address_ends_with_2(alone: "Kv") -> None:
    assert "tcp://HOST:PORT" in alone.fails(2, "ping", "-s", "tcp://nonsense")


def test_an_empty_address_ends_with_2(alone: "Kv") -> None:
    assert alone.fails(2, "-s", "", "ping").startswith("kv: error: an address cannot be empty; write a socket's path, ")


def test_no_daemon_ends_with_69(alone: "Kv") -> None:
    assert "kv serve --daemon" in alone.fails(69, "get", "k")


@pytest.mark.usefixtures("silent")
def test_no_answer_in_time_ends_with_5(alone: "Kv") -> None:
    assert "0.1" in alone.fails(5, "get", "k", "--timeout", "0.1")
    alone.fails(5, "get", "k", KVD_TIMEOUT="0.1")


@pytest.mark.usefixtures("silent")
def test_a_write_without_a_reply_says_that_it_may_have_been_made(alone: "Kv") -> None:
    assert "may have been made" in alone.fails(5, "set", "k=v", "--timeout", "2")


@pytest.mark.parametrize(
    "arguments", [["set", "k=v"], ["incr", "k"], ["del", "k"], ["txn"], ["touch", "--ttl", "1s", "k"]]
)
def test_a_write_whose_connection_breaks_says_that_it_may_have_been_made(
    alone: "Kv", silent: socket.socket, arguments: list[str]
) -> None:
    process = alone.start(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"set k v")
    process.stdin.close()
    process.stdin = None
    silent.settimeout(0.1)
    while process.poll() is None:
        try:
            connection, _ = silent.accept()
        except TimeoutError:
            continue
        connection.recv(1000)
        connection.close()
    output, error = process.communicate(timeout=30)
    assert (process.returncode, output) == (5, b"")
    assert b"may have been made; read the keys before you try again\n" in error


def test_a_reply_of_another_protocol_ends_with_5(alone: "Kv", silent: socket.socket) -> None:
    process = alone.start("get", "k", "--timeout", "30", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    connection, _ = silent.accept()
    connection.recv(100)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    connection.close()
    output, error = process.communicate(timeout=30)
    assert (process.returncode, output) == (5, b"")
    assert error.startswith(b"kv: error: ")
    assert error.count(b"\n") == 1


def test_a_key_that_is_too_large_ends_with_5(kv: "Kv") -> None:
    kv.fails(5, "get", "k" * 5000)


def test_a_missing_key_ends_with_1(kv: "Kv") -> None:
    kv.fails(1, "get", "k")


def test_ctrl_c_ends_with_130_quietly(alone: "Kv", silent: socket.socket) -> None:
    process = alone.start("get", "k", "--timeout", "0", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    connection, _ = silent.accept()
    connection.recv(100)  # now it waits for the reply
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == 130
    connection.close()


def test_a_closed_pipe_is_quiet(kv: "Kv") -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = kv.start("help", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert process.communicate(timeout=30)[1] == b""
    assert process.returncode == 141


def test_a_full_disk_ends_with_74(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    for arguments in (["get", "a"], ["ls"], ["set", "a=2"], ["help"], ["version"]):
        with open("/dev/full", "wb") as full:
            process = kv.start(*arguments, stdout=full, stderr=subprocess.PIPE)
            error = process.communicate(timeout=30)[1]
        assert process.returncode == 74
        assert error == b"kv: error: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_are_not_mistaken_for_the_socket(shared_kv: "Kv", closed: str) -> None:
    """The output is large, so kv writes it while its connection is open, which must not have the number 1."""
    keys = [f"{number:0100}" for number in range(2_000)]
    shared_kv.ok("set", "-", stdin="\n".join(f'{{"key": "{key}", "value": ""}}' for key in keys).encode())
    line = f"exec {' '.join(shared_kv.command)} ls {closed}"
    result = subprocess.run(  # noqa: S603 (the command under test)
        ["/bin/sh", "-c", line], capture_output=True, env=shared_kv.environment(), timeout=30, check=False
    )
    to_nowhere = ">&-" in closed.replace("2>&-", "")
    assert result.returncode == (74 if to_nowhere else 0)
    assert result.stdout.decode().split() == ([] if to_nowhere else keys)


def test_nothing_is_set_when_standard_input_is_closed(kv: "Kv") -> None:
    line = f"exec {' '.join(kv.command)} set a=- <&-"
    result = subprocess.run(["/bin/sh", "-c", line], capture_output=True, env=kv.environment(), timeout=30, check=False)  # noqa: S603 (the command under test)
    assert result.returncode == 2
    assert b"standard input" in result.stderr
    assert kv.ok("ls") == ""


def test_a_fault_in_kv_is_one_line_and_a_traceback_only_on_request(alone: "Kv", tmp_path: pathlib.Path) -> None:
    # A module of this name that is found first, and whose import fails.
    (tmp_path / "argparse.py").write_text("raise LookupError('broken \\x1b[31m on purpose')")
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    assert "LookupError: broken \\x1b[31m on purpose; please report it" in alone.fails(70, "ping", PYTHONPATH=path)
    assert b"Traceback" in alone("ping", PYTHONPATH=path, KVD_DEBUG="1").stderr


def test_an_error_cannot_attack_the_terminal(alone: "Kv") -> None:
    error = alone.fails(2, "get", b"\x1b[31m\xff\n")
    assert "\\x1b[31m\\xff\\n" in error


def test_output_waits_for_a_pipe_that_is_full_and_does_not_block() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    data = b"x" * 1_000_000
    reader = subprocess.Popen([sys.executable, "-c", "import sys; print(len(sys.stdin.buffer.read()))"], stdin=reading,
                              stdout=subprocess.PIPE)  # fmt: skip
    os.close(reading)
    output = Output(writing)
    output.write(data)
    output.flush()
    os.close(writing)
    assert reader.communicate(timeout=30)[0] == b"1000000\n"


def test_every_exit_code_has_a_meaning() -> None:
    codes = {value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)}
    assert codes == set(exits.MEANINGS)


@pytest.mark.parametrize(
    ("code", "status"),
    [("not_found", 1), ("conflict", 3), ("forbidden", 4), ("unauthenticated", 4), ("timed_out", 5), ("too_large", 5),
     ("internal", 5), ("busy", 5), ("unavailable", 69), ("anything new", 5)],
)  # fmt: skip
def test_the_exit_code_of_each_error_of_the_daemon(code: str, status: int) -> None:
    assert exits.exit_code_for(code) == status
