"""Becoming a daemon, with real processes: the command returns 0 only if a daemon serves, and otherwise says why not.

The daemon is a small one that answers with its pid.
"""

import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.small_daemon import SmallDaemon

Eventually = Callable[[Callable[[], object]], None]
ROUNDS = 3
STARTERS = 8


def status(pid: int, field: str) -> str:
    """A field of /proc/PID/status."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return value.strip()
    raise AssertionError(f"no {field}")


def descriptors(pid: int) -> dict[int, str]:
    """The open descriptors of a process, and what each refers to."""
    folder = f"/proc/{pid}/fd"
    return {int(number): os.readlink(f"{folder}/{number}") for number in os.listdir(folder)}


def stat_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, ppid, pgrp, session, tty …"""
    return pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()


def assert_nothing_runs(daemon: "SmallDaemon") -> None:
    assert not daemon.is_locked()
    assert not os.path.exists(daemon.path)


def wait_until_blocked(fifo: str, eventually: Eventually) -> int:
    """Wait until the daemon reads from the FIFO; return the writing end. Closing it lets the daemon continue."""
    writing: list[int] = []

    def is_open() -> bool:
        try:
            writing.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False  # the daemon does not read yet
        return True

    eventually(is_open)
    return writing[0]


@pytest.fixture
def fifo(tmp_path: pathlib.Path) -> str:
    os.mkfifo(tmp_path / "fifo")
    return str(tmp_path / "fifo")


# ---------------------------------------------------------------------- a start that succeeds


def test_after_exit_code_0_the_daemon_answers_and_nothing_was_printed(daemon: "SmallDaemon") -> None:
    assert daemon.run() == (0, "")
    assert daemon.ask() == daemon.written_pid()


def test_the_daemon_is_detached(daemon: "SmallDaemon") -> None:
    daemon.run(cwd=daemon.folder, umask=0)
    pid = daemon.ask()
    _, _, group, session, tty, *_ = stat_of(pid)
    assert session not in (str(pid), str(os.getsid(0)))  # not a session leader, so it can never get a terminal
    assert (group, tty) == (session, "0")
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert status(pid, "Umask") == "0077"


def test_the_daemon_has_only_its_own_descriptors(daemon: "SmallDaemon", eventually: Eventually) -> None:
    reading, writing = os.pipe()
    daemon.run(pass_fds=(reading, writing))
    os.close(reading)
    os.close(writing)
    pid = daemon.ask()

    def kinds() -> list[str]:
        return [name.partition(":")[0] for _, name in sorted(descriptors(pid).items())]

    # Eventually, because the daemon may not have closed our connection yet.
    eventually(lambda: kinds() == ["/dev/null"] * 3 + [daemon.lock_path, "socket"])


def test_the_daemon_ignores_hangups_and_the_terminals_stop_signals(daemon: "SmallDaemon") -> None:
    daemon.run()
    ignored = int(status(daemon.ask(), "SigIgn"), 16)
    # SIGINT until the event loop handles it, because ctrl-c is for the launcher.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP, signal.SIGPIPE):
        assert ignored & 1 << number - 1, number


def test_the_daemon_keeps_the_callers_limit_for_core_dumps(daemon: "SmallDaemon") -> None:
    limit = resource.getrlimit(resource.RLIMIT_CORE)
    daemon.run()
    assert resource.prlimit(daemon.ask(), resource.RLIMIT_CORE) == limit


def test_sigterm_ends_the_daemon_and_leaves_no_files(daemon: "SmallDaemon", eventually: Eventually) -> None:
    daemon.run()
    os.kill(daemon.ask(), signal.SIGTERM)
    eventually(lambda: not os.path.exists(daemon.lock_path))
    assert os.listdir(daemon.folder) == []


# ---------------------------------------------------------------------- the environment of a start


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_do_no_harm(daemon: "SmallDaemon", closed: str) -> None:
    result = daemon.shell(f"$daemon {closed}")
    assert (result.returncode, result.stderr) == (0, b"")
    open_now = descriptors(daemon.ask())
    assert [open_now[number] for number in (0, 1, 2)] == ["/dev/null"] * 3


def test_a_failure_with_all_descriptors_closed_still_has_its_exit_code(daemon: "SmallDaemon") -> None:
    daemon.run()
    assert daemon.shell("$daemon <&- >&- 2>&-").returncode == 75


def test_the_daemon_detaches_even_if_stdin_is_a_socket(daemon: "SmallDaemon") -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert daemon.run(stdin=theirs) == (0, "")
        assert stat_of(daemon.ask())[3] != str(os.getsid(0))


