"""kv watch, with the real daemon."""

import json
import os
import pathlib
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.harness.daemon import Daemon
from tests.harness.processes import kill
from tests.harness.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv


def watching(kv: "Kv", *arguments: str, stderr: int = subprocess.PIPE) -> "subprocess.Popen[bytes]":
    """``kv watch`` from the start of the history on, so it does not matter when it is ready."""
    return kv.start("watch", "--since", "0", *arguments, stdout=subprocess.PIPE, stderr=stderr)


def line_of(process: "subprocess.Popen[bytes]") -> str:
    """The next line, which must arrive while the process runs."""
    assert process.stdout is not None
    return process.stdout.readline().decode()


def test_a_line_for_each_changed_key_as_it_happens(kv: "Kv") -> None:
    process = watching(kv, "--count", "4")
    kv.ok("set", "b=2", "a=1")
    assert [line_of(process).split(" ", 1)[1] for _ in "ab"] == ["set a: 1\n", "set b: 2\n"]
    kv.ok("del", "a")
    assert line_of(process).split(" ", 1)[1] == "deleted a\n"
    kv.ok("set", "--key", "b=\n", "--value", "\x1b")
    assert line_of(process).split(" ", 1)[1] == "set b=\\n: \\x1b\n"
    assert process.wait(DEADLINE_S) == 0


def test_only_keys_with_the_prefix(kv: "Kv") -> None:
    process = watching(kv, "--count", "1", "user/")
    kv.ok("set", "other=1", "user=1")
    kv.ok("set", "user/1=x", "z=1")
    assert process.communicate(timeout=DEADLINE_S)[0].split(b" ", 1)[1] == b"set user/1: x\n"


