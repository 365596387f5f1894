"""kv wait, with the real daemon."""

import os
import pathlib
import signal
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from kv.blocking.client import Client
from kv.blocking.connect import connect
from kv.blocking.watch import Watch
from kv.cli.commands.wait import until
from tests.harness.daemon import Daemon
from tests.harness.waiting import DEADLINE_S

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv


def waiting(kv: "Kv", *arguments: str, **variables: str) -> "subprocess.Popen[bytes]":
    """``kv wait`` that has read what there is and watches, or has ended: the daemon then has a watch."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = kv.start("wait", *arguments, env=kv.environment(**variables), **pipes)
    with connect(kv.socket, timeout=DEADLINE_S) as client:
        while "\nkvd_feeds 1.0\n" not in client.exposition() and process.poll() is None:
            pass
    return process


def test_a_condition_that_holds_already_returns_at_once(kv: "Kv") -> None:
    kv.ok("set", "a=1", "a=b=c", "e=")
    assert kv.ok("wait", "e") == "e: \n"
    assert kv.ok("wait", "e=") == "e: \n"
    assert kv.ok("wait", "a=b=c") == "a: b=c\n"
    assert kv.ok("wait", "--absent", "nothing") == ""
    assert kv.ok("wait", "--absent", "a=1") == ""


def test_wait_until_the_key_exists(kv: "Kv") -> None:
    process = waiting(kv, "ready")
    kv.ok("set", "read=1", "ready2=1")
    kv.ok("set", "ready=yes")
    assert process.communicate(timeout=DEADLINE_S) == (b"ready: yes\n", b"")
    assert process.returncode == 0


def test_wait_until_the_key_has_the_value(kv: "Kv") -> None:
    kv.ok("set", "state=begun")
    process = waiting(kv, "--raw", "state=done")
    kv.ok("set", "state=half done")
    kv.ok("set", "state=done")
    assert process.communicate(timeout=DEADLINE_S) == (b"done", b"")


def test_wait_until_the_key_is_gone(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    process = waiting(kv, "--absent", "a")
    kv.ok("del", "a")
    assert process.communicate(timeout=DEADLINE_S) == (b"", b"")
    assert process.returncode == 0


def test_a_longer_key_is_another_key(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    process = waiting(kv, "--absent", "a", "--timeout", "2")
    kv.ok("set", "ab=1")
    kv.ok("del", "ab")
    assert process.wait(DEADLINE_S) == 5
    process.communicate()


def test_wait_until_the_key_has_another_value(kv: "Kv") -> None:
    kv.ok("set", "a=1")
    process = waiting(kv, "--absent", "a=1")
    kv.ok("set", "a=2")
    assert process.wait(DEADLINE_S) == 0
    process.communicate()


def test_a_condition_that_held_for_a_moment_is_enough(kv: "Kv") -> None:
    process = waiting(kv, "flash")
    kv.ok("txn", stdin=b"set flash 1")
    kv.ok("del", "flash")
    assert process.communicate(timeout=DEADLINE_S)[0] == b"flash: 1\n"


def test_a_change_between_the_read_and_the_watch_is_not_missed(kv: "Kv") -> None:
    other = connect(kv.socket)

    class Interrupted(Client):
        """A client in which another client sets the key, and deletes it again, between the read and the watch."""

        def watch(self, prefix: str = "", since: int | None = None) -> Watch:
            other.set("a", b"1")
            other.delete("a")
            return super().watch(prefix, since)

    with other, Interrupted(kv.socket) as client:
        assert until(client, "a", None, absent=False, limit_s=DEADLINE_S) == b"1"


def test_when_the_time_is_over_the_exit_code_is_5(kv: "Kv") -> None:
    assert "the condition for nothing did not hold within 0.05 s" in kv.fails(5, "wait", "--timeout", "0.05", "nothing")
    kv.ok("set", "a=1")
    kv.fails(5, "wait", "--timeout", "0.000001", "a=2")
    kv.fails(5, "wait", "--timeout", "0.05", "--absent", "a")


def test_the_timeout_for_the_daemon_does_not_limit_the_wait(kv: "Kv") -> None:
    kv.ok("set", "--ttl", "4s", "a=1")
    assert kv("wait", "--absent", "a", KVD_TIMEOUT="2").returncode == 0


def test_any_key_and_any_value(kv: "Kv") -> None:
    kv.ok("set", "--key", "-a=b\n", "--value", "--")
    assert kv.ok("wait", "--key", "-a=b\n", "--value", "--") == "-a=b\\n: --\n"
    assert kv.ok("wait", "--key", "-a=b\n", "--json") == '{"-a=b\\n": "--"}\n'
    kv.ok("set", b"bin=\xff")
    assert kv("wait", "--raw", b"bin=\xff").stdout == b"\xff"


def test_ctrl_c_ends_with_130_quietly(kv: "Kv") -> None:
    process = waiting(kv, "nothing")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=DEADLINE_S) == (b"", b"")
    assert process.returncode == 130


def test_no_daemon_ends_with_69(alone: "Kv") -> None:
    alone.fails(69, "wait", "a", "--timeout", "0.1")


def test_it_waits_for_a_daemon(alone: "Kv", tmp_path: pathlib.Path) -> None:
    process = alone.start("wait", "a", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert b"waiting for a daemon" in process.stderr.readline()
    with Daemon(tmp_path) as daemon:
        daemon.kv.ok("set", "a=1")
        os.symlink(daemon.path, alone.socket)
        assert process.communicate(timeout=DEADLINE_S) == (b"a: 1\n", b"")
        daemon.terminate()


def test_without_a_timeout_it_waits_for_a_daemon_that_is_away(
    serving: "Callable[..., tuple[Kv, subprocess.Popen[bytes]]]",
) -> None:
    """For longer than a request may take."""
    kv, daemon = serving()
    process = waiting(kv, "a", KVD_TIMEOUT="0.1")
    daemon.send_signal(signal.SIGTERM)
    daemon.wait(DEADLINE_S)
    assert process.stderr is not None
    assert b"waiting for a daemon" in process.stderr.readline()
    serving()
    kv.ok("set", "a=1")
    assert process.communicate(timeout=DEADLINE_S) == (b"a: 1\n", b"")


def test_the_time_ends_while_the_daemon_is_away(
    serving: "Callable[..., tuple[Kv, subprocess.Popen[bytes]]]",
) -> None:
    kv, daemon = serving()
    process = waiting(kv, "a", "--timeout", "3")
    daemon.send_signal(signal.SIGTERM)
    assert b"did not hold within 3 s" in process.communicate(timeout=DEADLINE_S)[1]
    assert process.returncode == 5


@pytest.mark.parametrize(
    "arguments",
    [[], ["a", "b"], [""], ["=x"], ["--value", "x"], ["a", "--key", "b"], ["--key", "a", "--key", "b"], ["--key", ""]],
)
def test_wrong_usage(alone: "Kv", arguments: list[str]) -> None:
    alone.fails(2, "wait", *arguments)
