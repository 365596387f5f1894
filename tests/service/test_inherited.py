"""What a daemon inherits from the process that starts it: signals, variables, HOME, its uid, its cgroup, its stderr."""

import os
import pathlib
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from kvd.service.resources import cgroup_limits
from tests.harness.waiting import DEADLINE_S

if TYPE_CHECKING:
    from tests.harness.real_daemon import RealDaemon

OTHER = 65533
NOBODY = 65534
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
# Sends the process a signal when it opens a segment of the log, which the recovery does.
AT_RECOVERY = """
import os, signal, sys

def at_open(event, arguments):
    if event == "open" and str(arguments[0]) == "0000000001.log" and not arguments[2] & os.O_CREAT:
        os.kill(os.getpid(), signal.Signals[os.environ["AT_RECOVERY"]])

sys.addaudithook(at_open)
"""


def after(code: str) -> list[str]:
    """Words that run the command after ``code`` has changed the process."""
    return [sys.executable, "-c", f"import os, signal, sys; {code}; os.execv(sys.argv[1], sys.argv[1:])"]


# ---------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_blocked_signals_stop_it_all_the_same(kvd: "RealDaemon", number: int) -> None:
    kvd.wrapper = after("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))")
    assert kvd.stop(kvd.serve(), number) == 0


def test_a_blocked_hangup_reloads_all_the_same(kvd: "RealDaemon") -> None:
    kvd.wrapper = after("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))")
    process = kvd.serve()
    process.send_signal(signal.SIGHUP)
    kvd.eventually(lambda: "reloaded" in kvd.log())


@pytest.mark.parametrize("how", ["foreground", "daemon"])
def test_an_ignored_interrupt_stays_ignored(kvd: "RealDaemon", how: str) -> None:
    """As a script's shell starts ``kv serve &``."""
    kvd.wrapper = after("signal.signal(signal.SIGINT, signal.SIG_IGN)")
    pid = kvd.serve().pid if how == "foreground" else kvd.detach()
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGHUP)
    kvd.eventually(lambda: "reloaded" in kvd.log())
    assert kvd.ask(["ping"]) == [True]
    assert "stopping" not in kvd.log()


def test_ends_of_children_that_are_ignored_do_not_hinder_a_daemon(kvd: "RealDaemon") -> None:
    kvd.wrapper = after("signal.signal(signal.SIGCHLD, signal.SIG_IGN)")
    kvd.detach()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_during_the_recovery_ends_the_start_in_order(kvd: "RealDaemon", name: str) -> None:
    data = f"{kvd.folder}/data"
    process = kvd.serve("--data-dir", data)
    kvd.ask(["set", {"a": b"1"}])
    process.kill()
    process.wait(DEADLINE_S)
    before = {path.name: path.read_bytes() for path in pathlib.Path(data).glob("*.log")}
    done = kvd.run("--data-dir", data, env=kvd.with_hook(AT_RECOVERY, AT_RECOVERY=name))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert kvd.log_lines()[-1] == f"INFO stopping: {name}, before it served"
    assert {path.name: path.read_bytes() for path in pathlib.Path(data).glob("*.log")} == before
    kvd.serve("--data-dir", data)
    assert kvd.ask(["get", "a"]) == [b"1"]


def test_a_hangup_during_the_recovery_does_not_end_it(kvd: "RealDaemon") -> None:
    data = f"{kvd.folder}/data"
    assert kvd.stop(kvd.serve("--data-dir", data)) == 0
    kvd.serve("--data-dir", data, env=kvd.with_hook(AT_RECOVERY, AT_RECOVERY="SIGHUP"))
    kvd.eventually(lambda: "reloaded" in kvd.log())


# ---------------------------------------------------------------------- variables and HOME


@pytest.mark.parametrize(
    "name",
    [
        "KVD_PORT", "KVD_SERVICE_HOST", "KVD_SERVICE_PORT", "KVD_SERVICE_PORT_HTTP", "KVD_PORT_7070_TCP",
        "KVD_PORT_7070_TCP_ADDR", "KVD_HTTP_SERVICE_HOST", "KVD_HTTP_PORT_4000_TCP_PROTO", "KVD_LOCK_TOKEN", "KVD_KEY",
        "KVD_VALUE", "KVD_VERSION", "KVD_EVENT",
    ],
)  # fmt: skip
def test_variables_that_are_not_meant_for_it_are_passed_over(kvd: "RealDaemon", name: str) -> None:
    done = kvd.run("--check-config", env=kvd.environment(**{name: "tcp://10.0.0.1:7070"}))
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_mistyped_variable_is_still_an_error(kvd: "RealDaemon") -> None:
    for name in ("KVD_SOCKETS", "KVD_TCP_PROT", "KVD_PORTS"):
        assert kvd.run("--check-config", env=kvd.environment(**{name: "1"})).returncode == 78