def test_the_versions_are_those_of_the_log(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    kv.ok("set", "a=2")
    lines = [line.split()[0] for line in kv.ok("watch", "--since", "0", "--count", "2").splitlines()]
    assert lines == [line.split()[0] for line in kv.ok("log").splitlines()]


def test_json_lines(kv: "Kv") -> None:
    kv.ok("set", b"a=\xff")
    kv.ok("del", "a")
    lines = [json.loads(line) for line in kv.ok("watch", "--json", "--since", "0", "--count", "2").splitlines()]
    assert [(line["event"], line["key"], line["value"]) for line in lines] == [
        ("set", "a", {"base64": "/w=="}), ("deleted", "a", None)
    ]  # fmt: skip
    assert lines[0]["author"]["uid"] == os.getuid()
    logged = [json.loads(line) for line in kv.ok("log", "--json").splitlines()]
    assert [(line["version"], line["time"]) for line in lines] == [(line["version"], line["time"]) for line in logged]


def test_since_may_be_a_time(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    assert kv.ok("watch", "--since", "1h", "--count", "1").endswith(" set a: 1\n")


@pytest.fixture
def forgetful(serving: "Callable[..., tuple[Kv, subprocess.Popen[bytes]]]", tmp_path: pathlib.Path) -> "Kv":
    """``kv`` with a daemon that keeps no history, and the keys a and b."""
    (tmp_path / "kvd.toml").write_text("[history]\nmax_versions = 0\n")
    kv = serving("--config", f"{tmp_path}/kvd.toml")[0]
    kv.ok("set", "b=1", "a=0", "gone=1")
    kv.ok("set", "a=1")
    kv.ok("del", "gone")
    return kv


def test_a_resync_is_marked(forgetful: "Kv") -> None:
    lines = forgetful.ok("watch", "--since", "1", "--count", "2").splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["resync", "set a: 1", "set b: 1"]
    lines = [json.loads(line) for line in forgetful.ok("watch", "--json", "--since", "1", "--count", "2").splitlines()]
    assert [line["event"] for line in lines] == ["resync", "set", "set"]


def test_a_command_gets_a_resync(forgetful: "Kv") -> None:
    output = forgetful.ok(
        "watch", "--since", "1", "--count", "2", "--", "sh", "-c", 'echo "$KVD_EVENT:${KVD_KEY-none}"'
    )
    assert output.split() == ["resync:none", "set:a", "set:b"]


SHOW = 'printf "%s %s %s %s|" "$KVD_EVENT" "$KVD_KEY" "$KVD_VERSION" "${KVD_VALUE-none}"; cat; echo'


def test_a_command_gets_each_change(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    kv.ok("set", b"b c=\xff")
    kv.ok("del", "a")
    versions = [line.split()[0] for line in kv.ok("log").splitlines()]
    result = kv("watch", "--since", "0", "--count", "3", "--", "sh", "-c", SHOW, KVD_VALUE="from outside")
    assert result.stdout.split(b"\n") == [
        f"set a {versions[0]} 1|1".encode(),
        f"set b c {versions[1]} none|".encode() + b"\xff",
        f"deleted a {versions[2]} none|".encode(),
        b"",
    ]


def test_a_large_value_is_on_standard_input_whether_it_is_read_or_not(kv: "Kv", tmp_path: pathlib.Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 3_000_000)
    kv.ok("set", f"a=@{tmp_path}/large")
    command = ["watch", "--since", "0", "--count", "1", "--", "sh", "-c"]
    assert kv.ok(*command, "echo ${KVD_VALUE-none}; wc -c").split() == ["none", "3000000"]
    assert kv.ok(*command, "echo done") == "done\n"


def test_the_command_uses_the_daemon_on_the_command_line(kv: "Kv", alone: "Kv") -> None:
    kv.ok("set", "a=1")
    inner = [*kv.command, "get", "a"]
    assert alone.ok("watch", "-s", str(kv.socket), "--since", "0", "--count", "1", "--", *inner) == "a: 1\n"


def test_the_exit_code_of_the_command_does_not_matter(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    kv.ok("set", "a=2")
    assert kv.ok("watch", "--since", "0", "--count", "2", "--", "sh", "-c", "echo $KVD_VALUE; exit 3") == "1\n2\n"


@pytest.mark.parametrize(
    ("command", "status"), [("/no/such/command", 127), ("no-such-command-anywhere", 127), ("/etc/passwd", 126)]
)
def test_a_command_that_cannot_run_ends_the_watch(shared_kv: "Kv", command: str, status: int) -> None:
    shared_kv.ok("set", "a=1")
    assert command in shared_kv.fails(status, "watch", "--since", "0", "--", command)


@pytest.mark.parametrize(
    ("command", "status"),
    [("/no/such/command", 127), ("no-such-command-anywhere", 127), ("/etc", 126), ("/etc/passwd", 126)],
)
def test_a_command_that_cannot_run_is_told_before_anything_else(alone: "Kv", command: str, status: int) -> None:
    """Without a change, and without a daemon."""
    assert command in alone.fails(status, "watch", "nothing/", "--", command)


def test_a_watch_waits_for_its_daemon(alone: "Kv", tmp_path: pathlib.Path) -> None:
    process = alone.start("watch", "--count", "1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert b"waiting for a daemon" in process.stderr.readline()
    with Daemon(tmp_path) as daemon:
        os.symlink(daemon.path, alone.socket)
        eventually(lambda: "\nkvd_feeds 1.0\n" in daemon.client().exposition())
        alone.ok("set", "a=1")
        assert process.communicate(timeout=DEADLINE_S) == (b"1 set a: 1\n", b"")
        assert process.returncode == 0
        daemon.terminate()


def test_without_a_timeout_a_watch_waits_for_its_daemon_for_ever(
    serving: "Callable[..., tuple[Kv, subprocess.Popen[bytes]]]",
) -> None:
    kv, daemon = serving()
    process = watching(kv)
    kv.ok("set", "a=1")
    line_of(process)
    daemon.send_signal(signal.SIGTERM)
    daemon.wait(DEADLINE_S)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(6)  # longer than a client waits by default
    serving()
    assert line_of(process).endswith(" resync\n")
    process.kill()
    process.communicate()


def test_a_position_names_the_store(serving: "Callable[..., tuple[Kv, subprocess.Popen[bytes]]]") -> None:
    """With another store a watch begins with a resync; a bare number means the store that there is now."""
    kv, daemon = serving()
    kv.ok("set", "a=1")
    position = json.loads(kv.ok("watch", "--since", "0", "--count", "1", "--json"))["position"]
    script = 'echo "$KVD_POSITION"'
    assert kv.ok("watch", "--since", "0", "--count", "1", "--", "sh", "-c", script) == f"{position}\n"
    kv.ok("set", "a=2")
    assert kv.ok("watch", "--since", position, "--count", "1") == "2 set a: 2\n"
    daemon.send_signal(signal.SIGTERM)
    daemon.wait(DEADLINE_S)
    serving()
    for value in "xyz":
        kv.ok("set", f"a={value}")
    assert kv.ok("watch", "--since", position, "--count", "1") == "3 resync\n3 set a: z\n"
    assert kv.ok("watch", "--since", "1", "--count", "1") == "2 set a: y\n"


def test_ctrl_c_ends_with_130_quietly(kv: "Kv") -> None:
    process = watching(kv)
    kv.ok("set", "a=1")
    line_of(process)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=DEADLINE_S) == (b"", b"")
    assert process.returncode == 130


def test_a_closed_pipe_ends_the_watch_quietly_without_a_change(kv: "Kv") -> None:
    process = watching(kv)
    kv.ok("set", "a=1")
    line_of(process)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(DEADLINE_S) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""


@pytest.mark.parametrize("command", [[], ["--", "cat"]], ids=["prints", "runs a command"])
@pytest.mark.parametrize("kind", ["socket", "pipe"])
def test_the_watch_ends_when_the_reader_of_its_output_has_gone(kv: "Kv", kind: str, command: list[str]) -> None:
    """A socket is the output below socat, and below sshd where there is no terminal."""
    kv.ok("set", "a=the end")
    ours, theirs = (end.detach() for end in socket.socketpair()) if kind == "socket" else os.pipe()
    process = kv.start("watch", "--since", "0", *command, stdout=theirs)
    os.close(theirs)
    try:
        output = b""
        while not output.rstrip().endswith(b"the end"):  # a socket that is closed with unread data is an error, too
            output += os.read(ours, 100)
        os.close(ours)
        assert process.wait(DEADLINE_S) == 141
    finally:
        kill(process)


def test_the_watch_goes_on_for_a_reader_that_sends_nothing_more(kv: "Kv") -> None:
    """As sshd does when the standard input of ``ssh -n`` has ended: the same socket is the output."""
    kv.ok("set", "a=1")
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE_S)
    with ours, theirs:
        ours.shutdown(socket.SHUT_WR)
        process = kv.start("watch", "--since", "0", "--count", "2", stdout=theirs)
        try:
            assert ours.recv(1)
            # While no change comes, the command looks for its reader: it has done so when it sleeps a second time.
            switches = voluntary_switches(process)
            eventually(lambda: voluntary_switches(process) > switches + 1, "for a look at the reader")
            kv.ok("set", "a=2")
            assert process.wait(DEADLINE_S) == 0
        finally:
            kill(process)


def voluntary_switches(process: "subprocess.Popen[bytes]") -> int:
    """How often the process went to sleep; -1 if it has ended."""
    lines = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches")), -1)


def test_a_restart_of_the_daemon_loses_nothing(
    serving: "Callable[..., tuple[Kv, subprocess.Popen[bytes]]]",
) -> None:
    kv, daemon = serving()
    process = watching(kv)
    kv.ok("set", "a=1")
    assert line_of(process).endswith(" set a: 1\n")
    daemon.send_signal(signal.SIGTERM)
    daemon.wait(DEADLINE_S)
    serving()
    kv.ok("set", "b=1")
    assert line_of(process).endswith(" resync\n")
    assert line_of(process).endswith(" set b: 1\n")
    process.kill()
    process.communicate()


def test_the_watch_waits_for_a_daemon_that_is_away_longer_than_a_check_of_the_reader(
    serving: "Callable[..., tuple[Kv, subprocess.Popen[bytes]]]",
) -> None:
    kv, daemon = serving()
    process = watching(kv, "--timeout", str(DEADLINE_S))
    kv.ok("set", "a=1")
    line_of(process)
    daemon.send_signal(signal.SIGTERM)
    daemon.wait(DEADLINE_S)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.5)
    serving()
    kv.ok("set", "b=1")
    assert line_of(process).endswith(" resync\n")
    process.kill()
    process.communicate()


def test_a_daemon_that_does_not_come_back_ends_the_watch_with_69(
    serving: "Callable[..., tuple[Kv, subprocess.Popen[bytes]]]",
) -> None:
    kv, daemon = serving()
    process = watching(kv, "--timeout", "2")
    kv.ok("set", "a=1")
    line_of(process)
    daemon.send_signal(signal.SIGTERM)
    error = process.communicate(timeout=DEADLINE_S)[1]
    assert process.returncode == 69
    assert error.startswith(b"kv: error: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["a", "b"],
        ["--count", "0"],
        ["--count", "x"],
        ["--since", "x"],
        ["--json", "--", "true"],
        ["a", "b", "--", "true"],
    ],
)
def test_wrong_usage(alone: "Kv", arguments: list[str]) -> None:
    alone.fails(2, "watch", *arguments)


def test_the_command_does_not_inherit_the_connection(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    inner = 'for fd in /proc/self/fd/*; do case "$(readlink $fd)" in socket:*) echo $fd;; esac; done'
    assert kv.ok("watch", "--since", "0", "--count", "1", "--", "sh", "-c", inner) == ""


def test_quiet_watches_only_for_the_exit_code(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    assert kv.ok("watch", "-q", "--since", "0", "--count", "1") == ""
