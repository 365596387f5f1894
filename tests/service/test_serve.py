"""`kv serve` in the foreground, as a real process: what it says, how it ends, and who may be there with it."""

import os
import pathlib
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.real_daemon import RealDaemon

STARTED = b"Kvd started. Press ctrl-c to stop.\n"


# ---------------------------------------------------------------------- a start


def test_when_it_says_that_it_started_it_answers(kvd: "RealDaemon") -> None:
    process = kvd.start()
    assert process.stdout is not None
    assert process.stdout.readline() == STARTED
    assert kvd.status()["pid"] == process.pid


def test_it_says_nothing_else(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    kvd.ask(["set", {"a": b"1"}])
    process.terminate()
    assert process.communicate(timeout=30) == (b"", b"")


def test_it_stays_in_its_session_and_directory(kvd: "RealDaemon") -> None:
    process = kvd.serve(cwd=kvd.folder)
    assert os.getsid(process.pid) == os.getsid(0)
    assert os.readlink(f"/proc/{process.pid}/cwd") == os.path.realpath(kvd.folder)


def test_a_stdout_that_nobody_reads_is_no_reason_to_fail(kvd: "RealDaemon") -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = kvd.start(stdout=writing)
    os.close(writing)
    kvd.wait_until_it_answers()
    process.terminate()
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, b"")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors_are_no_reason_to_fail(kvd: "RealDaemon", closed: str) -> None:
    process = kvd.start_in_shell(f'exec "$@" {closed}')
    kvd.wait_until_it_answers()
    assert kvd.stop(process) == 0


# ---------------------------------------------------------------------- its end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_stop_ends_it_with_0_and_nothing_is_left(kvd: "RealDaemon", number: signal.Signals) -> None:
    process = kvd.serve()
    assert kvd.files() == ["s", "s.lock"]
    assert kvd.stop(process, number) == 0
    assert kvd.files() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_more_signals_while_it_stops_change_nothing(kvd: "RealDaemon", number: signal.Signals) -> None:
    """At whichever moment they come: a person who presses ctrl-c twice does not mean a dirty end."""
    process = kvd.serve()
    process.terminate()
    while process.poll() is None:
        process.send_signal(number)
    assert process.stderr is not None
    assert (process.returncode, process.stderr.read()) == (0, b"")
    assert kvd.files() == []


def test_it_stops_also_if_its_socket_was_taken_away(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    os.unlink(kvd.path)
    pathlib.Path(kvd.path).write_text("another's", encoding="ascii")
    assert kvd.stop(process) == 0
    assert pathlib.Path(kvd.path).read_text(encoding="ascii") == "another's"


# ---------------------------------------------------------------------- several daemons, and what they leave


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    for flags in ([], ["--daemon"]):
        assert kvd.refused(75, *flags) == (
            f"already running: pid {process.pid} (lock {kvd.lock_path}); stop it with: kv shutdown"
        )
    assert kvd.status()["pid"] == process.pid


def test_another_name_of_the_directory_is_the_same_place(kvd: "RealDaemon") -> None:
    kvd.serve()
    with kvd.elsewhere() as link:
        os.symlink(kvd.folder, f"{link}/link")
        assert "already running" in kvd.refused(75, "--socket", f"{link}/link/s")


def test_what_kill_9_left_behind_is_taken_over_in_silence(kvd: "RealDaemon") -> None:
    kvd.stop(kvd.serve(), signal.SIGKILL)
    assert kvd.files() == ["s", "s.lock"]
    process = kvd.serve()
    assert kvd.status()["pid"] == process.pid
    process.terminate()
    assert process.communicate(timeout=30)[1] == b""


def test_a_kill_between_bind_and_rename_leaves_nothing_for_ever(kvd: "RealDaemon") -> None:
    """What the dead one had under way is not in the next one's way, and goes with it."""
    hook = "import os, sys; sys.addaudithook(lambda event, _: event == 'os.rename' and os.kill(os.getpid(), 9))"
    assert kvd.run(env=kvd.with_hook(hook)).returncode == -signal.SIGKILL
    assert len(kvd.files()) == 2
    assert kvd.stop(kvd.serve()) == 0
    assert kvd.files() == []


def test_a_living_strangers_pid_in_the_lock_file_means_nothing(kvd: "RealDaemon") -> None:
    pathlib.Path(kvd.lock_path).write_text(f"{os.getpid()}\n", encoding="ascii")
    process = kvd.serve()
    assert pathlib.Path(kvd.lock_path).read_text(encoding="ascii") == f"{process.pid}\n"