@needs_root
def test_the_home_of_another_user_is_passed_over(kvd: "RealDaemon") -> None:
    with kvd.elsewhere() as place:
        os.chmod(place, 0o700)
        os.chown(place, OTHER - 1, OTHER - 1)
        os.chown(kvd.folder, OTHER, OTHER)
        who = {"user": OTHER, "group": OTHER, "extra_groups": [], "cwd": "/"}
        done = kvd.run("--check-config", env=kvd.environment(HOME=place), **who)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_null_device_is_an_empty_configuration(kvd: "RealDaemon") -> None:
    kvd.serve("--config", "/dev/null")


@needs_root
def test_the_daemon_of_nobody_trusts_its_own_user(kvd: "RealDaemon") -> None:
    os.chown(kvd.folder, NOBODY, NOBODY)
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/"}
    process = kvd.start(**who)
    assert process.stdout is not None
    process.stdout.readline()
    code = f"import kv; kv.connect({kvd.path!r}, timeout={DEADLINE_S}).shutdown()"
    command = [sys.executable, "-c", code]
    subprocess.run(command, env=kvd.environment(), check=True, timeout=DEADLINE_S, **who)  # type: ignore[call-overload]  # noqa: S603 - our own command
    assert process.wait(DEADLINE_S) == 0


# ---------------------------------------------------------------------- paths that are not UTF-8


def test_a_path_that_is_not_utf_8_does_not_break_a_reply(kvd: "RealDaemon") -> None:
    config = os.fsdecode(os.fsencode(kvd.folder) + b"/caf\xe9.toml")
    pathlib.Path(config).write_text("")
    os.chmod(config, 0o600)
    kvd.path = os.fsdecode(os.fsencode(kvd.folder) + b"/caf\xe9")
    kvd.serve("--config", config)
    assert r"/caf\udce9" in kvd.status()["listening"]
    pathlib.Path(config).write_text("[limits]\nnone = 1\n")
    [reply] = kvd.ask(["reload"])
    assert reply["error"] == "bad_request"
    assert r"/caf\udce9.toml" in reply["message"]


# ---------------------------------------------------------------------- cgroups


def test_the_least_limit_of_all_cgroups_around_the_process_counts(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "cgroup"
    (root / "a/b").mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("1:name=systemd:/x\n0::/a/b\n")
    for place, text in {"a/b/memory.max": "max\n", "a/b/memory.high": "900\n", "a/memory.max": "700\n"}.items():
        (root / place).write_text(text)
    assert min(cgroup_limits(str(root), str(own))) == 700
    (root / "a/memory.high").write_text("600\n")
    assert min(cgroup_limits(str(root), str(own))) == 600
    own.write_text("0::/\n")
    assert min(cgroup_limits(str(root), str(own))) == sys.maxsize
    assert min(cgroup_limits(str(root), str(tmp_path / "none"))) == sys.maxsize


# ---------------------------------------------------------------------- a log that is not read


def test_a_log_that_is_not_read_does_not_stop_the_daemon_which_says_later_what_is_missing(kvd: "RealDaemon") -> None:
    reading, writing = os.pipe()
    process = kvd.start("--log-to", "stderr", stderr=writing)
    assert process.stdout is not None
    process.stdout.readline()
    begun = b""
    while b"started: " not in begun:
        begun += os.read(reading, 1 << 16)
    while select.select([], [writing], [], 0)[1]:  # a pipe is writable as long as it takes this much
        os.write(writing, b"x" * select.PIPE_BUF)
    os.close(writing)
    with kvd.connect() as peer:
        for _ in range(20):
            peer.ask(["reload"])
        assert peer.ask(["ping"]) == [True]
        os.set_blocking(reading, False)
        seen = b""

        def is_said() -> bool:
            nonlocal seen
            try:
                seen += os.read(reading, 1 << 16)
            except BlockingIOError:
                peer.ask(["reload"])
            return b" lines of this log are missing here" in seen

        kvd.eventually(is_said)
    os.close(reading)
    assert kvd.stop(process) == 0
