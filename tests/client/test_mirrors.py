"""Mirrors: they have the daemon's keys soon, and ``wait_for`` waits until they have."""

import asyncio
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

import kv
import kv.aio
from tests.harness.waiting import DEADLINE_S

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon

Start = Callable[..., "Daemon"]


def test_a_mirror_has_the_keys_that_exist_and_later_changes(db: kv.Client) -> None:
    db.set_many({"m/a": b"1", "m/b": b"2", "other": b"3"})
    with db.mirror("m/") as mirror:
        assert dict(mirror) == mirror.copy() == {"m/a": b"1", "m/b": b"2"}
        version = db.set_many({"m/a": b"new", "m/c": b"4"})
        mirror.wait_for(version, DEADLINE_S)
        assert (mirror["m/a"], mirror.get("m/c"), mirror.get("absent"), len(mirror)) == (b"new", b"4", None, 3)
        db.delete("m/b")
        mirror.wait_for(db.version(), DEADLINE_S)
        assert "m/b" not in mirror
        with pytest.raises(KeyError):
            mirror["m/b"]
    assert mirror["m/a"] == b"new", "its values can still be read"


def test_a_mirror_of_no_keys_is_empty(db: kv.Client) -> None:
    with db.mirror("nothing/") as mirror:
        assert (len(mirror), list(mirror)) == (0, [])


def test_a_mirror_cannot_be_written_to(db: kv.Client) -> None:
    with db.mirror() as mirror, pytest.raises(TypeError):
        mirror["a"] = b""  # type: ignore[index]


def test_waiting_for_commits_to_other_keys_returns_at_once(db: kv.Client) -> None:
    """No change is to come, so there is nothing to wait for."""
    with db.mirror("m/") as mirror:
        for number in range(5):
            mirror.wait_for(db.set("elsewhere", b"%d" % number), DEADLINE_S)
        before = mirror.version
        version = db.set("m/a", b"1")
        db.set("elsewhere", b"")
        mirror.wait_for(db.version(), DEADLINE_S)
        assert mirror["m/a"] == b"1"
        assert before < mirror.version == version


def test_waiting_works_where_the_log_does_not_reach_back(start_daemon: Start, tmp_path: "os.PathLike[str]") -> None:
    """The last commit that concerns the prefix is older than the history."""
    config = os.path.join(tmp_path, "kvd.toml")
    with open(config, "w") as file:
        file.write("[history]\nmax_versions = 1500\n")
    with kv.connect(start_daemon("--config", config).address, timeout=DEADLINE_S) as db:
        db.set("m/a", b"1")
        with db.mirror("m/") as mirror:
            for _ in range(40):
                with db.pipeline() as pipe:
                    for number in range(100):
                        pipe.set("elsewhere", b"%d" % number)
            mirror.wait_for(db.version(), DEADLINE_S)
            mirror.wait_for(db.set("m/a", b"2"), DEADLINE_S)
            assert mirror["m/a"] == b"2"


def test_a_version_in_the_future_is_not_waited_for(db: kv.Client) -> None:
    """The mirror has all commits that exist up to it."""
    with db.mirror("m/") as mirror:
        mirror.wait_for(db.version() + 100, DEADLINE_S)


def test_every_copy_is_of_one_version(db: kv.Client) -> None:
    """Each commit writes the same value to all keys."""
    stopping = threading.Event()
    db.set_many({f"m/{key}": b"0" for key in range(20)})

    def write() -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            db.set_many({f"m/{key}": b"%d" % number for key in range(20)})

    writer = threading.Thread(target=write)
    with db.mirror("m/") as mirror:
        writer.start()
        seen: set[bytes] = set()
        while len(seen) < 50:
            values = set(mirror.copy().values())
            assert len(values) == 1
            seen |= values
        stopping.set()
        writer.join(DEADLINE_S)
        mirror.wait_for(db.version(), DEADLINE_S)
        assert mirror.copy() == {item.key: item.value for item in db.scan("m/")}


def test_a_mirror_survives_a_restart_of_the_daemon(start_daemon: Start, tmp_path: "os.PathLike[str]") -> None:
    data = os.path.join(tmp_path, "data")
    daemon = start_daemon("--data-dir", data)
    with kv.connect(daemon.address, timeout=DEADLINE_S) as db:
        db.set("m/a", b"1")
        with db.mirror("m/") as mirror:
            daemon.terminate()
            start_daemon("--data-dir", data)
            mirror.wait_for(db.set("m/a", b"2"), DEADLINE_S)
            assert mirror.copy() == {"m/a": b"2"}


def test_without_a_daemon_reads_are_unavailable(start_daemon: Start) -> None:
    daemon = start_daemon()
    with kv.connect(daemon.address, timeout=0.2) as db:
        db.set("m/a", b"1")
        mirror = db.mirror("m/")
        daemon.terminate()
        mirror._thread.join(DEADLINE_S)
        with pytest.raises(kv.Unavailable):
            mirror["m/a"]
        with pytest.raises(kv.Unavailable):
            mirror.wait_for(99)
        mirror.close()


def test_without_a_daemon_there_is_no_mirror_and_no_thread(tmp_path: "os.PathLike[str]") -> None:
    before = threading.active_count()
    with kv.connect(os.path.join(tmp_path, "absent.sock"), timeout=0.1) as db, pytest.raises(kv.Unavailable):
        db.mirror()
    assert threading.active_count() == before


def test_a_forked_child_cannot_read_the_mirror(db: kv.Client) -> None:
    with db.mirror() as mirror:
        pid = os.fork()
        if pid == 0:
            try:
                mirror.get("a")
            except kv.ForkedClient:
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_a_mirror_works_with_asyncio(shared_daemon: "Daemon", db: kv.Client) -> None:
    db.set_many({"m/a": b"1", "other": b"2"})

    async def play() -> None:
        async with kv.aio.connect(shared_daemon.address, timeout=DEADLINE_S) as client:
            async with client.mirror("m/") as mirror:
                assert dict(mirror) == {"m/a": b"1"}
                await client.set("elsewhere", b"")
                await mirror.wait_for(await client.version(), DEADLINE_S)
                version = await client.set("m/b", b"2")
                await mirror.wait_for(version, DEADLINE_S)
                assert mirror["m/b"] == b"2"
                assert mirror.version == version
            assert mirror["m/b"] == b"2"

    asyncio.run(play())
