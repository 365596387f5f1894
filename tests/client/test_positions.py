"""A version knows its store: handed back to another one it is an error or a resynchronisation, never silence."""

import os
import pickle
import shutil
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import kv
from kv.api.watches import NO_SUCH_VERSION
from kvd.protocol import frame, parse_version, position
from tests.harness.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    import pathlib

    from tests.harness.daemon import Daemon
    from tests.harness.scripted_server import Line, ScriptedServer

Connect = Callable[..., kv.Client]
Start = Callable[..., "Daemon"]
Scripted = Callable[..., "ScriptedServer"]
STORE, OTHER = "5f0c9e3a7b21d468", "0000000000000001"


# ---------------------------------------------------------------------- the value


def test_a_position_is_a_number_and_a_text() -> None:
    at = position(1234, STORE)
    assert (at, at + 1, str(at), f"{at}", repr(at)) == (1234, 1235, "1234", "1234", "1234")
    assert (at.store, at.text) == (STORE, f"1234.{STORE}")
    for same in (kv.Position.parse(at.text), parse_version(at.text), pickle.loads(pickle.dumps(at))):  # noqa: S301
        assert isinstance(same, kv.Position)
        assert (same, same.store) == (at, STORE)


@pytest.mark.parametrize(
    "text",
    ["", "x", "-1", "1.", ".", f".{STORE}", f"1.{STORE}0", f"1.{STORE[1:]}", f"1.{STORE.upper()}", f"1. {STORE[1:]}",
     f"1.{STORE}.{STORE}", f"+1.{STORE}", "٣", str(2**63), f"{2**63}.{STORE}", "1" * 5000, f"1.{STORE}\n"],
)  # fmt: skip
def test_a_text_that_is_no_version_is_none(text: str) -> None:
    assert parse_version(text) is None
    with pytest.raises(ValueError, match="a position is"):
        kv.Position.parse(text)


def test_a_bare_number_is_a_version_of_no_store() -> None:
    assert (parse_version("7"), parse_version(str(2**63 - 1))) == (7, 2**63 - 1)
    with pytest.raises(ValueError, match="not '7'"):
        kv.Position.parse("7")


def test_every_version_that_a_client_returns_knows_its_store(either: kv.Client) -> None:
    store = dict(either.status())["store_id"]
    found: list[Any] = [either.set("p", b"1"), either.set_many({"p": b"2"}), either.version()]
    found.append(either.compare_and_set("p", b"3", either.fetch(["p"])["p"].version))
    found += [version.version for version in either.history("p")] + [commit.version for commit in either.log(found[0])]
    found.append(either.version_at(next(iter(either.history("p"))).time or 0))
    with either.snapshot() as snapshot, either.transaction() as txn:
        txn.get("p")
        txn.set("p", b"4")
    found += [snapshot.version, txn.snapshot, txn.version, either.rollback("p", to=found[0])]
    found.append(either.revert(found[-1]))
    with either.pipeline() as pipeline:
        result = pipeline.set("p", b"5")
    with either.watch("p", since=found[0]) as watch:
        change = watch.wait(DEADLINE_S)
        assert change is not None
        found += [result.result(), change.version, watch.version]
    with either.mirror("p") as mirror:
        found.append(mirror.version)
    assert [each.store for each in found] == [store] * len(found)


# ---------------------------------------------------------------------- another store


@pytest.fixture
def moved(open_client: Connect, start_daemon: Start) -> tuple[kv.Client, kv.Position]:
    """A client whose daemon was restarted without its data, and a version of the store before; both have more."""
    db = open_client(start_daemon().address)
    old = db.set("a", b"1")
    db.set("a", b"2")
    db.shutdown()
    start_daemon()
    for number in range(5):
        db.set("a", b"new %d" % number)
    return db, old


USES: dict[str, Callable[[Any, kv.Position], object]] = {
    "get_many": lambda db, at: db.get_many(["a"], at=at),
    "fetch": lambda db, at: db.fetch(["a"], at=at),
    "scan": lambda db, at: list(db.scan(at=at)),
    "at": lambda db, at: db.at(at).get("a"),
    "at, scan": lambda db, at: list(db.at(at).scan()),
    "log": lambda db, at: list(db.log(at)),
    "rollback": lambda db, at: db.rollback("a", to=at),
    "plan_rollback": lambda db, at: db.plan_rollback("a", to=at),
    "revert": lambda db, at: db.revert(at),
    "compare_and_set": lambda db, at: db.compare_and_set("a", b"", at),
    "commit, reads": lambda db, at: db.commit({"b": b""}, reads={"a": at}),
    "commit, ranges": lambda db, at: db.commit({"b": b""}, ranges=[("b", "c")], snapshot=at),
}


