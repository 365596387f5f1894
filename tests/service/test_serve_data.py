"""A daemon with a data directory: acknowledged commits survive kill -9, a faulty directory is refused."""

import os
import pathlib
import random
import select
import signal
import subprocess
import threading
import time
from binascii import crc32
from typing import TYPE_CHECKING, Any

import pytest

import kv
from tests.harness.scale import TIMES
from tests.harness.waiting import DEADLINE_S

if TYPE_CHECKING:
    from tests.harness.processes import Process
    from tests.harness.raw_peer import RawPeer
    from tests.harness.real_daemon import RealDaemon

KILLS = 7 * TIMES
WRITERS = 3
MIN_COMMITS = 20  # acknowledged between two kills


@pytest.fixture
def data(kvd: "RealDaemon") -> str:
    """The path of a data directory that does not exist yet."""
    return os.path.join(kvd.folder, "data")


def everything(kvd: "RealDaemon") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    following: str | None = ""
    while following is not None:
        items, following = kvd.ask(["scan", following, None, 65_536])[0]
        found |= {key: value for key, value, _ in items}
    return found


class Writer(threading.Thread):
    """Counts up a key of its own, one commit after the other, until the connection ends."""

    def __init__(self, peer: "RawPeer", key: str, start: int) -> None:
        super().__init__()
        self.peer, self.key = peer, key
        self.sent = self.acknowledged = start

    def run(self) -> None:
        try:
            while True:
                self.sent += 1
                self.peer.ask(["set", {self.key: b"%d" % self.sent, f"{self.key}/twin": b"%d" % self.sent}])
                self.acknowledged = self.sent
        except (EOFError, OSError):
            return


@pytest.mark.parametrize("shorter", ["history.max_age_ms = 1", '[[prefix]]\nprefix = "a"\nhistory_ms = 1'])
def test_old_history_is_pruned_after_a_start_without_any_write(kvd: "RealDaemon", data: str, shorter: str) -> None:
    process = kvd.serve("--data-dir", data)
    first = kvd.ask(["set", {"a": b"1"}])[0]
    kvd.ask(["set", {"a": b"2"}])
    kvd.stop(process)
    kvd.serve("--data-dir", data, "--config", kvd.configure(f"{shorter}\n"))
    kvd.eventually(lambda: kvd.ask(["get_many", ["a"], first]) != [[b"1"]])
    assert kvd.ask(["get_many", ["a"], first])[0]["error"] == "snapshot_gone"


@pytest.mark.parametrize("sync", ["always", "interval", "never"])
def test_acknowledged_commits_survive_kill_9(kvd: "RealDaemon", data: str, sync: str) -> None:
    """Each commit writes two keys. After a kill both or neither are there, and no acknowledged commit is missing."""
    randomness = random.Random(sync)  # noqa: S311 - chooses the moments of the kills
    counts = dict.fromkeys([f"w{number}" for number in range(WRITERS)], 0)
    acknowledged = 0
    config = kvd.configure("data.segment_bytes = 65536\ndata.checkpoint_bytes = 65536\nhistory.max_versions = 100\n")
    for _ in range(KILLS):
        process = kvd.serve("--data-dir", data, "--data-sync", sync, "--config", config)
        writers = [Writer(kvd.connect(), key, counts[key]) for key in counts]
        before = sum(counts.values())
        for writer in writers:
            writer.start()
        minimum = before + MIN_COMMITS + randomness.randrange(200)
        kvd.eventually(lambda minimum=minimum, all_=writers: sum(writer.acknowledged for writer in all_) >= minimum)
        process.kill()
        process.wait(30)
        for writer in writers:
            writer.join(30)
            writer.peer.close()
        acknowledged += sum(writer.acknowledged for writer in writers) - before
        process = kvd.serve("--data-dir", data, "--data-sync", sync, "--config", config)
        found = everything(kvd)
        for writer in writers:
            value = found.get(writer.key, b"0")  # "0" if it has made no commit yet
            assert found.get(f"{writer.key}/twin", b"0") == value, "half of a commit"
            assert writer.acknowledged <= int(value) <= writer.sent
            counts[writer.key] = int(value)
        assert kvd.stop(process) == 0
    print(f"{KILLS} kills, {acknowledged} commits acknowledged, none lost")
    assert acknowledged >= KILLS * MIN_COMMITS


