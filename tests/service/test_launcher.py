"""The launcher alone: what it does with signals that come at unlikely moments. test_daemon.py has the rest."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kvd.service.launcher import DaemonLauncher

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Process = subprocess.Popen[bytes]


@pytest.fixture
def daemon() -> Iterator[Process]:
    """A process that does nothing until the test ends."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def ended_child() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    return child


def confirm() -> None:
    """The daemon answers."""


def test_the_signal_handlers_are_restored() -> None:
    reading, writing = os.pipe()
    before = [signal.getsignal(number) for number in FORWARDED]
    with DaemonLauncher(reading):
        assert not {signal.getsignal(number) for number in FORWARDED} & set(before)
    assert [signal.getsignal(number) for number in FORWARDED] == before
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("number", FORWARDED)
def test_a_signal_before_the_pid_is_known_is_forwarded_once_it_is(daemon: Process, number: signal.Signals) -> None:
    reading, writing = os.pipe()
    with DaemonLauncher(reading) as launcher:
        signal.raise_signal(number)
        os.write(writing, f"P{daemon.pid}\n".encode())
        os.close(writing)
        assert launcher.wait(ended_child(), confirm) == 128 + number
    assert daemon.wait(timeout=30) == -signal.SIGTERM


def test_a_signal_after_the_daemon_has_ended_is_not_an_error() -> None:
    reading, writing = os.pipe()
    ended_pid = ended_child()
    os.waitpid(ended_pid, 0)
    with DaemonLauncher(reading) as launcher:
        signal.raise_signal(signal.SIGTERM)
        os.write(writing, f"P{ended_pid}\n".encode())
        os.close(writing)
        assert launcher.wait(ended_child(), confirm) == 128 + signal.SIGTERM


def test_a_signal_while_the_daemon_is_pinged_ends_both(daemon: Process) -> None:
    reading, writing = os.pipe()
    os.write(writing, f"P{daemon.pid}\nR\n".encode())
    os.close(writing)
    with DaemonLauncher(reading) as launcher:
        assert launcher.wait(ended_child(), lambda: signal.raise_signal(signal.SIGTERM)) == 128 + signal.SIGTERM
    assert daemon.wait(timeout=30) == -signal.SIGTERM


def test_only_ready_counts_as_success(capfd: pytest.CaptureFixture[str]) -> None:
    for messages, exit_code, error in (
        (b"", 1, "kv: error: the daemon ended before it was ready\n"),
        (b"P1000000000\n", 1, "kv: error: the daemon ended before it was ready\n"),
        (b"P1000000000\nF74 no disk\n", 74, "kv: error: no disk\n"),
        (b"P1000000000\nR\n", 0, ""),
    ):
        reading, writing = os.pipe()
        os.write(writing, messages)
        os.close(writing)
        with DaemonLauncher(reading) as launcher:
            assert launcher.wait(ended_child(), confirm) == exit_code
        assert capfd.readouterr().err == error
