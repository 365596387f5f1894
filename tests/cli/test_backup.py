"""``kv backup``, ``kv restore`` and ``kv checkpoint`` as a person uses them, and what a killed one leaves."""

import json
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pexpect
import pytest

from kv import connect
from kv.blocking.client import Client
from kvd.journal import names
from tests.harness.kv_command import Kv
from tests.harness.processes import KV, environment
from tests.harness.scale import SCALE
from tests.harness.waiting import DEADLINE_S, eventually

Serving = Callable[..., tuple[Kv, "subprocess.Popen[bytes]"]]
KILLS = round(6 * SCALE)
VALUES = {"text": b"hello", "binary": bytes(range(256)), "empty": b"", "odd\n\x1b key ✓": b"x" * 10_000}


@pytest.fixture
def data(tmp_path: pathlib.Path) -> str:
    """The path of a data directory that does not exist yet."""
    return str(tmp_path / "data")


@pytest.fixture
def file(tmp_path: pathlib.Path) -> str:
    """The path of a backup."""
    return str(tmp_path / "kvd.backup")


def client(kv: Kv) -> Client:
    return connect(kv.socket, timeout=DEADLINE_S)


def everything(db: Client, at: int | None = None) -> dict[str, bytes]:
    source = db if at is None else db.at(at)
    return {item.key: item.value for item in source.scan() if item.value is not None}


def restored(serving: Serving, directory: str) -> dict[str, bytes]:
    """Start a daemon on the directory; return everything it has."""
    kv, _ = serving("--data-dir", directory)
    with client(kv) as db:
        return everything(db)


# ---------------------------------------------------------------------- backup


def test_a_backup_is_restored(kv: Kv, alone: Kv, serving: Serving, data: str, file: str) -> None:
    with client(kv) as db:
        version = db.set_many(VALUES)
    assert kv.ok("backup", file) == f"Backup written: version {version}, 4 keys\n"
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert re.fullmatch(rf"Sound backup: version {version} of .*, 4 keys\n", alone.ok("check", file))
    assert re.fullmatch(rf"Restored: version {version} of .*, 4 keys\n", alone.ok("restore", file, data))
    assert restored(serving, data) == VALUES


def test_a_backup_goes_through_pipes(kv: Kv, alone: Kv, serving: Serving, data: str) -> None:
    with client(kv) as db:
        db.set_many(VALUES)
    backup = kv("backup", "-")
    assert (backup.returncode, backup.stderr) == (0, b"")
    alone.ok("restore", "-", data, stdin=backup.stdout)
    assert restored(serving, data) == VALUES


def test_json_has_version_and_keys(kv: Kv, alone: Kv, data: str, file: str) -> None:
    kv.ok("set", "a=1")
    assert json.loads(kv.ok("backup", "--json", file)) == {"version": 1, "keys": 1}
    report = json.loads(alone.ok("restore", "--json", file, data))
    assert report.keys() == {"version", "time", "lost_versions"}
    assert (report["version"], report["lost_versions"]) == (1, 0)


def test_an_empty_store_is_backed_up_and_restored(kv: Kv, alone: Kv, serving: Serving, data: str, file: str) -> None:
    kv.ok("backup", file)
    alone.ok("restore", file, data)
    assert restored(serving, data) == {}


class Busy(threading.Thread):
    """Moves an amount between two accounts, again and again, and adds keys, until it is stopped."""

    def __init__(self, kv: Kv, number: int) -> None:
        super().__init__()
        self.db, self.number = client(kv), number
        self.commits = 0
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            self.commits += 1
            left = b"%d" % self.commits
            right = b"%d" % (1_000_000 - self.commits)
            self.db.set_many({f"a{self.number}": left, f"z{self.number}": right, f"{self.number}/{self.commits}": b""})


@pytest.fixture
def busy_writers(kv: Kv) -> Iterator[list[Busy]]:
    writers = [Busy(kv, number) for number in range(3)]
    for writer in writers:
        writer.start()
    yield writers
    for writer in writers:
        writer.stopping.set()
        writer.join(DEADLINE_S)
        writer.db.close()


