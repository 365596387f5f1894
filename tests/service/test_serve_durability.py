"""Which replies may be sent during a sync, and which wait for it: with a disk whose syncs the tests hold back."""

import pathlib
import select
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
        """Let no sync end from now on."""
        self._hold.touch()

    def release(self) -> None:
        """Let syncs end."""
        self._hold.unlink(missing_ok=True)


@pytest.fixture
def disk(kvd: "RealDaemon") -> Iterator[SlowDisk]:
    slow = SlowDisk(kvd)
    yield slow
    slow.release()


def has_no_reply(peer: "RawPeer", other: "RawPeer") -> bool:
    """Return whether no reply has come, although another connection has got the reply to a later request."""
    assert other.ask(["ping"]) == [True]
    return not select.select([peer.socket], [], [], 0)[0]


def send_and_wait(kvd: "RealDaemon", peer: "RawPeer", *requests: object) -> None:
    """Send requests whose replies are held back, and return when the daemon has read them."""
    peer.request(*requests)
    with kvd.connect() as other:
        for _ in range(3):  # the daemon reads a frame before one that is sent an iteration of its loop later
            other.ask(["ping"])


def test_a_commit_is_acknowledged_only_after_its_sync(disk: SlowDisk, kvd: "RealDaemon") -> None:
    disk.serve("always")
    with kvd.connect() as writer, kvd.connect() as other:
        disk.hold()
        send_and_wait(kvd, writer, ["set", {"a": b"1"}])
        assert has_no_reply(writer, other)
        disk.release()
        assert writer.receive() == [1]


@pytest.mark.parametrize(
    "question",
    [["get", "new"], ["get", "absent"], ["get_many", ["old", "new"]], ["fetch", ["new"]], ["begin"],
     ["scan", "", None, 9], ["history", "new", 9], ["log", None, 9], ["delete", ["absent"]],
     ["commit", {}, {"new": 0}], ["hello", 1, "x"]],
    ids=str,
)  # fmt: skip
def test_a_reply_that_shows_the_commit_waits_for_its_sync(
    disk: SlowDisk, kvd: "RealDaemon", question: list[Any]
) -> None:
    """An error, an absent key or a snapshot, too, would show a version that a power cut may undo."""
    disk.serve("always")
    with kvd.connect() as writer, kvd.connect() as reader, kvd.connect() as other:
        writer.ask(["set", {"old": b"1"}])
        disk.hold()
        send_and_wait(kvd, writer, ["set", {"new": b"1"}])
        send_and_wait(kvd, reader, question)
        assert has_no_reply(reader, other)
        disk.release()
        assert writer.receive() == [2]
        reader.receive()


def test_reads_of_durable_values_do_not_wait(disk: SlowDisk, kvd: "RealDaemon") -> None:
    disk.serve("always")
    with kvd.connect() as writer, kvd.connect() as reader:
        writer.ask(["set", {"old": b"1", "older": b"2"}])
        disk.hold()
        send_and_wait(kvd, writer, ["set", {"new": b"1"}])
        assert reader.ask(["get", "old"], ["get_many", ["old", "older"]], ["ping"]) == [b"1", [b"1", b"2"], True]
        disk.release()
        assert writer.receive() == [2]


def test_replies_on_one_connection_stay_in_order(disk: SlowDisk, kvd: "RealDaemon") -> None:
    disk.serve("always")
    with kvd.connect() as peer, kvd.connect() as other:
        peer.ask(["set", {"old": b"1"}])
        disk.hold()
        peer.request(["set", {"new": b"1"}])
        peer.request(["get", "old"])
        send_and_wait(kvd, peer, ["ping"])
        assert has_no_reply(peer, other)
        disk.release()
        assert [peer.receive() for _ in range(3)] == [[2], [b"1"], [True]]