def test_a_command_substitution_and_a_pipeline_end(daemon: "SmallDaemon") -> None:
    """A shell waits for the last process that has the pipe open, which must not be the daemon."""
    result = daemon.shell('said=$($daemon 2>&1) && echo "[$said]"')
    assert result.stdout == b"[]\n"
    daemon.kill()
    assert daemon.shell("$daemon 2>&1 | cat").stdout == b""
    assert daemon.ask()


@pytest.mark.parametrize("flags", [["-X", "dev", "-W", "error"], ["-O"], ["-I"]])
def test_flags_of_the_interpreter_make_no_difference(daemon: "SmallDaemon", flags: list[str]) -> None:
    before = f"import sys; sys.path[:0] = {sys.path!r}"
    assert daemon.run_after(before, *flags) == (0, "")
    assert daemon.ask()


# ---------------------------------------------------------------------- a start that fails


def test_an_expected_failure_is_one_line_with_its_exit_code(daemon: "SmallDaemon") -> None:
    """Even if its text has several lines and bytes that are not UTF-8."""
    assert daemon.run("start-error", "cheese") == (74, "kv: error: no disk \\udcff of my own: cheese\n")
    assert_nothing_runs(daemon)


def test_an_exception_while_starting_is_shown_with_its_traceback(daemon: "SmallDaemon") -> None:
    exit_code, error = daemon.run("exception")
    assert exit_code == 1
    assert "ValueError: not a daemon's day" in error
    assert error.endswith("kv: error: the daemon failed while starting; the traceback is above\n")
    assert_nothing_runs(daemon)


@pytest.mark.parametrize("end", ["sigkill", "segv"])
def test_a_crash_while_starting_is_reported(daemon: "SmallDaemon", end: str) -> None:
    assert daemon.run(end) == (1, "kv: error: the daemon ended before it was ready\n")
    assert_nothing_runs(daemon)


def test_an_exit_while_starting_is_a_failure(daemon: "SmallDaemon") -> None:
    exit_code, error = daemon.run("exit")
    assert exit_code == 1
    assert error.endswith("kv: error: the daemon failed while starting; the traceback is above\n")


def test_a_daemon_that_does_not_answer_is_stopped(daemon: "SmallDaemon", eventually: Eventually) -> None:
    assert daemon.run("unconfirmed") == (1, "kv: error: it does not answer\n")
    eventually(lambda: not os.path.exists(daemon.lock_path))


def test_a_failure_is_reported_only_after_the_lock_is_free(
    daemon: "SmallDaemon", fifo: str, eventually: Eventually
) -> None:
    """Otherwise a second try at once would fail because a daemon is running."""
    starter = daemon.start("slow-release", fifo)
    writing = wait_until_blocked(fifo, eventually)
    with pytest.raises(subprocess.TimeoutExpired):
        starter.wait(timeout=0.3)
    os.close(writing)
    starter.communicate(timeout=30)
    assert starter.returncode == 74


@pytest.mark.parametrize("behaviour", ["", "start-error", "exception"])
def test_exit_handlers_run_once_and_not_in_the_daemon(
    daemon: "SmallDaemon", tmp_path: pathlib.Path, behaviour: str
) -> None:
    before = f"import atexit; atexit.register(lambda: open('{tmp_path}/exits', 'a').write('x'))"
    exit_code, _ = daemon.run_after(before, behaviour=behaviour)
    if exit_code == 0:
        daemon.kill(signal.SIGTERM)
    assert (tmp_path / "exits").read_text(encoding="ascii") == "x"


def test_a_failed_fork_is_reported_with_its_reason(daemon: "SmallDaemon") -> None:
    # Set at the moment of the fork, as another user if necessary, because the limit does not apply to root.
    before = (
        "import os, resource, sys; sys.addaudithook(lambda event, _: event == 'os.fork' and "
        "(os.getuid() or os.setuid(12345), resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))))"
    )
    exit_code, error = daemon.run_after(before)
    assert (exit_code, error) == (1, "kv: error: cannot start another process: Resource temporarily unavailable\n")


def test_a_failure_after_readiness_goes_to_the_log(
    daemon: "SmallDaemon", tmp_path: pathlib.Path, eventually: Eventually
) -> None:
    """stderr is /dev/null by then, and the pipe's number may belong to a client's connection."""
    assert daemon.run("crash", f"{tmp_path}/log") == (0, "")
    assert daemon.ask(b"crash") == 0
    eventually(lambda: not daemon.is_locked_by_others())
    assert "RuntimeError: crashed while serving" in (tmp_path / "log").read_text(encoding="utf-8")
    assert not os.path.exists(daemon.path)