def test_everything_is_restored_after_a_stop(kvd: "RealDaemon", data: str) -> None:
    process = kvd.serve("--data-dir", data)
    id_ = bytes(range(16))
    with kvd.connect() as peer:
        [hello] = peer.ask(["hello", 1, "test"])
        peer.ask(["set", {"a": b"1"}], ["set", {"a": b"2", "b": b"\0\xff"}], ["delete", ["b"]])
        peer.ask(["set", {"c": b"3"}, {"id": id_}], ["set", {"t": b"4"}, {"ttl": 3_600_000}])
        peer.ask(["set", {"gone": b"5"}, {"ephemeral": True}])
        before = peer.ask(["history", "a", 9], ["history", "b", 9], ["log", 1, 5], ["get_many", ["a", "b"], 2])
    kvd.eventually(lambda: kvd.ask(["get", "gone"]) == [None])
    assert kvd.stop(process) == 0
    process = kvd.serve("--data-dir", data)
    assert kvd.ask(["history", "a", 9], ["history", "b", 9], ["log", 1, 5], ["get_many", ["a", "b"], 2]) == before
    assert kvd.ask(["get_many", ["a", "b", "c", "t", "gone"]]) == [[b"2", None, b"3", b"4", None]]
    [[left]] = kvd.ask(["ttl", ["t"]])
    assert 0 < left <= 3_600_000
    [again] = kvd.ask(["hello", 1, "test"])
    assert again[2] == hello[2], "the same store"
    assert kvd.ask(["set", {"c": b"not twice"}, {"id": id_}]) == [4]
    assert kvd.ask(["get", "c"]) == [b"3"]
    kvd.stop(process)