def test_watches_get_only_durable_commits(disk: SlowDisk, kvd: "RealDaemon") -> None:
    disk.serve("always")
    with kvd.connect() as writer, kvd.connect() as watcher, kvd.connect() as other:
        assert watcher.ask(["watch", ""]) == [True]
        assert watcher.receive() == [["live", 0]]
        disk.hold()
        send_and_wait(kvd, writer, ["set", {"a": b"1"}])
        assert has_no_reply(watcher, other)
        disk.release()
        [[kind, version, _, _, changed]] = watcher.receive()
        assert (kind, version, changed) == ("change", 1, {"a": b"1"})
        assert writer.receive() == [1]


def test_a_watch_that_starts_before_a_sync_waits_for_it(disk: SlowDisk, kvd: "RealDaemon") -> None:
    disk.serve("always")
    with kvd.connect() as writer, kvd.connect() as watcher, kvd.connect() as other:
        disk.hold()
        send_and_wait(kvd, writer, ["set", {"a": b"1"}])
        send_and_wait(kvd, watcher, ["watch", "", 0])
        assert has_no_reply(watcher, other)
        disk.release()
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


def test_a_write_may_ask_for_a_sync(disk: SlowDisk, kvd: "RealDaemon") -> None:
    disk.serve("never")
    with kvd.connect() as writer, kvd.connect() as other:
        disk.hold()
        send_and_wait(kvd, writer, ["set", {"a": b"1"}, {"sync": True}])
        assert has_no_reply(writer, other)
        disk.release()
        assert writer.receive() == [1]


def test_a_write_may_ask_for_no_sync_but_its_readers_wait(disk: SlowDisk, kvd: "RealDaemon") -> None:
    """The first write raises the ceiling, below which versions may be shown before their sync, and waits for it."""
    disk.serve("always")
    with kvd.connect() as writer, kvd.connect() as reader, kvd.connect() as other:
        assert writer.ask(["set", {"first": b"1"}, {"sync": False}]) == [1]
        kvd.eventually(lambda: dict(other.ask(["metrics"])[0])["log_ceiling_version"] > 1)
        disk.hold()
        assert writer.ask(["set", {"a": b"1"}, {"sync": False}]) == [2]
        send_and_wait(kvd, reader, ["get", "a"])
        assert has_no_reply(reader, other)
        disk.release()
        assert reader.receive() == [b"1"]


def test_a_stop_waits_for_the_frames_that_were_read(disk: SlowDisk, kvd: "RealDaemon") -> None:
    process = disk.serve("always")
    with kvd.connect() as writer:
        disk.hold()
        send_and_wait(kvd, writer, ["set", {"a": b"1"}])
        process.terminate()
        kvd.eventually(lambda: kvd.log_lines()[-1] == "INFO stopping: SIGTERM")
        disk.release()
        assert writer.receive() == [1]
        assert writer.receive()["error"] == "shutting_down"
    assert process.wait(30) == 0
    disk.serve("always")
    assert kvd.ask(["get", "a"]) == [b"1"]


def test_a_connection_that_is_lost_while_it_waits_leaves_nothing_behind(disk: SlowDisk, kvd: "RealDaemon") -> None:
    disk.serve("always")
    disk.hold()
    with kvd.connect() as writer:
        send_and_wait(kvd, writer, ["set", {"a": b"1"}])
    disk.release()
    kvd.eventually(lambda: kvd.ask(["get", "a"]) == [b"1"])
    assert kvd.status()["connections"] == 1


def test_the_command_asks_for_a_sync_with_an_option(disk: SlowDisk, kvd: "RealDaemon") -> None:
    disk.serve("never")
    disk.hold()
    assert kvd.kv("set", "a=1").returncode == 0
    assert kvd.kv("set", "--no-sync", "a=2").returncode == 0
    commands = (["set", "a=3"], ["incr", "n"], ["del", "a"])
    # At once, so that each can have a time-out in which it connects and sends on a busy machine too.
    with ThreadPoolExecutor(len(commands)) as pool:
        results = list(pool.map(lambda command: kvd.kv("--timeout", "3", *command, "--sync"), commands))
    for command, result in zip(commands, results, strict=True):
        assert result.returncode == 5, (command, result.stderr)
        assert b"may have been made" in result.stderr
