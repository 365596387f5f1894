"""`kv serve --daemon`, as a real process: returns 0 only if a daemon serves, and otherwise leaves none behind.

test_daemon.py has more detail and every kind of failure, with a smaller daemon.
"""

import os
import pathlib
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.harness.scale import TIMES

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.real_daemon import RealDaemon

STARTERS = 8
ROUNDS = 2 * TIMES


def status_of(pid: int, field: str) -> str:
    """A field of /proc/PID/status."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    raise AssertionError(f"no {field}")


def descriptors(pid: int) -> list[str]:
    """What the open descriptors of a process refer to, in order."""
    folder = f"/proc/{pid}/fd"
    open_files = []
    for number in sorted(os.listdir(folder), key=int):
        try:
            open_files.append(os.readlink(f"{folder}/{number}"))
        except FileNotFoundError:
            continue  # closed since it was listed
    return open_files


@pytest.fixture
def fifo(kvd: "RealDaemon") -> str:
    os.mkfifo(f"{kvd.folder}/fifo")
    return f"{kvd.folder}/fifo"


# ---------------------------------------------------------------------- a start


@pytest.mark.parametrize("round_", range(3))
def test_as_soon_as_the_command_returns_0_the_daemon_answers(kvd: "RealDaemon", round_: int) -> None:
    process = kvd.start("--daemon")
    assert process.wait(30) == 0
    assert kvd.ask(["ping"]) == [True]


def test_the_daemon_is_detached(kvd: "RealDaemon") -> None:
    process = kvd.start("--daemon", cwd=kvd.folder, umask=0)
    assert process.wait(30) == 0
    pid = kvd.status()["pid"]
    text = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    _, parent, group, session, terminal, *_ = text.rpartition(") ")[2].split()
    assert parent not in (str(os.getpid()), str(process.pid))
    assert session not in (str(pid), str(os.getsid(0)))  # not a session leader, so it can never get a terminal
    assert (group, terminal) == (session, "0")
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert status_of(pid, "Umask") == "0077"


def test_no_open_file_of_the_caller_is_open_in_the_daemon(kvd: "RealDaemon") -> None:
    reading, writing = os.pipe()
    theirs, other = socket.socketpair()
    with theirs, other, open(__file__, "rb") as file:
        inherited = (reading, writing, theirs.fileno(), file.fileno())
        process = kvd.start("--daemon", pass_fds=inherited)
        assert process.stdout is not None
        assert process.stderr is not None
        outputs = (process.stdout.fileno(), process.stderr.fileno())
        names = {os.readlink(f"/proc/self/fd/{number}") for number in inherited + outputs}
        process.communicate(timeout=30)  # ends when the daemon has closed both
        assert process.returncode == 0
        open_files = set(descriptors(kvd.status()["pid"]))
    os.close(reading)
    os.close(writing)
    assert len(names) == 5  # both ends of the pipe have one name
    assert not open_files & names
    assert {name for name in open_files if name.startswith("/")} == {"/dev/null", kvd.log_path, kvd.lock_path}


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_do_no_harm(kvd: "RealDaemon", closed: str) -> None:
    process = kvd.start_in_shell(f'"$@" {closed}', "--daemon")
    assert process.wait(30) == 0
    assert descriptors(kvd.status()["pid"])[:3] == ["/dev/null"] * 3


def test_the_daemon_detaches_even_if_stdin_is_a_socket(kvd: "RealDaemon") -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = kvd.detach(stdin=theirs)
        assert os.getsid(pid) != os.getsid(0)
        assert descriptors(pid)[:3] == ["/dev/null"] * 3


@pytest.mark.parametrize("script", ['said=$("$@" 2>&1) && echo "[$said]"', '"$@" 2>&1 | cat; echo "[]"'])
def test_a_command_substitution_and_a_pipeline_end(kvd: "RealDaemon", script: str) -> None:
    """A shell waits for the last process that has the pipe open, which must not be the daemon."""
    process = kvd.start_in_shell(script, "--daemon")
    assert process.communicate(timeout=30) == (b"[]\n", b"")
    assert kvd.ask(["ping"]) == [True]


def test_sigterm_ends_the_daemon_and_leaves_no_files(kvd: "RealDaemon") -> None:
    kvd.end(kvd.detach())
    assert kvd.files() == []
    assert kvd.log_lines()[-1].startswith("INFO stopped: ")


# ---------------------------------------------------------------------- a start that fails


@pytest.mark.parametrize("number", ["SIGKILL", "SIGSEGV"])
def test_a_crash_while_starting_is_reported(kvd: "RealDaemon", number: str) -> None:
    result = kvd.run("--daemon", env=kvd.at_bind(number))
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr == b"kv: error: the daemon ended before it was ready\n"
    assert not kvd.is_locked()
    assert kvd.detach()


def test_an_exception_while_starting_is_shown_and_leaves_no_files(kvd: "RealDaemon") -> None:
    result = kvd.run("--daemon", env=kvd.at_bind("raise"))
    assert result.returncode == 1
    assert b"ValueError: not a daemon's day" in result.stderr
    assert result.stderr.endswith(b"kv: error: the daemon failed while starting; the traceback is above\n")
    assert kvd.files() == []


# ---------------------------------------------------------------------- signals during a start


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_launcher_ends_both_processes(kvd: "RealDaemon", fifo: str, number: signal.Signals) -> None:
    launcher = kvd.start("--daemon", env=kvd.at_bind(f"wait {fifo}"))
    writing = kvd.wait_at_fifo(fifo)
    launcher.send_signal(number)
    os.close(writing)  # a start remembers a signal, and looks at it after each of its steps
    output = launcher.communicate(timeout=60)
    assert (launcher.returncode, output) == (128 + number, (b"", b""))
    assert not kvd.is_locked()
    assert kvd.files() == []


def test_a_killed_launcher_leaves_no_daemon_behind(
    kvd: "RealDaemon", fifo: str, eventually: "Callable[..., None]"
) -> None:
    launcher = kvd.start("--daemon", env=kvd.at_bind(f"wait {fifo}"))
    writing = kvd.wait_at_fifo(fifo)
    launcher.kill()
    launcher.wait(30)
    assert kvd.is_locked(), "the daemon must still be starting"
    os.close(writing)
    eventually(lambda: kvd.files() == [])
    assert launcher.communicate(timeout=30) == (b"", b"")


# ---------------------------------------------------------------------- several daemons, and the files that they leave


def test_a_daemon_starts_silently_on_the_files_that_kill_9_left(kvd: "RealDaemon") -> None:
    first = kvd.detach()
    kvd.end(first, signal.SIGKILL)
    assert kvd.files() == ["s", "s.lock"]
    assert kvd.detach() != first


def test_a_daemon_that_is_still_starting_refuses_a_second(kvd: "RealDaemon", fifo: str) -> None:
    first = kvd.start("--daemon", env=kvd.at_bind(f"wait {fifo}"))
    writing = kvd.wait_at_fifo(fifo)
    assert "already running: pid " in kvd.refused(75, "--daemon")
    os.close(writing)
    assert first.wait(30) == 0


@pytest.mark.parametrize("left_behind", ["nothing", "a stale socket and lock file"])
def test_of_simultaneous_starts_exactly_one_wins(kvd: "RealDaemon", left_behind: str) -> None:
    for _ in range(ROUNDS):
        if left_behind != "nothing":
            kvd.end(kvd.detach(), signal.SIGKILL)
            assert kvd.files() == ["s", "s.lock"]
        gate, held = os.pipe()
        starters = [
            kvd.start_in_shell('read gate; exec "$@"', "--daemon", stdin=gate, stdout=None) for _ in range(STARTERS)
        ]
        os.close(gate)
        os.close(held)  # all of them continue at once
        results = [(starter.communicate(timeout=30)[1], starter.returncode) for starter in starters]
        assert sorted(exit_code for _, exit_code in results) == [0] + [75] * (STARTERS - 1), results
        pid = kvd.status()["pid"]
        assert pathlib.Path(kvd.lock_path).read_text(encoding="ascii") == f"{pid}\n"
        kvd.end(pid)
        assert kvd.files() == []
