"""The waiting process by itself: what it does with signals that come at unlikely moments. The rest: test_daemon.py."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kvd.service.launcher import DaemonLauncher

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Process = subprocess.Popen[bytes]


@pytest.fixture
def daemon() -> Iterator[Process]:
    """A process that does nothing."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def ended_child() -> int:
    child = os.fork()
    if child == 0:
        os._exit(0)
    return child


def confirm() -> None:
    """It answers."""


def test_the_signals_are_as_they_were_afterwards() -> None:
    reading, writing = os.pipe()
    before = [signal.getsignal(number) for number in PASSED_ON]
    with DaemonLauncher(reading):
        assert not {signal.getsignal(number) for number in PASSED_ON} & set(before)
    assert [signal.getsignal(number) for number in PASSED_ON] == before
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("number", PASSED_ON)
def test_a_signal_before_the_pid_is_known_is_passed_on_then(daemon: Process, number: signal.Signals) -> None:
    reading, writing = os.pipe()
    with DaemonLauncher(reading) as launcher:
        signal.raise_signal(number)
        os.write(writing, f"P{daemon.pid}\n".encode())
        os.close(writing)
        assert launcher.wait(ended_child(), confirm) == 128 + number
    assert daemon.wait(timeout=30) == -signal.SIGTERM


def test_a_signal_when_the_daemon_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    gone = ended_child()
    os.waitpid(gone, 0)
    with DaemonLauncher(reading) as launcher:
        signal.raise_signal(signal.SIGTERM)
        os.write(writing, f"P{gone}\n".encode())
        os.close(writing)
        assert launcher.wait(ended_child(), confirm) == 128 + signal.SIGTERM


def test_a_signal_while_the_daemon_is_asked_ends_both(daemon: Process) -> None:
    reading, writing = os.pipe()
    os.write(writing, f"P{daemon.pid}\nR\n".encode())
    os.close(writing)
    with DaemonLauncher(reading) as launcher:
        assert launcher.wait(ended_child(), lambda: signal.raise_signal(signal.SIGTERM)) == 128 + signal.SIGTERM
    assert daemon.wait(timeout=30) == -signal.SIGTERM


def test_only_ready_is_a_success(capfd: pytest.CaptureFixture[str]) -> None:
    for said, exit_code, error in (
        (b"", 1, "kv: error: the daemon ended before it was ready\n"),
        (b"P1000000000\n", 1, "kv: error: the daemon ended before it was ready\n"),
        (b"P1000000000\nF74 no disk\n", 74, "kv: error: no disk\n"),
        (b"P1000000000\nR\n", 0, ""),
    ):
        reading, writing = os.pipe()
        os.write(writing, said)
        os.close(writing)
        with DaemonLauncher(reading) as launcher:
            assert launcher.wait(ended_child(), confirm) == exit_code
        assert capfd.readouterr().err == error