# ---------------------------------------------------------------------- signals during a start


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_launcher_ends_both_processes(
    daemon: "SmallDaemon", fifo: str, eventually: Eventually, number: signal.Signals
) -> None:
    launcher = daemon.start("wait", fifo)
    writing = wait_until_blocked(fifo, eventually)
    launcher.send_signal(number)
    _, error = launcher.communicate(timeout=30)
    os.close(writing)
    assert (launcher.returncode, error) == (128 + number, b"")
    assert_nothing_runs(daemon)


def test_ctrl_c_for_the_whole_process_group_prints_nothing(
    daemon: "SmallDaemon", fifo: str, eventually: Eventually
) -> None:
    launcher = daemon.start("wait", fifo, start_new_session=True)
    writing = wait_until_blocked(fifo, eventually)
    os.killpg(launcher.pid, signal.SIGINT)
    _, error = launcher.communicate(timeout=30)
    os.close(writing)
    assert (launcher.returncode, error) == (130, b"")
    assert_nothing_runs(daemon)


def test_nohup_is_respected(daemon: "SmallDaemon", fifo: str, eventually: Eventually) -> None:
    launcher = daemon.start("wait", fifo, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    writing = wait_until_blocked(fifo, eventually)
    launcher.send_signal(signal.SIGHUP)
    os.close(writing)
    launcher.communicate(timeout=30)
    assert launcher.returncode == 0
    assert daemon.ask()


def test_a_killed_launcher_leaves_no_daemon_behind(daemon: "SmallDaemon", fifo: str, eventually: Eventually) -> None:
    launcher = daemon.start("wait", fifo)
    writing = wait_until_blocked(fifo, eventually)
    launcher.kill()
    launcher.wait(timeout=30)
    assert daemon.is_locked_by_others()
    os.close(writing)
    eventually(lambda: not os.path.exists(daemon.lock_path))
    assert_nothing_runs(daemon)
    assert launcher.communicate(timeout=30)[1] == b""


# ---------------------------------------------------------------------- several daemons, and the files that they leave


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(daemon: "SmallDaemon") -> None:
    daemon.run()
    pid = daemon.ask()
    exit_code, error = daemon.run()
    assert exit_code == 75
    assert f"already running: pid {pid} " in error
    assert daemon.ask() == pid


def test_a_daemon_that_is_still_starting_refuses_a_second(
    daemon: "SmallDaemon", fifo: str, eventually: Eventually
) -> None:
    first = daemon.start("wait", fifo)
    writing = wait_until_blocked(fifo, eventually)
    assert daemon.run()[0] == 75
    os.close(writing)
    first.communicate(timeout=30)
    assert first.returncode == 0
    assert daemon.ask() == daemon.written_pid()


def test_a_daemon_starts_on_the_files_that_kill_9_left(daemon: "SmallDaemon") -> None:
    daemon.run()
    daemon.kill(signal.SIGKILL)
    assert sorted(os.listdir(daemon.folder)) == ["s", "s.lock"]
    assert daemon.run() == (0, "")
    assert daemon.ask() == daemon.written_pid()


def test_the_pid_of_another_process_in_the_lock_file_means_nothing(daemon: "SmallDaemon") -> None:
    pathlib.Path(daemon.lock_path).write_text(f"{os.getpid()}\n", encoding="ascii")
    assert daemon.run() == (0, "")
    assert daemon.ask() == daemon.written_pid() != os.getpid()


@pytest.mark.parametrize("left_behind", ["nothing", "a stale socket and lock file"])
def test_of_simultaneous_starts_exactly_one_wins(daemon: "SmallDaemon", left_behind: str) -> None:
    for _ in range(ROUNDS):
        if left_behind != "nothing":
            daemon.run()
            daemon.kill(signal.SIGKILL)
            assert os.path.exists(daemon.path)
        gate, held = os.pipe()
        starters = [daemon.start("at-once", stdin=gate) for _ in range(STARTERS)]
        os.close(gate)
        os.close(held)
        results = [(starter.communicate(timeout=30)[1], starter.returncode) for starter in starters]
        assert sorted(exit_code for _, exit_code in results) == [0] + [75] * (STARTERS - 1), results
        assert daemon.ask() == daemon.written_pid()
        daemon.kill(signal.SIGKILL)
        if left_behind == "nothing":
            os.unlink(daemon.path)
            os.unlink(daemon.lock_path)
