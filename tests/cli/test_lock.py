"""kv lock, with the real daemon."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pexpect
import pytest

from tests.harness.waiting import DEADLINE_S

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv


def holding(kv: "Kv", *arguments: str, script: str = "echo had; cat") -> "subprocess.Popen[bytes]":
    """``kv lock`` whose command runs; it ends at the end of its standard input."""
    process = kv.start(
        "lock", *arguments, "L", "--", "sh", "-c", script,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"had\n"
    return process


def wait_for_contenders(kv: "Kv", count: int) -> None:
    """Return when ``count`` clients hold the lock or wait for it."""
    for _ in range(1_000):
        if kv("lock", "-n", "L").stdout.count(b"by pid") == count:
            return
    raise AssertionError("the contenders never arrived")


@pytest.mark.parametrize("status", [0, 1, 3, 69, 130])
def test_the_exit_code_is_that_of_the_command(shared_kv: "Kv", status: int) -> None:
    assert shared_kv("lock", "L", "--", "sh", "-c", f"exit {status}").returncode == status


def test_a_command_that_a_signal_ends(shared_kv: "Kv") -> None:
    assert shared_kv("lock", "L", "--", "sh", "-c", "kill -9 $$").returncode == 137


@pytest.mark.parametrize(
    ("command", "status"), [("/no/such", 127), ("no-such-command-anywhere", 127), ("/etc/passwd", 126)]
)
def test_a_command_that_cannot_run_ends_with_126_or_127(shared_kv: "Kv", command: str, status: int) -> None:
    assert command in shared_kv.fails(status, "lock", "L", "--", command)
    assert shared_kv.ok("lock", "L", "--", "echo", "free") == "free\n"


def test_the_words_of_the_command_are_passed_unchanged(shared_kv: "Kv") -> None:
    words = ["-n", "--", "--json", "a b", ""]
    assert shared_kv.ok("lock", "L", "--", "printf", "[%s]", *words) == "[-n][--][--json][a b][]"


def test_the_command_has_standard_input_and_output(shared_kv: "Kv") -> None:
    assert shared_kv.ok("lock", "L", "--", "cat", stdin=b"x" * 200_000) == "x" * 200_000


def test_the_token_rises_from_holder_to_holder(kv: "Kv") -> None:
    tokens = [int(kv.ok("lock", "L", "--", "sh", "-c", "echo $KVD_LOCK_TOKEN")) for _ in range(3)]
    assert tokens == sorted(set(tokens))


def test_one_holder_at_a_time_in_order(kv: "Kv") -> None:
    first = holding(kv)
    waiting = []
    for number in (1, 2):
        waiting.append(kv.start("lock", "L", "--", *kv.command, "set", f"order/{number}=", stdout=subprocess.PIPE))
        wait_for_contenders(kv, number + 1)
    assert kv.ok("ls", "order/") == ""
    first.communicate(timeout=DEADLINE_S)
    for process in waiting:
        process.communicate(timeout=DEADLINE_S)
    one, two = (int(line.split()[1]) for line in kv.ok("ls", "--long", "order/").splitlines())
    assert one < two


def test_timeout_limits_the_wait_for_the_lock(kv: "Kv") -> None:
    first = holding(kv)
    assert "was not free within 0.1 s" in kv.fails(5, "lock", "--timeout", "0.1", "L", "--", "echo", "had")
    assert kv.fails(5, "lock", "--no-wait", "L", "--", "echo", "had") == "kv: error: the lock 'L' is not free\n"
    assert first.poll() is None
    first.communicate(timeout=DEADLINE_S)
    assert kv.ok("lock", "--no-wait", "L", "--", "echo", "had") == "had\n"
    assert kv.ok("ls", "lock/") == ""


def test_another_lock_is_free(kv: "Kv") -> None:
    first = holding(kv)
    assert kv.ok("lock", "--no-wait", "M", "--", "echo", "had") == "had\n"
    first.communicate(timeout=DEADLINE_S)


def test_a_dry_run_shows_the_holder(kv: "Kv") -> None:
    assert kv.ok("lock", "-n", "L") == "the lock L is free\n"
    first = holding(kv)
    done = kv("lock", "-n", "L", "--", "echo", "had")
    assert done.returncode == 5, "as --no-wait ends"
    assert done.stdout.startswith(f"held by pid {first.pid}, since version ".encode())
    first.communicate(timeout=DEADLINE_S)


def test_a_killed_holder_releases_the_lock_at_once(kv: "Kv") -> None:
    first = holding(kv, script="echo had; exec sleep 1000 >/dev/null 2>&1")
    second = kv.start("lock", "L", "--", "echo", "next", stdout=subprocess.PIPE)
    wait_for_contenders(kv, 2)
    child = int(subprocess.check_output(["ps", "-o", "pid=", "--ppid", str(first.pid)]))  # noqa: S603, S607 (wherever it is)
    first.kill()
    assert second.communicate(timeout=DEADLINE_S)[0] == b"next\n"
    os.kill(child, 0)  # the command lives on, without the lock
    os.kill(child, signal.SIGKILL)
    first.communicate()


def test_a_stopped_holder_keeps_the_lock(kv: "Kv") -> None:
    """It is not dead: it may go on at any moment, and rely on the lock."""
    first = holding(kv)
    os.kill(first.pid, signal.SIGSTOP)
    kv.fails(5, "lock", "--timeout", "0.3", "L", "--", "echo", "next")
    os.kill(first.pid, signal.SIGCONT)
    first.communicate(timeout=DEADLINE_S)
    assert first.returncode == 0
    assert kv.ok("lock", "L", "--", "echo", "next") == "next\n"


def test_a_stopped_holder_loses_a_lock_with_a_ttl_and_notices(kv: "Kv") -> None:
    """Its token is lower than that of the next holder, so a resource that checks tokens can refuse it."""
    first = holding(kv, "--ttl", "3s", script="echo had; echo $KVD_LOCK_TOKEN; exec sleep 1000")
    assert first.stdout is not None
    token = int(first.stdout.readline())
    os.kill(first.pid, signal.SIGSTOP)
    later = int(kv.ok("lock", "--timeout", "20", "L", "--", "sh", "-c", "echo $KVD_LOCK_TOKEN"))
    assert later > token
    os.kill(first.pid, signal.SIGCONT)
    assert b"was lost" in first.communicate(timeout=DEADLINE_S)[1]
    assert first.returncode == 79


def test_the_command_does_not_inherit_the_connection(shared_kv: "Kv") -> None:
    inner = 'for fd in /proc/self/fd/*; do case "$(readlink $fd)" in socket:*) echo $fd;; esac; done'
    assert shared_kv.ok("lock", "L", "--", "sh", "-c", inner) == ""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(kv: "Kv", sent: signal.Signals) -> None:
    name = sent.name.removeprefix("SIG")
    process = holding(kv, script=f"trap 'echo got {name}; exit 9' {name}; echo had; while :; do sleep 0.05; done")
    process.send_signal(sent)
    assert process.communicate(timeout=DEADLINE_S) == (f"got {name}\n".encode(), b"")
    assert process.returncode == 9


def test_the_exit_code_shows_the_signal_that_ended_the_command(kv: "Kv") -> None:
    process = holding(kv, script="echo had; exec sleep 1000")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 128 + signal.SIGTERM


def test_the_command_has_no_signal_blocked_or_ignored(shared_kv: "Kv") -> None:
    shown = shared_kv.ok("lock", "L", "--", "grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status")
    blocked, ignored = (int(line.split()[1], 16) for line in shown.splitlines())
    here = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert blocked == sum(1 << (number - 1) for number in here)
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        assert not ignored & (1 << (number - 1))


WAITING = """
import os, signal, sys
if sys.argv[1] == "apart":
    os.setpgid(0, 0)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print("had", flush=True)