@pytest.mark.parametrize("use", USES)
def test_a_version_of_another_store_is_an_error(moved: tuple[kv.Client, kv.Position], use: str) -> None:
    db, old = moved
    for _ in range(2):
        with pytest.raises(kv.SnapshotGone, match="another store"):
            USES[use](db, old)
    assert db.get("a") == b"new 4"
    assert db.get("b") is None


def test_a_version_of_another_store_fails_a_pipeline(moved: tuple[kv.Client, kv.Position]) -> None:
    db, old = moved
    with pytest.raises(kv.SnapshotGone), db.pipeline() as pipeline:  # noqa: PT012  # its end raises
        pipeline.set("b", b"")
        pipeline.get_many(["a"], at=old)
    assert db.get("b") is None


def test_versions_of_several_stores_in_one_request_are_a_mistake(moved: tuple[kv.Client, kv.Position]) -> None:
    db, old = moved
    with pytest.raises(ValueError, match="several stores"):
        db.commit({}, reads={"a": old, "b": db.version()})


def test_a_watch_since_a_version_of_another_store_begins_with_a_resync(moved: tuple[kv.Client, kv.Position]) -> None:
    db, old = moved
    for since in (old, kv.Position.parse(old.text)):
        with db.watch(since=since) as watch:
            change = watch.wait(DEADLINE_S)
            assert change is not None
            assert (change.resync, change.writes) == (True, {"a": b"new 4"})


def test_a_watch_since_a_bare_number_begins_with_a_resync(either: kv.Client) -> None:
    since = either.set("w", b"1")
    either.set("w", b"2")
    with either.watch("w", since=int(since)) as watch:
        change = watch.wait(DEADLINE_S)
        assert change is not None
        assert (change.resync, change.writes) == (True, {"w": b"2"})


def test_a_mirror_waits_for_a_version_of_the_new_store(open_client: Connect, start_daemon: Start) -> None:
    """The version is lower than the mirror's, which is of the store before."""
    db = open_client(start_daemon().address)
    for number in range(20):
        old = db.set("m/a", b"%d" % number)
    with db.mirror("m/") as mirror:
        for text in (b"new", b"newer"):
            db.shutdown()
            start_daemon()
            new = db.set("m/a", text)
            mirror.wait_for(new if text == b"new" else int(new), DEADLINE_S)
            assert mirror.get("m/a") == text
            assert (mirror.version, mirror.version.store) == (new, new.store)  # type: ignore[attr-defined]
        with pytest.raises(kv.SnapshotGone):
            mirror.wait_for(old, DEADLINE_S)


# ---------------------------------------------------------------------- versions that a power cut took


def test_a_version_that_a_power_cut_took_is_an_error_or_a_resync(
    open_client: Connect, start_daemon: Start, tmp_path: "pathlib.Path"
) -> None:
    """The power cut: the files are as they were before the last commits, which clients have seen."""
    data, saved = str(tmp_path / "data"), str(tmp_path / "saved")
    flags = ("--data-dir", data, "--data-sync", "never")
    daemon = start_daemon(*flags)
    db = open_client(daemon.address)
    kept = db.set("a", b"kept")
    shutil.copytree(data, saved)
    lost = [db.set("a", b"lost") for _ in range(3)]
    daemon.kill()
    shutil.rmtree(data)
    shutil.copytree(saved, data)
    start_daemon(*flags)
    for version in lost:
        for use in (USES[name] for name in ("get_many", "fetch", "scan", "log", "commit, ranges")):
            with pytest.raises(kv.SnapshotGone, match="lost in a crash"):
                use(db, version)
    with db.watch(since=lost[0]) as watch:
        change = watch.wait(DEADLINE_S)
        assert change is not None
        assert (change.resync, change.writes) == (True, {"a": b"kept"})
    assert db.version() > lost[-1]
    with db.watch(since=kept) as watch:
        version = db.set("a", b"new")
        assert (watch.wait(DEADLINE_S) or pytest.fail("nothing came")).version == version
    assert db.get_many(["a"], at=kept) == {"a": b"kept"}