def test_a_backup_during_writes_is_everything_at_its_end(
    kv: Kv, alone: Kv, busy_writers: list[Busy], serving: Serving, tmp_path: pathlib.Path
) -> None:
    with client(kv) as db:
        db.set_many({f"filler{number}": bytes(100) for number in range(20_000)})
        for attempt in range(3):
            before = sum(writer.commits for writer in busy_writers)
            report = json.loads(kv.ok("backup", "--json", str(tmp_path / f"b{attempt}")))
            expected = everything(db, report["version"])
            assert sum(writer.commits for writer in busy_writers) > before
            alone.ok("restore", str(tmp_path / f"b{attempt}"), str(tmp_path / f"d{attempt}"))
            assert restored(serving, str(tmp_path / f"d{attempt}")) == expected
            assert report["keys"] == len(expected)


def test_a_backup_has_the_times_to_live_and_no_ephemeral_keys(
    kv: Kv, alone: Kv, serving: Serving, data: str, file: str
) -> None:
    with client(kv) as db:
        db.set_many({"soon": b"1"}, ttl=3600)
        db.set_many({"session": b"1"}, ephemeral=True)
        kv.ok("backup", file)
    alone.ok("restore", file, data)
    new, _ = serving("--data-dir", data)
    assert new.ok("ls") == "soon\n"
    assert 0 < json.loads(new.ok("ttl", "--json", "soon"))["soon"] <= 3600


def test_an_earlier_backup_stays_until_the_new_one_is_complete(kv: Kv, alone: Kv, file: str) -> None:
    kv.ok("set", "a=1")
    kv.ok("backup", file)
    os.chmod(file, 0o640)
    kv.ok("set", "b=2")
    kv.ok("backup", file)
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o640
    assert ", 2 keys" in alone.ok("check", file)
    alone.fails(69, "backup", file)
    assert ", 2 keys" in alone.ok("check", file)
    assert os.listdir(os.path.dirname(file)) == ["kvd.backup"]


def test_a_backup_that_cannot_be_written_ends_with_74(kv: Kv, tmp_path: pathlib.Path) -> None:
    kv.ok("set", "a=1")
    assert "No space left" in kv.fails(74, "backup", "/dev/full")
    assert "No such file" in kv.fails(74, "backup", str(tmp_path / "missing" / "file"))
    with open("/dev/full", "wb") as full:
        result = subprocess.run(  # noqa: S603 (the command under test)
            [*KV, "backup", "-"], stdout=full, stderr=subprocess.PIPE, env=kv.environment(), timeout=DEADLINE_S,
            check=False,
        )  # fmt: skip
    assert (result.returncode, result.stderr.count(b"\n")) == (74, 1)


def test_a_backup_is_not_for_a_terminal(kv: Kv) -> None:
    child = pexpect.spawn(sys.executable, ["-m", "kv", "backup", "-"], env=kv.environment(), timeout=DEADLINE_S)  # type: ignore[arg-type]
    child.expect("not for a terminal")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 2