def test_kills_during_recovery_and_checkpoints_lose_nothing(kvd: "RealDaemon", data: str) -> None:
    """Kill the daemon again and again after it has read some part of its log, then while it writes a checkpoint."""
    config = kvd.configure("data.segment_bytes = 65536\nhistory.max_versions = 100\n")
    process = kvd.serve("--data-dir", data, "--config", config)
    before_data = bytes_read(process.pid)  # what a start reads of the interpreter and its modules
    with kvd.connect() as peer:
        for number in range(0, 20_000, 50):
            peer.ask(*(["set", {f"key{each}": b"%d" % each}] for each in range(number, number + 50)))
    expected = {f"key{each}": b"%d" % each for each in range(20_000)}
    process.kill()
    process.wait(30)
    size = sum(path.stat().st_size for path in pathlib.Path(data).iterdir())
    randomness = random.Random(4)  # noqa: S311 - chooses the moments of the kills
    stopped_early, rounds, deadline = 0, 0, time.monotonic() + DEADLINE_S
    # On a busy machine more kills come too late. Then there are more rounds.
    while rounds < KILLS or (stopped_early <= KILLS // 2 and time.monotonic() < deadline):
        rounds += 1
        process = kvd.start("--data-dir", data, "--config", config)
        goal = before_data + randomness.randrange(size)
        while bytes_read(process.pid) < goal and not has_output(process):
            pass
        process.kill()
        output, _ = process.communicate(timeout=DEADLINE_S)
        stopped_early += b"Kvd started" not in output
    assert stopped_early > KILLS // 2
    for _ in range(KILLS):
        process = kvd.serve("--data-dir", data, "--config", config)
        kvd.ask(["checkpoint"])
        goal = randomness.randrange(1_000_000)
        kvd.eventually(lambda goal=goal: unfinished_bytes(data) >= goal or has_checkpoint(data))
        process.kill()
        process.wait(30)
    process = kvd.serve("--data-dir", data, "--config", config)
    assert everything(kvd) == expected
    assert kvd.stop(process) == 0


def has_output(process: "Process") -> bool:
    """Return whether the daemon has started or ended."""
    return bool(select.select([process.stdout], [], [], 0)[0])


def bytes_read(pid: int) -> int:
    """How many bytes a process has read so far; a huge number after its end."""
    try:
        return int(pathlib.Path(f"/proc/{pid}/io").read_text().split()[1])
    except (OSError, IndexError):
        return 1 << 62


def unfinished_bytes(data: str) -> int:
    return max((path.stat().st_size for path in pathlib.Path(data).glob("*.checkpoint.tmp")), default=0)


def has_checkpoint(data: str) -> bool:
    return any(pathlib.Path(data).glob("*.checkpoint"))


def test_ephemeral_keys_do_not_outlive_the_daemon(kvd: "RealDaemon", data: str) -> None:
    process = kvd.serve("--data-dir", data)
    with kvd.connect() as peer:
        peer.ask(["set", {"lock": b"mine"}, {"ephemeral": True}], ["set", {"kept": b"1"}])
        process.kill()
        process.wait(30)
    process = kvd.serve("--data-dir", data)
    assert everything(kvd) == {"kept": b"1"}
    [[newest, *_]] = kvd.ask(["history", "lock", 9])
    assert newest[1:2] + newest[3:] == [None, [None, None, "restarted"]]
    kvd.stop(process)


def test_a_key_that_expires_while_no_daemon_runs_is_gone(kvd: "RealDaemon", data: str) -> None:
    process = kvd.serve("--data-dir", data)
    kvd.ask(["set", {"short": b"1"}, {"ttl": 1}], ["set", {"long": b"1"}, {"ttl": 60_000}])
    process.kill()
    process.wait(30)
    process = kvd.serve("--data-dir", data)
    assert kvd.ask(["get", "short"], ["get", "long"]) == [None, b"1"]
    kvd.stop(process)


@pytest.mark.parametrize("sync", ["always", "interval", "never"])
def test_no_version_is_assigned_twice(kvd: "RealDaemon", data: str, sync: str) -> None:
    newest = 0
    for _ in range(3):
        process = kvd.serve("--data-dir", data, "--data-sync", sync)
        [version] = kvd.ask(["set", {"a": b"1"}])
        assert version > newest
        newest = version
        process.kill()
        process.wait(30)


def test_a_second_daemon_on_the_same_directory_is_refused(kvd: "RealDaemon", data: str) -> None:
    process = kvd.serve("--data-dir", data)
    result = subprocess.run(  # noqa: S603 - the daemon under test
        [*kvd.command("--data-dir", data), "--socket", kvd.path + "2"],
        env=kvd.environment(), capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (75, b"")
    assert f"already running: pid {process.pid} (lock {data}/lock)" in result.stderr.decode()
    assert kvd.ask(["set", {"still": b"1"}]) == [1]


def test_a_detached_daemon_locks_its_directory(kvd: "RealDaemon", data: str) -> None:
    pid = kvd.detach("--data-dir", data)
    assert kvd.ask(["set", {"a": b"1"}]) == [1]
    result = kvd.run("--data-dir", data, "--socket", kvd.path + "2")
    assert result.returncode == 75
    assert f"pid {pid} " in result.stderr.decode()
    kvd.end(pid, signal.SIGKILL)
    pid = kvd.detach("--data-dir", data)
    assert everything(kvd) == {"a": b"1"}
    kvd.end(pid)


def make_data(kvd: "RealDaemon", data: str) -> None:
    process = kvd.serve("--data-dir", data)
    kvd.ask(["set", {"a": b"1"}], ["set", {"b": b"2"}])
    assert kvd.stop(process) == 0


def segment(data: str) -> pathlib.Path:
    return next(pathlib.Path(data).glob("*.log"))


def flip(path: pathlib.Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_damage_is_refused_with_its_file_and_offset(kvd: "RealDaemon", data: str) -> None:
    make_data(kvd, data)
    flip(segment(data), 80)
    before = segment(data).read_bytes()
    result = kvd.run("--data-dir", data)
    error = result.stderr.decode()
    assert result.returncode == 65, error
    assert f"{segment(data)} is damaged at byte " in error
    assert "nothing was changed" in error
    assert segment(data).read_bytes() == before


def test_a_newer_format_is_refused(kvd: "RealDaemon", data: str) -> None:
    make_data(kvd, data)
    content = bytearray(segment(data).read_bytes())
    content[8:12] = (99).to_bytes(4, "little")
    content[52:56] = crc32(content[:52]).to_bytes(4, "little")
    segment(data).write_bytes(content)
    result = kvd.run("--data-dir", data)
    assert result.returncode == 65
    assert "has format 99" in result.stderr.decode()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_another_users_directory_is_refused(kvd: "RealDaemon", data: str) -> None:
    os.mkdir(data)
    os.chown(data, 65_533, -1)
    result = kvd.run("--data-dir", data)
    assert result.returncode == 78
    assert "belongs to uid 65533" in result.stderr.decode()


def test_a_directory_that_other_users_can_write_is_refused(kvd: "RealDaemon", data: str) -> None:
    os.mkdir(data)
    os.chmod(data, 0o777)  # noqa: S103 - what is refused
    result = kvd.run("--data-dir", data)
    assert result.returncode == 78
    assert f"chmod go-w {data}" in result.stderr.decode()


def test_a_file_in_the_directorys_place_is_refused(kvd: "RealDaemon", data: str) -> None:
    pathlib.Path(data).write_text("not a directory")
    result = kvd.run("--data-dir", data)
    assert result.returncode == 74
    assert f"data directory {data}: " in result.stderr.decode()


@pytest.fixture
def small_disk(kvd: "RealDaemon") -> Any:  # noqa: ANN401 - a generator of paths
    """A file system of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    path = os.path.join(kvd.folder, "disk")
    os.mkdir(path, 0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", path], check=True)  # noqa: S603, S607
    yield path
    kvd.clean_up()
    subprocess.run(["umount", path], check=True)  # noqa: S603, S607


def test_a_full_disk_refuses_only_commits_and_only_until_there_is_space(kvd: "RealDaemon", small_disk: str) -> None:
    config = kvd.configure("data.segment_bytes = 262144\n")
    data = os.path.join(small_disk, "data")
    process = kvd.serve("--data-dir", data, "--config", config)
    pathlib.Path(small_disk, "filler").write_bytes(bytes(1_200_000))
    stored = 0
    with kvd.connect() as peer:
        while not isinstance(reply := peer.ask(["set", {f"k{stored}": bytes(50_000)}])[0], dict):
            stored += 1
        assert reply["error"] == "no_space"
        assert stored > 0
        assert peer.ask(["get", f"k{stored}"], ["get", "k0"]) == [None, bytes(50_000)]
        assert peer.ask(["ping"]) == [True]
        os.unlink(os.path.join(small_disk, "filler"))
        assert not isinstance(peer.ask(["set", {f"k{stored}": bytes(50_000)}])[0], dict)
    process.kill()
    process.wait(30)
    process = kvd.serve("--data-dir", data, "--config", config)
    assert len(everything(kvd)) == stored + 1
    kvd.stop(process)


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_a_start_on_a_full_disk_serves_reads_and_writes_go_on_once_there_is_space(
    kvd: "RealDaemon", small_disk: str, end: str
) -> None:
    config = kvd.configure("data.segment_bytes = 262144\n")
    data = os.path.join(small_disk, "data")
    process = kvd.serve("--data-dir", data, "--config", config)
    assert kvd.ask(["set", {"a": b"1"}]) == [1]
    if end == "stopped":
        kvd.stop(process)
    else:
        process.kill()
        process.wait(30)
        for spare in pathlib.Path(data).glob("*.tmp"):
            spare.unlink()  # as a start does first, which here must not get its space
    fill(small_disk)
    process = kvd.serve("--data-dir", data, "--config", config)
    fill(small_disk)
    assert everything(kvd) == {"a": b"1"}
    assert kvd.ask(["set", {"b": bytes(50_000)}])[0]["error"] == "no_space"
    assert kvd.ask(["get", "b"]) == [None]
    for filler in pathlib.Path(small_disk).glob("filler*"):
        filler.unlink()
    assert kvd.ask(["set", {"b": b"2"}]) == [2]
    process.kill()
    process.wait(30)
    process = kvd.serve("--data-dir", data, "--config", config)
    assert everything(kvd) == {"a": b"1", "b": b"2"}
    kvd.stop(process)


def fill(disk: str) -> None:
    """Leave no space on a file system."""
    filler = pathlib.Path(disk, f"filler{len(os.listdir(disk))}")
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def test_the_file_of_the_restart_fence_is_in_the_data_directory_too(kvd: "RealDaemon", data: str) -> None:
    """So a successor on the same data is fenced at whatever socket it is."""
    process = kvd.serve("--data-dir", data)
    file = pathlib.Path(data, "lock.dirty")
    assert not file.exists()
    with kv.connect(kvd.address, timeout=DEADLINE_S, near_cache=True) as db:
        db.set("a", b"1")
        assert db.get("a") == db.get("a") == b"1"
        assert file.exists()
        process.kill()
        process.wait(30)
    assert file.exists()
    process = kvd.serve("--data-dir", data)
    kvd.eventually(lambda: not file.exists())
    assert everything(kvd) == {"a": b"1"}
    kvd.stop(process)
    assert not file.exists()


def test_thirty_touches_of_a_large_value_write_little_and_keep_the_history(kvd: "RealDaemon", data: str) -> None:
    process = kvd.serve("--data-dir", data)
    kvd.ask(*[["set", {"small": b"%d" % number}] for number in range(100)])
    kvd.ask(["set", {"large": bytes(8_000_000)}])
    before = dict(kvd.ask(["metrics"])[0])
    assert kvd.ask(*[["touch", ["large"], 60_000]] * 30) == [[True]] * 30
    after = dict(kvd.ask(["metrics"])[0])
    assert after["log_bytes_written"] - before["log_bytes_written"] < 30 * 200
    assert after["history_commits"] == before["history_commits"] + 30
    process.kill()
    process.wait(30)
    process = kvd.serve("--data-dir", data)
    assert len(everything(kvd)["large"]) == 8_000_000
    assert dict(kvd.ask(["metrics"])[0])["keys_with_deadline"] == 1
    kvd.stop(process)


def test_a_stop_during_a_checkpoint_leaves_no_traceback(kvd: "RealDaemon", data: str) -> None:
    """And begins no other one, although the log has grown enough for it."""
    config = kvd.configure("data.checkpoint_bytes = 65536\n")
    process = kvd.serve("--data-dir", data, "--config", config)
    for _ in range(5):
        with kvd.connect() as peer:
            peer.request(*[["set", {f"k{number}": bytes(4_000)}] for number in range(200)])
            peer.request(["checkpoint"])
            assert len(peer.receive()) == 200
            process.terminate()
            assert process.wait(30) == 0
        process = kvd.serve("--data-dir", data, "--config", config)
    kvd.stop(process)
    assert not [line for line in kvd.log_lines() if "Traceback" in line or "never" in line or "Error" in line]


def test_a_checkpoint_on_demand_removes_older_segments(kvd: "RealDaemon", data: str) -> None:
    config = kvd.configure("history.max_versions = 0\n")
    process = kvd.serve("--data-dir", data, "--config", config)
    with kvd.connect() as peer:
        peer.ask(*[["set", {f"k{number}": b"x" * 100}] for number in range(500)])

        def status_of(name: str) -> object:
            return dict(peer.ask(["status"])[0])[name]

        # Segments that the history needs stay until the next checkpoint. So wait until the history is pruned.
        kvd.eventually(lambda: status_of("oldest_readable_version") == status_of("version"))
        [version] = peer.ask(["checkpoint"])
        kvd.eventually(lambda: dict(peer.ask(["metrics"])[0])["checkpoint_version"] >= version)
        kvd.eventually(lambda: not os.path.exists(os.path.join(data, "0000000001.log")))
        peer.ask(["set", {"k0": b"after it"}])
    process.kill()
    process.wait(30)
    process = kvd.serve("--data-dir", data, "--config", config)
    found = everything(kvd)
    assert len(found) == 500
    assert found["k0"] == b"after it"
    kvd.stop(process)


def test_without_a_directory_there_is_no_checkpoint(kvd: "RealDaemon") -> None:
    process = kvd.serve()
    [reply] = kvd.ask(["checkpoint"])
    assert (reply["error"], "--data-dir" in reply["message"]) == ("bad_request", True)
    kvd.stop(process)


def test_an_idle_daemon_writes_nothing_and_uses_no_cpu_time(kvd: "RealDaemon", data: str) -> None:
    """After the mark that follows the last commit, no file changes and no CPU time is used."""
    process = kvd.serve("--data-dir", data)
    kvd.ask(["set", {"a": b"1"}])
    marked = segment_end(data)
    kvd.eventually(lambda: segment_end(data) > marked)
    before, used = newest_change(data), cpu_ticks(process)
    time.sleep(1.5)  # the claim is that nothing happens in this time
    assert newest_change(data) == before
    assert cpu_ticks(process) - used <= 1
    kvd.stop(process)


def segment_end(data: str) -> int:
    return len(segment(data).read_bytes().rstrip(b"\0"))


def newest_change(data: str) -> int:
    return max(path.stat().st_mtime_ns for path in pathlib.Path(data).iterdir())


def cpu_ticks(process: "Process") -> int:
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_failed_sync_ends_the_daemon_and_acknowledges_nothing(kvd: "RealDaemon", data: str) -> None:
    hook = kvd.with_hook(
        "import errno, os\n"
        "real = os.fdatasync\n"
        "def fdatasync(descriptor):\n"
        "    if os.path.exists(os.environ['FAIL']):\n"
        "        raise OSError(errno.EIO, 'Input/output error')\n"
        "    real(descriptor)\n"
        "os.fdatasync = fdatasync\n",
        FAIL=os.path.join(kvd.folder, "fail"),
    )
    process = kvd.serve("--data-dir", data, env=hook)
    assert kvd.ask(["set", {"a": b"1"}]) == [1]
    pathlib.Path(kvd.folder, "fail").touch()
    with kvd.connect() as peer, pytest.raises(EOFError):
        peer.ask(["set", {"b": b"2"}])
    assert process.wait(30) == 74
    assert any(line.startswith("CRITICAL the commit log cannot be written") for line in kvd.log_lines())
    os.unlink(os.path.join(kvd.folder, "fail"))
    process = kvd.serve("--data-dir", data)
    assert everything(kvd)["a"] == b"1"
    kvd.stop(process)
