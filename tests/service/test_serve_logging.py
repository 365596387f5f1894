"""What a daemon logs: one line for each thing worth knowing, in a private file."""

import os
import pathlib
import re
import signal
import stat
from typing import TYPE_CHECKING

from kvd import __version__
from tests.harness.real_daemon import STARTED

if TYPE_CHECKING:
    from tests.harness.real_daemon import RealDaemon

# Once the file $FAULT_IF exists, reading the configuration raises an error whose text is like a line of the log.
FAULT = """
import os, sys

def fail(event, arguments):
    if event == "open" and str(arguments[0]).endswith("kvd.toml") and os.path.exists(os.environ["FAULT_IF"]):
        raise RuntimeError("forged\\n2026-01-01 00:00:00,000 INFO all is well \\x1b[2J")

sys.addaudithook(fail)
"""
STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")


def test_a_daemon_logs_one_line_for_its_start_and_two_for_its_stop(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    kvd.ask(["set", {"a": b"1"}])
    kvd.stop(process)
    assert kvd.log_lines() == [
        f"INFO started: kvd {__version__}, pid {process.pid}, {kvd.path}",
        "INFO stopping: SIGTERM",
        f"INFO stopped: pid {process.pid}",
    ]
    text = pathlib.Path(kvd.log_path).read_text(encoding="utf-8")
    assert all(STAMP.match(line) for line in text.splitlines())


def test_the_line_for_a_shutdown_names_the_client(kvd: "RealDaemon") -> None:
    kvd.detach()
    kvd.ask(["shutdown"])
    kvd.eventually(lambda: kvd.files() == [])
    assert kvd.log_lines()[1] == f"INFO shutdown asked for by uid {os.getuid()} pid {os.getpid()}"


def test_an_internal_error_is_answered_and_logged_in_one_line_that_cannot_be_forged(kvd: "RealDaemon") -> None:
    """The line has the traceback, whatever its text contains."""
    config = kvd.configure("")
    process = kvd.serve("--config", config, env=kvd.with_hook(FAULT, FAULT_IF=f"{kvd.folder}/fifo"))
    pathlib.Path(f"{kvd.folder}/fifo").touch()
    for _ in range(2):
        assert kvd.ask(["reload"], ["ping"])[0]["error"] == "internal"
    _, *faults = kvd.log_lines()
    assert len(faults) == 2
    for fault in faults:
        assert fault.startswith(f"ERROR internal error in Reload of uid {os.getuid()} pid {os.getpid()}\\nTraceback ")
        assert r"RuntimeError: forged\n2026-01-01 00:00:00,000 INFO all is well \x1b[2J" in fault
    assert kvd.stop(process) == 0


def test_what_clients_send_does_not_get_into_the_log(kvd: "RealDaemon") -> None:
    kvd.serve("--log-level", "debug")
    forged = "x\n2026-01-01 00:00:00,000 INFO forged \x1b[2J"
    replies = kvd.ask(["hello", 1, forged], ["get", forged], ["delete", [forged]], ["hello", 99, forged])
    assert [type(reply) for reply in replies] == [list, type(None), dict, dict]
    with kvd.connect() as peer:
        peer.socket.sendall(b"\0\0\0\x20" + forged.encode()[:32])
        assert peer.receive()["error"] == "bad_request"
    assert "forged" not in pathlib.Path(kvd.log_path).read_text(encoding="utf-8")


def test_the_journal_gets_priorities_and_no_time(kvd: "RealDaemon") -> None:
    with open(f"{kvd.folder}/journal", "w+b") as journal:
        found = os.fstat(journal.fileno())
        environment = kvd.environment(JOURNAL_STREAM=f"{found.st_dev}:{found.st_ino}")
        config = kvd.configure("limits.max_connections = 1\n")
        # Not serve(), whose closed connection counts until the daemon has noticed.
        process = kvd.start("--log-to", "auto", "--config", config, stderr=journal, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == STARTED
        with kvd.connect() as peer:
            assert peer.ask(["ping"]) == [True]
            with kvd.connect() as refused:
                assert refused.receive()["error"] == "busy"
        kvd.configure("limits.max_connections = 0\n")
        process.send_signal(signal.SIGHUP)
        kvd.eventually(lambda: b"<3>" in pathlib.Path(journal.name).read_bytes())
        kvd.stop(process)
        journal.seek(0)
        lines = journal.read().decode().splitlines()
    assert [line.split()[0] for line in lines] == [
        "<6>started:", "<4>refused", "<3>reload", "<6>stopping:", "<6>stopped:",
    ]  # fmt: skip


def test_a_stderr_that_is_not_the_journal_gets_lines_for_people(kvd: "RealDaemon") -> None:
    """A process whose stderr was redirected still inherits JOURNAL_STREAM."""
    with open(f"{kvd.folder}/errors", "w+b") as errors:
        environment = kvd.environment(JOURNAL_STREAM="1:2")
        kvd.stop(kvd.serve("--log-to", "auto", stderr=errors, env=environment))
        errors.seek(0)
        assert all(STAMP.match(line.decode()) for line in errors.readlines())


def test_the_log_file_is_private_and_may_be_moved_away(kvd: "RealDaemon") -> None:
    pid = kvd.detach(umask=0)
    os.rename(kvd.log_path, f"{kvd.log_path}.1")
    os.kill(pid, signal.SIGHUP)
    kvd.eventually(lambda: os.path.exists(kvd.log_path) and kvd.log_lines())
    assert kvd.log_lines() == ["INFO reloaded: nothing has changed"]
    assert stat.S_IMODE(os.stat(kvd.log_path).st_mode) == 0o600
    assert pathlib.Path(f"{kvd.log_path}.1").read_text(encoding="utf-8").count("\n") == 1


def test_a_users_daemon_logs_below_the_users_home(kvd: "RealDaemon") -> None:
    if os.getuid() == 0:
        os.chmod(kvd.folder, 0o755)  # noqa: S103 - a directory of the test's own
        os.chown(kvd.folder, 65533, 65533)
    who = {"user": 65533, "group": 65533, "extra_groups": []} if os.getuid() == 0 else {}
    kvd.detach("--log-to", "auto", cwd="/", **who)
    kvd.log_path = f"{kvd.folder}/.local/state/kvd/kvd.log"
    assert kvd.log_lines()[0].startswith("INFO started: ")