# ---------------------------------------------------------------------- a watch that is cut


def last_changes(line: "Line", *versions: int) -> None:
    """Send changes and a goodbye in one piece, so that the client receives them together."""
    changes = [["change", version, 9, [0, 1, "x"], {"w": b"%d" % version}] for version in versions]
    goodbye = {"error": "shutting_down", "message": "the server is stopping"}
    line.socket.sendall(b"".join(frame(msgspec.msgpack.encode(payload)) for payload in (changes, goodbye)))


def test_what_came_before_a_cut_is_told_once(open_client: Connect, scripted: Scripted) -> None:
    """The daemon stops in order while changes are received and not handed out yet."""
    has_begun = threading.Event()

    def first(line: "Line") -> None:
        assert line.request(STORE) == [["watch", "w", 5]]
        line.reply(True)
        has_begun.wait(DEADLINE_S)
        last_changes(line, 6, 7, 8)

    def second(line: "Line") -> None:
        assert line.request(STORE) == [["watch", "w", 8]]
        line.reply(True)
        line.reply(["live", 8], ["change", 9, 9, [0, 1, "x"], {"w": b"9"}])
        line.request()

    db = open_client(scripted(first, second).address)
    with db.watch("w") as watch:
        has_begun.set()
        assert [(watch.wait(DEADLINE_S) or pytest.fail("nothing")).version for _ in range(4)] == [6, 7, 8, 9]


def test_what_came_with_the_goodbye_is_handed_out_while_there_is_no_daemon(
    open_client: Connect, scripted: Scripted
) -> None:
    has_begun = threading.Event()

    def script(line: "Line") -> None:
        line.request(STORE)
        line.reply(True)
        has_begun.wait(DEADLINE_S)
        last_changes(line, 6, 7)

    server = scripted(script)
    db = open_client(server.address, timeout=0.1)
    with db.watch("w") as watch:
        os.unlink(server.address)
        has_begun.set()
        assert [(watch.wait(DEADLINE_S) or pytest.fail("nothing")).version for _ in range(2)] == [6, 7]
        with pytest.raises(kv.Unavailable):
            watch.wait(DEADLINE_S)


def test_a_resync_that_is_cut_is_asked_for_again(open_client: Connect, scripted: Scripted) -> None:
    """It is of another store than the changes before: the watch is not of that store before it is complete."""
    item = ["item", "w", b"new", 2]

    def first(line: "Line") -> None:
        assert line.request(STORE) == [["watch", "w", 5]]
        line.reply(True)
        line.reply(["live", 5], ["change", 6, 9, [0, 1, "x"], {"w": b"old"}])
        line.goodbye()

    def cut(line: "Line") -> None:
        assert line.request(OTHER) == [["watch", "w", NO_SUCH_VERSION]]
        line.reply(True)
        line.reply(["reset", 9], item)
        line.goodbye()

    def whole(line: "Line") -> None:
        assert line.request(OTHER) == [["watch", "w", NO_SUCH_VERSION]]
        line.reply(True)
        line.reply(["reset", 9], item, ["live", 9])
        line.goodbye()

    def again(line: "Line") -> None:
        assert line.request(OTHER) == [["watch", "w", 9]]
        line.reply(True)
        line.reply(["change", 10, 9, [0, 1, "x"], {"w": None}])
        line.request()

    db = open_client(scripted(first, cut, cut, whole, again).address)
    with db.watch("w") as watch:
        changes = [watch.wait(DEADLINE_S) or pytest.fail("nothing") for _ in range(3)]
    assert [(change.version, change.resync) for change in changes] == [(6, False), (9, True), (10, False)]
    assert [change.version.store for change in changes] == [STORE, OTHER, OTHER]  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- the log


def test_the_log_has_as_many_commits_as_asked_for(either: kv.Client) -> None:
    """More than fit into one page, while others commit."""
    for _ in range(10):
        with either.pipeline() as pipeline:
            for number in range(1_000):
                pipeline.set(f"a-key-with-a-long-name/{number}", b"")
    newest = either.version()
    commits = iter(either.log(limit=9_990))
    found = [next(commits)]
    either.set("later", b"")
    found += commits
    assert [commit.version for commit in found] == list(range(newest - 9_989, newest + 1))
    assert list(either.log(limit=0)) == []


