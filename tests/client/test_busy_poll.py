"""Busy polling: the replies are the same, and it ends."""

import pathlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

import kv
from tests.harness.waiting import DEADLINE_S

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon
    from tests.harness.scripted_server import Line, ScriptedServer

LOOKS = 50


def is_asleep(pid: int) -> bool:
    """Whether the process sleeps, as the kernel says (proc(5))."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def sleeps(pid: int) -> bool:
    """Whether the process is asleep at LOOKS looks in a row, before the deadline."""
    deadline, in_a_row = time.monotonic() + DEADLINE_S, 0
    while in_a_row < LOOKS and time.monotonic() < deadline:
        in_a_row = in_a_row + 1 if is_asleep(pid) else 0
    return in_a_row == LOOKS


@pytest.mark.parametrize("daemon_us", ["0", "2000"])
@pytest.mark.parametrize("client_us", [0, 2000])
def test_replies_are_the_same_with_busy_polling(
    start_daemon: "Callable[..., Daemon]", daemon_us: str, client_us: int
) -> None:
    daemon = start_daemon(KVD_BUSY_POLL_US=daemon_us)
    with kv.connect(daemon.address, busy_poll_us=client_us) as db:
        for number in range(200):
            db.set("n", b"%d" % number)
            assert db.get("n") == b"%d" % number
        assert db.get_many(["n", "none"]) == {"n": b"199", "none": None}
        large = bytes(1_000_000)
        db.set("large", large)
        assert db.get("large") == large


def test_a_busy_polling_daemon_sleeps_after_its_time(start_daemon: "Callable[..., Daemon]") -> None:
    daemon = start_daemon(KVD_BUSY_POLL_US="100000")
    with kv.connect(daemon.address) as db:
        db.ping()
        assert not sleeps_at_once(daemon.process.pid), "it looks for more input"
        assert sleeps(daemon.process.pid)


def sleeps_at_once(pid: int) -> bool:
    return all(is_asleep(pid) for _ in range(LOOKS))


def test_a_daemon_sleeps_at_once_by_default(start_daemon: "Callable[..., Daemon]") -> None:
    daemon = start_daemon()
    with kv.connect(daemon.address) as db:
        db.ping()
        assert sleeps(daemon.process.pid)


def test_a_timeout_ends_a_busy_poll(scripted: "Callable[..., ScriptedServer]", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kv.settings.MAX_BUSY_POLL_US", 10**12)

    def silent(line: "Line") -> None:
        line.request()
        server.release.wait(DEADLINE_S)

    server = scripted(silent)
    with kv.connect(server.address, timeout=0.05, busy_poll_us=10**12) as db, pytest.raises(kv.TimedOut):
        db.get("a")
    server.release.set()


@pytest.mark.parametrize("busy_poll_us", [-1, 1_000_001])
def test_a_time_out_of_range_is_a_value_error(busy_poll_us: int) -> None:
    with pytest.raises(ValueError, match="busy_poll_us is 0 to 1000000"):
        kv.connect("/nonexistent", busy_poll_us=busy_poll_us)
