"""What may leave while a sync is under way, and what waits for it: with a disk whose syncs we hold back."""

import pathlib
import select
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.harness.processes import Process
    from tests.harness.raw_peer import RawPeer
    from tests.harness.real_daemon import RealDaemon

# In every interpreter: a sync does not end while the file $HOLD is there.
SLOW_DISK = """
import os, time
real = os.fdatasync

def fdatasync(descriptor):
    while os.path.exists(os.environ["HOLD"]):
        time.sleep(0.002)
    real(descriptor)

os.fdatasync = fdatasync
"""


class SlowDisk:
    """A daemon whose syncs can be held back."""

    def __init__(self, kvd: "RealDaemon") -> None:
        self.kvd = kvd
        self._hold = pathlib.Path(kvd.folder, "hold")

    def serve(self, sync: str, *flags: str) -> "Process":
        environment = self.kvd.with_hook(SLOW_DISK, HOLD=str(self._hold))
        data = f"{self.kvd.folder}/data"
        return self.kvd.serve("--data-dir", data, "--data-sync", sync, *flags, env=environment)

    def hold(self) -> None:
        """From now on no sync ends."""
        self._hold.touch()

    def let_go(self) -> None:
        """They do."""
        self._hold.unlink(missing_ok=True)


@pytest.fixture
def disk(kvd: "RealDaemon") -> Iterator[SlowDisk]:
    slow = SlowDisk(kvd)
    yield slow
    slow.let_go()


def is_silent(peer: "RawPeer", others: "RawPeer") -> bool:
    """Whether nothing came: asked after another connection was answered what it asked later."""
    assert others.ask(["ping"]) == [True]
    return not select.select([peer.socket], [], [], 0)[0]


def send_and_wait(kvd: "RealDaemon", peer: "RawPeer", *requests: object) -> None:
    """Send what will not be answered yet, and return when the daemon has taken it."""
    peer.request(*requests)
    with kvd.connect() as other:
        for _ in range(3):  # its frame is read before one that is sent a turn later
            other.ask(["ping"])


def test_a_commit_is_acknowledged_only_after_its_sync(disk: SlowDisk, kvd: "RealDaemon") -> None:
    disk.serve("always")
    with kvd.connect() as writer, kvd.connect() as other:
        disk.hold()
        send_and_wait(kvd, writer, ["set", {"a": b"1"}])
        assert is_silent(writer, other)
        disk.let_go()
        assert writer.receive() == [1]


@pytest.mark.parametrize(
    "question",
    [["get", "new"], ["get", "absent"], ["get_many", ["old", "new"]], ["fetch", ["new"]], ["begin"],
     ["scan", "", None, 9], ["history", "new", 9], ["log", None, 9], ["delete", ["absent"]],
     ["commit", {}, {"new": 0}], ["hello", 1, "x"]],
    ids=str,
)  # fmt: skip
def test_nothing_that_shows_it_is_told_before(disk: SlowDisk, kvd: "RealDaemon", question: list[Any]) -> None:
    """Also a refusal, an absence or a snapshot would show a version that a power cut may take back."""
    disk.serve("always")
    with kvd.connect() as writer, kvd.connect() as reader, kvd.connect() as other:
        writer.ask(["set", {"old": b"1"}])
        disk.hold()
        send_and_wait(kvd, writer, ["set", {"new": b"1"}])
        send_and_wait(kvd, reader, question)
        assert is_silent(reader, other)
        disk.let_go()
        assert writer.receive() == [2]
        reader.receive()


def test_reads_of_what_is_durable_do_not_wait(disk: SlowDisk, kvd: "RealDaemon") -> None:
    disk.serve("always")
    with kvd.connect() as writer, kvd.connect() as reader:
        writer.ask(["set", {"old": b"1", "older": b"2"}])
        disk.hold()
        send_and_wait(kvd, writer, ["set", {"new": b"1"}])
        assert reader.ask(["get", "old"], ["get_many", ["old", "older"]], ["ping"]) == [b"1", [b"1", b"2"], True]
        disk.let_go()
        assert writer.receive() == [2]


def test_replies_on_one_connection_stay_in_order(disk: SlowDisk, kvd: "RealDaemon") -> None:
    disk.serve("always")
    with kvd.connect() as peer, kvd.connect() as other:
        peer.ask(["set", {"old": b"1"}])
        disk.hold()
        peer.request(["set", {"new": b"1"}])
        peer.request(["get", "old"])
        send_and_wait(kvd, peer, ["ping"])
        assert is_silent(peer, other)
        disk.let_go()
        assert [peer.receive() for _ in range(3)] == [[2], [b"1"], [True]]