# ---------------------------------------------------------------------- where the daemon is


def test_a_client_stays_with_the_daemon_that_it_found_first(
    open_client: Connect, start_daemon: Start, shared_daemon: "Daemon", monkeypatch: pytest.MonkeyPatch
) -> None:
    """$KVD_SOCKET and the default addresses are a rule for the first connection."""
    daemon = start_daemon()
    monkeypatch.setenv("KVD_SOCKET", daemon.address)
    db = open_client(None, timeout=0.5)
    db.set("mine", b"1")
    with open_client(shared_daemon.address) as other:
        other.set("mine", b"another's")
    watch, mirror = db.watch("mine"), db.mirror("mine")
    with watch as changes, mirror as copy:
        monkeypatch.setenv("KVD_SOCKET", shared_daemon.address)
        daemon.terminate()
        for use in (lambda: db.get("mine"), lambda: db.set("mine", b"2"), lambda: db.watch().wait(DEADLINE_S),
                    lambda: changes.wait(DEADLINE_S)):  # fmt: skip
            with pytest.raises(kv.Unavailable):
                use()
        eventually(lambda: isinstance(copy._failure, kv.Unavailable))
        start_daemon()
        assert db.get("mine") is None
        db.set("mine", b"3")
    assert kv.connect().get("mine") == b"another's"


def test_a_near_cache_stays_with_the_daemon_that_it_found_first(
    connect: Connect, start_daemon: Start, shared_daemon: "Daemon", monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = start_daemon()
    monkeypatch.setenv("KVD_SOCKET", daemon.address)
    db = connect(timeout=DEADLINE_S, near_cache=True)
    db.set("mine", b"1")
    assert db.get("mine") == b"1"
    monkeypatch.setenv("KVD_SOCKET", shared_daemon.address)
    daemon.terminate()
    with pytest.raises(kv.Unavailable):
        db.get("mine")
    start_daemon()
    assert db.get("mine") is None


# ---------------------------------------------------------------------- a goodbye during the greeting


def test_a_write_is_sent_again_once_the_daemon_that_is_stopping_has_a_successor(
    open_client: Connect, scripted: Scripted
) -> None:
    requests: list[Any] = []

    def cut(line: "Line") -> None:
        requests.append(line.request(STORE))

    def successor(line: "Line") -> None:
        requests.append(line.request(STORE))
        line.reply(7)
        line.request()

    stopping = [lambda line: line.goodbye()] * 3
    db = open_client(scripted(cut, *stopping, successor).address)
    assert db.set("a", b"") == 7
    assert requests[0][0][:2] == requests[1][0][:2] == ["set", {"a": b""}]
    assert requests[0][0][2]["id"] == requests[1][0][2]["id"]


def test_a_watch_begins_once_the_daemon_that_is_stopping_has_a_successor(
    open_client: Connect, scripted: Scripted
) -> None:
    def successor(line: "Line") -> None:
        line.request(STORE)
        line.reply(True)
        line.reply(["live", 5], ["change", 6, 9, [0, 1, "x"], {"w": b""}])
        line.request()

    db = open_client(scripted(*[lambda line: line.goodbye()] * 3, successor).address)
    with db.watch("w") as watch:
        assert (watch.wait(DEADLINE_S) or pytest.fail("nothing")).version == 6


def test_a_near_cache_attaches_once_the_daemon_that_is_stopping_has_a_successor(
    connect: Connect, scripted: Scripted
) -> None:
    def successor(line: "Line") -> None:
        line._exactly(int.from_bytes(line._exactly(4) or b"", "big"))
        line.reply([1, "0", STORE, 5, {}], {"error": "busy", "message": "no table to spare"})
        assert (line.request(STORE) or [])[0][:2] == ["set", {"a": b""}]
        line.reply(6)
        line.request()

    db = connect(scripted(*[lambda line: line.goodbye()] * 3, successor).address, timeout=DEADLINE_S, near_cache=True)
    assert db.set("a", b"") == 6


def test_a_daemon_that_only_says_goodbye_is_unavailable_at_the_deadline(
    open_client: Connect, scripted: Scripted
) -> None:
    db = open_client(scripted(lambda line: line.goodbye()).address, timeout=0.3)
    with pytest.raises(kv.Unavailable):
        db.watch("w").wait(DEADLINE_S)