received = signal.sigtimedwait([signal.SIGINT], float(sys.argv[2]))
print("got", received and received.si_signo, flush=True)
sys.exit(4)
"""


@pytest.mark.parametrize(("group", "limit_s", "got"), [("same", DEADLINE_S, "got 2"), ("apart", 1, "got None")])
def test_ctrl_c_on_a_terminal_reaches_the_command_only_from_the_terminal(
    kv: "Kv", group: str, limit_s: float, got: str
) -> None:
    """A command in the terminal's process group gets the signal without kv. One that has left the group gets none."""
    words = ["lock", "L", "--", sys.executable, "-c", WAITING, group, str(limit_s)]
    terminal = pexpect.spawn(kv.command[0], [*kv.command[1:], *words], env=kv.environment(), timeout=DEADLINE_S)
    terminal.expect_exact("had")
    terminal.sendintr()
    terminal.expect_exact(got)
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 4


def test_ctrl_c_while_waiting_ends_with_130_and_leaves_the_queue(kv: "Kv") -> None:
    first = holding(kv)
    second = kv.start("lock", "L", "--", "echo", "had", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_contenders(kv, 2)
    second.send_signal(signal.SIGINT)
    assert second.communicate(timeout=DEADLINE_S) == (b"", b"")
    assert second.returncode == 130
    wait_for_contenders(kv, 1)
    first.communicate(timeout=DEADLINE_S)


def test_a_lock_whose_key_is_deleted_is_lost(kv: "Kv") -> None:
    process = holding(kv, script="echo had; exec sleep 1000")
    kv.ok("del", "--prefix", "lock/L/", "--yes")
    assert b"the lock 'L' was lost; the command gets SIGTERM" in process.communicate(timeout=DEADLINE_S)[1]
    assert process.returncode == 79


def test_a_lock_whose_ttl_is_over_is_lost(kv: "Kv") -> None:
    process = holding(kv, "--ttl", "2s", script="echo had; exec sleep 1000")
    assert b"was lost" in process.communicate(timeout=DEADLINE_S)[1]
    assert process.returncode == 79
    assert kv.ok("lock", "--no-wait", "L", "--", "echo", "had") == "had\n"


def test_a_lock_lost_with_the_daemon_can_leave_the_command_alone(kv: "Kv") -> None:
    process = holding(kv, "--keep-running")
    kv.ok("shutdown")
    assert process.stderr is not None
    assert b"was lost\n" in process.stderr.readline()
    assert process.poll() is None
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 79


def test_a_loss_that_is_noticed_at_the_end_ends_with_79(kv: "Kv") -> None:
    inner = [*kv.command, "del", "-q", "--prefix", "lock/L/", "--yes"]
    result = kv("lock", "L", "--", *inner)
    assert result.returncode == 79
    assert b"not held any more" in result.stderr


def test_the_command_uses_the_daemon_on_the_command_line(kv: "Kv", alone: "Kv") -> None:
    kv.ok("set", "a=1")
    assert alone.ok("-s", str(kv.socket), "lock", "L", "--", *kv.command, "get", "a") == "a: 1\n"


def test_the_command_has_the_token_of_the_command_line(
    serving: "Callable[..., tuple[Kv, subprocess.Popen[bytes]]]", alone: "Kv", tmp_path: pathlib.Path
) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    token.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serving("--tcp", f"127.0.0.1:{port}", "--token-file", str(token))
    named = ["-s", f"tcp://127.0.0.1:{port}", "--token-file", str(token)]
    assert alone.ok(*named, "lock", "L", "--", *alone.command, "ping") == "ok\n"


def test_no_daemon_ends_with_69_and_runs_nothing(alone: "Kv") -> None:
    alone.fails(69, "lock", "L", "--", "echo", "had")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["L"],
        ["L", "--"],
        ["L", "true"],
        ["a/b", "--", "true"],
        ["", "--", "true"],
        ["L", "M", "--", "true"],
        ["--", "true"],
    ],
)
def test_wrong_usage_runs_nothing(alone: "Kv", arguments: list[str]) -> None:
    alone.fails(2, "lock", *arguments)