def test_watchers_are_told_only_what_is_durable(disk: SlowDisk, kvd: "RealDaemon") -> None:
    disk.serve("always")
    with kvd.connect() as writer, kvd.connect() as watcher, kvd.connect() as other:
        assert watcher.ask(["watch", ""]) == [True]
        assert watcher.receive() == [["live", 0]]
        disk.hold()
        send_and_wait(kvd, writer, ["set", {"a": b"1"}])
        assert is_silent(watcher, other)
        disk.let_go()
        [[kind, version, _, _, changed]] = watcher.receive()
        assert (kind, version, changed) == ("change", 1, {"a": b"1"})
        assert writer.receive() == [1]


def test_a_watch_that_begins_on_what_is_not_durable_says_nothing_yet(disk: SlowDisk, kvd: "RealDaemon") -> None:
    disk.serve("always")
    with kvd.connect() as writer, kvd.connect() as watcher, kvd.connect() as other:
        disk.hold()
        send_and_wait(kvd, writer, ["set", {"a": b"1"}])
        send_and_wait(kvd, watcher, ["watch", "", 0])
        assert is_silent(watcher, other)
        disk.let_go()
        assert watcher.receive() == [True]
        events = watcher.receive()
        events += watcher.receive() if len(events) < 2 else []
        assert sorted(event[0] for event in events) == ["change", "live"]


@pytest.mark.parametrize("sync", ["interval", "never"])
def test_without_waiting_for_syncs_a_commit_is_acknowledged_at_once(
    disk: SlowDisk, kvd: "RealDaemon", sync: str
) -> None:
    disk.serve(sync)
    with kvd.connect() as writer:
        disk.hold()
        assert writer.ask(["set", {"a": b"1"}], ["get", "a"]) == [1, b"1"]


def test_a_write_may_ask_for_more(disk: SlowDisk, kvd: "RealDaemon") -> None:
    disk.serve("never")
    with kvd.connect() as writer, kvd.connect() as other:
        disk.hold()
        send_and_wait(kvd, writer, ["set", {"a": b"1"}, {"sync": True}])
        assert is_silent(writer, other)
        disk.let_go()
        assert writer.receive() == [1]


def test_a_write_may_ask_for_less_and_its_readers_do_not(disk: SlowDisk, kvd: "RealDaemon") -> None:
    """The first one raises the ceiling, below which versions may be shown early, and waits for that."""
    disk.serve("always")
    with kvd.connect() as writer, kvd.connect() as reader, kvd.connect() as other:
        assert writer.ask(["set", {"first": b"1"}, {"sync": False}]) == [1]
        kvd.eventually(lambda: dict(other.ask(["metrics"])[0])["log_ceiling_version"] > 1)
        disk.hold()
        assert writer.ask(["set", {"a": b"1"}, {"sync": False}]) == [2]
        send_and_wait(kvd, reader, ["get", "a"])
        assert is_silent(reader, other)
        disk.let_go()
        assert reader.receive() == [b"1"]


def test_a_stop_waits_for_what_was_read(disk: SlowDisk, kvd: "RealDaemon") -> None:
    process = disk.serve("always")
    with kvd.connect() as writer:
        disk.hold()
        send_and_wait(kvd, writer, ["set", {"a": b"1"}])
        process.terminate()
        kvd.eventually(lambda: kvd.log_lines()[-1] == "INFO stopping: SIGTERM")
        disk.let_go()
        assert writer.receive() == [1]
        assert writer.receive()["error"] == "shutting_down"
    assert process.wait(30) == 0
    disk.serve("always")
    assert kvd.ask(["get", "a"]) == [b"1"]


def test_a_connection_that_is_cut_while_it_waits_leaves_nothing_behind(disk: SlowDisk, kvd: "RealDaemon") -> None:
    disk.serve("always")
    disk.hold()
    with kvd.connect() as writer:
        send_and_wait(kvd, writer, ["set", {"a": b"1"}])
    disk.let_go()
    kvd.eventually(lambda: kvd.ask(["get", "a"]) == [b"1"])
    assert kvd.status()["connections"] == 1


def test_the_command_asks_for_a_sync_with_an_option(disk: SlowDisk, kvd: "RealDaemon") -> None:
    disk.serve("never")
    disk.hold()
    assert kvd.kv("set", "a=1").returncode == 0
    assert kvd.kv("set", "--no-sync", "a=2").returncode == 0
    for command in (["set", "a=3"], ["incr", "n"], ["del", "a"]):
        done = kvd.kv("--timeout", "0.3", *command, "--sync")
        assert done.returncode == 5, (command, done.stderr)
        assert b"may have been made" in done.stderr
