"""`kv serve` in the foreground, as a real process: its output, its end, and a second daemon beside it."""

import os
import pathlib
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.real_daemon import RealDaemon

STARTED = b"Kvd started. Press ctrl-c to stop.\n"


# ---------------------------------------------------------------------- a start


def test_a_daemon_that_says_it_started_answers(kvd: "RealDaemon") -> None:
    process = kvd.start()
    assert process.stdout is not None
    assert process.stdout.readline() == STARTED
    assert kvd.status()["pid"] == process.pid


def test_a_daemon_prints_nothing_else(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    kvd.ask(["set", {"a": b"1"}])
    process.terminate()
    assert process.communicate(timeout=30) == (b"", b"")


def test_a_foreground_daemon_stays_in_its_session_and_directory(kvd: "RealDaemon") -> None:
    process = kvd.serve(cwd=kvd.folder)
    assert os.getsid(process.pid) == os.getsid(0)
    assert os.readlink(f"/proc/{process.pid}/cwd") == os.path.realpath(kvd.folder)


def test_a_stdout_without_a_reader_does_no_harm(kvd: "RealDaemon") -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = kvd.start(stdout=writing)
    os.close(writing)
    kvd.wait_until_it_answers()
    process.terminate()
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_do_no_harm(kvd: "RealDaemon", closed: str) -> None:
    process = kvd.start_in_shell(f'exec "$@" {closed}')
    kvd.wait_until_it_answers()
    assert kvd.stop(process) == 0


# ---------------------------------------------------------------------- the end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_ends_the_daemon_with_0_and_leaves_no_files(kvd: "RealDaemon", number: signal.Signals) -> None:
    process = kvd.serve()
    assert kvd.files() == ["s", "s.lock"]
    assert kvd.stop(process, number) == 0
    assert kvd.files() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_more_signals_during_a_stop_change_nothing(kvd: "RealDaemon", number: signal.Signals) -> None:
    """At whatever moment they come: a person who presses ctrl-c twice still wants an orderly stop."""
    process = kvd.serve()
    process.terminate()
    while process.poll() is None:
        process.send_signal(number)
    assert process.stderr is not None
    assert (process.returncode, process.stderr.read()) == (0, b"")
    assert kvd.files() == []


def test_a_daemon_whose_socket_was_replaced_stops_too(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    os.unlink(kvd.path)
    pathlib.Path(kvd.path).write_text("another file", encoding="ascii")
    assert kvd.stop(process) == 0
    assert pathlib.Path(kvd.path).read_text(encoding="ascii") == "another file"


# ---------------------------------------------------------------------- several daemons, and the files that they leave


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    for flags in ([], ["--daemon"]):
        assert kvd.refused(75, *flags) == (
            f"already running: pid {process.pid} (lock {kvd.lock_path}); stop it with: kv shutdown"
        )
    assert kvd.status()["pid"] == process.pid


def test_a_symbolic_link_to_the_directory_is_the_same_place(kvd: "RealDaemon") -> None:
    kvd.serve()
    with kvd.elsewhere() as link:
        os.symlink(kvd.folder, f"{link}/link")
        assert "already running" in kvd.refused(75, "--socket", f"{link}/link/s")


def test_a_daemon_starts_silently_on_the_files_that_kill_9_left(kvd: "RealDaemon") -> None:
    kvd.stop(kvd.serve(), signal.SIGKILL)
    assert kvd.files() == ["s", "s.lock"]
    process = kvd.serve()
    assert kvd.status()["pid"] == process.pid
    process.terminate()
    assert process.communicate(timeout=30)[1] == b""


def test_files_from_a_kill_between_bind_and_rename_are_removed_by_the_next_daemon(kvd: "RealDaemon") -> None:
    """The temporary socket does not hinder the next daemon, which removes it."""
    hook = "import os, sys; sys.addaudithook(lambda event, _: event == 'os.rename' and os.kill(os.getpid(), 9))"
    assert kvd.run(env=kvd.with_hook(hook)).returncode == -signal.SIGKILL
    assert len(kvd.files()) == 2
    assert kvd.stop(kvd.serve()) == 0
    assert kvd.files() == []


def test_the_pid_of_another_process_in_the_lock_file_means_nothing(kvd: "RealDaemon") -> None:
    pathlib.Path(kvd.lock_path).write_text(f"{os.getpid()}\n", encoding="ascii")
    process = kvd.serve()
    assert pathlib.Path(kvd.lock_path).read_text(encoding="ascii") == f"{process.pid}\n"