def test_wrong_usage(alone: Kv, tmp_path: pathlib.Path) -> None:
    alone.fails(2, "backup")
    alone.fails(2, "backup", "a", "b")
    alone.fails(2, "restore", "a")
    alone.fails(2, "restore", "a", "b", "c")
    alone.fails(2, "restore", "--to", "nonsense", "a", "b")
    assert "has no history" in alone.fails(2, "restore", "--to", "3", str(tmp_path / "file"), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------------- restore


def test_restore_refuses_a_file_that_is_no_backup_and_leaves_nothing(alone: Kv, tmp_path: pathlib.Path) -> None:
    new = tmp_path / "new"
    (tmp_path / "text").write_text("This is a text, and longer than the header of a backup would be.\n" * 3)
    assert "does not begin as a file of this kind" in alone.fails(65, "restore", str(tmp_path / "text"), str(new))
    (tmp_path / "empty").write_bytes(b"")
    assert "ends within its header" in alone.fails(65, "restore", str(tmp_path / "empty"), str(new))
    assert "No such file" in alone.fails(74, "restore", str(tmp_path / "missing"), str(new))
    assert not new.exists()


def test_restore_leaves_a_directory_that_is_not_empty_alone(
    kv: Kv, alone: Kv, tmp_path: pathlib.Path, file: str
) -> None:
    kv.ok("backup", file)
    (tmp_path / "full").mkdir(mode=0o700)
    (tmp_path / "full" / "letter").write_text("dear")
    assert "is not empty: it has letter" in alone.fails(2, "restore", file, str(tmp_path / "full"))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter"]


def test_restore_and_check_refuse_a_directory_in_use(serving: Serving, alone: Kv, data: str, file: str) -> None:
    kv, _ = serving("--data-dir", data)
    kv.ok("backup", file)
    assert "already running" in alone.fails(75, "restore", data, data + "2")
    assert "already running" in alone.fails(75, "restore", file, data)
    assert "already running" in alone.fails(75, "check", data)
    assert kv.ok("ping")


def test_a_data_directory_is_restored_as_it_was_at_a_version_and_at_a_time(
    serving: Serving, alone: Kv, data: str, tmp_path: pathlib.Path
) -> None:
    kv, process = serving("--data-dir", data)
    for number in range(1, 6):
        kv.ok("set", f"n={number}", f"k{number}=x")
    times = [json.loads(line)["time"] for line in kv.ok("log", "--json").splitlines()]
    process.send_signal(signal.SIGTERM)
    process.wait(DEADLINE_S)
    for version in (1, 3, 5):
        for name, to in (("v", str(version)), ("t", times[version - 1])):
            new = str(tmp_path / f"{name}{version}")
            assert alone.ok("restore", "--to", to, data, new).startswith(f"Restored: version {version} of ")
            contents = restored(serving, new)
            assert contents == {"n": b"%d" % version, **{f"k{n}": b"x" for n in range(1, version + 1)}}
    assert "ends with version 5" in alone.fails(1, "restore", "--to", "6", data, str(tmp_path / "no"))
    assert not (tmp_path / "no").exists()


def test_restore_finds_values_in_the_log_that_the_daemon_has_forgotten(
    serving: Serving, alone: Kv, data: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "kvd.toml").write_text('[[prefix]]\nprefix = "n"\nhistory_ms = 1\n')
    kv, process = serving("--data-dir", data, "--config", str(tmp_path / "kvd.toml"))
    for number in range(3):
        kv.ok("set", f"n={number}")
    eventually(lambda: kv("get", "--at", "1", "n").returncode != 0)
    process.send_signal(signal.SIGTERM)
    process.wait(DEADLINE_S)
    alone.ok("restore", "--to", "1", data, data + "2")
    assert restored(serving, data + "2") == {"n": b"0"}


def test_restore_from_a_data_directory_keeps_the_history(serving: Serving, alone: Kv, data: str) -> None:
    kv, process = serving("--data-dir", data)
    for number in range(5):
        kv.ok("set", f"n={number}")
    process.send_signal(signal.SIGTERM)
    process.wait(DEADLINE_S)
    alone.ok("restore", data, data + "2")
    new, _ = serving("--data-dir", data + "2")
    assert new.ok("get", "--raw", "--at", "2", "n") == "1"
    new.ok("rollback", "--to", "3", "n")
    assert new.ok("get", "--raw", "n") == "2"


def test_a_restored_store_has_an_id_of_its_own(serving: Serving, alone: Kv, data: str) -> None:
    """So no client takes its versions for those of the old store."""
    kv, process = serving("--data-dir", data)
    kv.ok("set", "a=1")
    process.send_signal(signal.SIGTERM)
    process.wait(DEADLINE_S)
    alone.ok("restore", data, data + "2")
    ids = []
    for directory in (data, data + "2"):
        kv, _ = serving("--data-dir", directory)
        ids.append(json.loads(kv.ok("status", "--json"))["store_id"])
    assert ids[0] != ids[1]


def test_restore_refuses_a_point_that_is_older_than_the_log(
    serving: Serving, alone: Kv, data: str, tmp_path: pathlib.Path
) -> None:
    config = tmp_path / "kvd.toml"
    config.write_text("[history]\nmax_versions = 2\n")
    kv, process = serving("--data-dir", data, "--config", str(config))
    for number in range(10):
        kv.ok("set", f"n={number}")
    kv.ok("checkpoint")
    for number in range(10):
        kv.ok("set", f"n={number}")
    kv.ok("checkpoint")
    process.send_signal(signal.SIGTERM)
    process.wait(DEADLINE_S)
    error = alone.fails(1, "restore", "--to", "3", data, str(tmp_path / "new"))
    assert re.search(r"goes back to version \d+ of 20\d\d", error)


def big(kv: Kv) -> None:
    with client(kv) as db:
        for begin in range(0, 60_000, 5_000):
            db.set_many({f"key{number}": bytes(100) for number in range(begin, begin + 5_000)})


def test_a_killed_restore_can_be_repeated(
    kv: Kv, alone: Kv, serving: Serving, tmp_path: pathlib.Path, file: str
) -> None:
    """After a kill at any moment, either no daemon starts on the directory, or all of it is there."""
    big(kv)
    kv.ok("backup", file)
    with client(kv) as db:
        expected = everything(db)
    unfinished = 0
    for attempt in range(KILLS):
        new = tmp_path / f"new{attempt}"
        process = alone.start("restore", file, str(new))
        # The kills come between the start and nearly the end.
        wanted = os.stat(file).st_size * attempt // KILLS
        while process.poll() is None and _bytes_in(new) < wanted:
            pass
        process.kill()
        process.wait(DEADLINE_S)
        refused = alone("check", str(new)) if _is_begun(new) else None
        if refused is not None and refused.returncode != 0:
            unfinished += 1
            assert b"run it again" in refused.stderr
            start = alone("serve", "--data-dir", str(new))
            assert (start.returncode, b"run it again" in start.stderr) == (65, True)
        if refused is None or refused.returncode != 0:
            alone.ok("restore", file, str(new))
        assert restored(serving, str(new)) == expected
    assert unfinished


def _is_begun(directory: pathlib.Path) -> bool:
    """Whether a restore has written anything there but its lock file."""
    return directory.exists() and bool({path.name for path in directory.iterdir()} - {names.LOCK})


def _bytes_in(directory: pathlib.Path) -> int:
    try:
        return sum(entry.stat().st_size for entry in os.scandir(directory)) + 1
    except FileNotFoundError:
        return 0


def test_restore_and_recovery_show_a_bar_on_a_terminal(kv: Kv, alone: Kv, tmp_path: pathlib.Path, file: str) -> None:
    with client(kv) as db:
        for begin in range(0, 400_000, 20_000):
            db.set_many({f"key{number}": bytes(100) for number in range(begin, begin + 20_000)})
    kv.ok("backup", file)
    command = ["-m", "kv", "restore", file, str(tmp_path / "new")]
    child = pexpect.spawn(
        sys.executable, command, env=environment(TQDM_DELAY="0"), timeout=DEADLINE_S, dimensions=(24, 100)
    )  # type: ignore[arg-type]
    child.expect(r"restoring: +\d+%")
    child.expect("Restored: version")
    child.expect(pexpect.EOF)
    command = ["-m", "kv", "serve", "-d", "-s", str(tmp_path / "s"), "--data-dir", str(tmp_path / "new")]
    child = pexpect.spawn(
        sys.executable, command, env=environment(TQDM_DELAY="0"), timeout=DEADLINE_S, dimensions=(24, 100)
    )  # type: ignore[arg-type]
    child.expect(r"recovering: +\d+%")
    child.expect(pexpect.EOF)
    assert Kv(str(tmp_path / "s")).ok("shutdown") == "Kvd stopped.\n"


# ---------------------------------------------------------------------- checkpoint


def test_checkpoint_writes_one_now(serving: Serving, data: str) -> None:
    kv, _ = serving("--data-dir", data)
    kv.ok("set", "a=1", "b=2")
    assert kv.ok("checkpoint") == "Checkpoint written.\n"
    assert [name for name in os.listdir(data) if name.endswith(".checkpoint")] == ["0000000002.checkpoint"]
    assert "kv: version 1\n" in kv("checkpoint", "-v").stderr.decode()


def test_checkpoint_is_refused_without_a_data_directory(kv: Kv) -> None:
    assert "--data-dir" in kv.fails(5, "checkpoint")
