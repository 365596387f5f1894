"""kv ping, status, reload and shutdown, with the real daemon."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.harness.kv_command import Kv

Start = Callable[..., "tuple[Kv, subprocess.Popen[bytes]]"]


def test_ping_prints_ok(kv: "Kv") -> None:
    assert kv.ok("ping") == "ok\n"
    assert kv.ok("ping", "-q") == ""


def test_status_prints_every_fact(serving: Start) -> None:
    kv, process = serving()
    facts = json.loads(kv.ok("status", "--json"))
    assert facts["pid"] == process.pid
    lines = kv.ok("status").splitlines()
    assert [line.partition(": ")[0] for line in lines] == list(facts)


@pytest.mark.parametrize("command", ["ping", "status", "metrics", "reload", "shutdown", "ls"])
def test_without_a_daemon_every_command_names_the_socket(alone: "Kv", command: str) -> None:
    assert str(alone.socket) in alone.fails(69, command)


def test_reload_of_an_unchanged_configuration_says_so(kv: "Kv") -> None:
    assert kv.ok("reload") == "Nothing changed\n"


def test_shutdown_returns_after_the_end_of_the_process(serving: Start) -> None:
    kv, process = serving()
    assert kv.ok("shutdown") == "Kvd stopped.\n"
    assert process.poll() == 0
    assert not os.path.exists(str(kv.socket))
    kv.fails(69, "ping")


def test_a_slow_shutdown_ends_with_5(serving: Start) -> None:
    """A process that SIGSTOP has stopped cannot answer."""
    kv, process = serving()
    process.send_signal(signal.SIGSTOP)
    try:
        kv.fails(5, "shutdown", "--timeout", "0.2")
    finally:
        process.send_signal(signal.SIGCONT)
