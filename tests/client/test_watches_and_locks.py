"""Watches and locks, with both clients, also when processes and connections end."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import kv
from kv.api.procedures import NextChange, run_effects
from kvd.protocol import position
from tests.harness.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon
    from tests.harness.scripted_server import Line, ScriptedServer

Connect = Callable[..., kv.Client]
SHORT_S = 0.05


# ---------------------------------------------------------------------- watches


def test_a_watch_returns_each_commit_that_concerns_its_prefix(either: kv.Client) -> None:
    with either.watch("w:") as watch:
        first_version = watch.version
        versions = [either.set("w:1", b"1"), either.set_many({"w:2": b"2", "x": b"2"})]
        either.set("x", b"3")
        either.delete("w:1")
        seen = [watch.wait(DEADLINE_S) for _ in range(3)]
        assert [change and change.writes for change in seen] == [{"w:1": b"1"}, {"w:2": b"2"}, {"w:1": None}]
        assert [change and change.version for change in seen][:2] == versions
        assert all(change is not None and change.author is not None and not change.resync for change in seen)
        assert watch.version == either.version() > (first_version or 0)
        assert watch.wait(SHORT_S) is None


def test_a_watch_resumes_from_a_version(either: kv.Client) -> None:
    since = either.set("w", b"1")
    either.set("w", b"2")
    either.set("w", b"3")
    with either.watch("w", since=since) as watch:
        changes = iter(watch)
        assert [next(changes).writes for _ in range(2)] == [{"w": b"2"}, {"w": b"3"}]
    assert watch.wait(SHORT_S) is None, "closed"


def test_a_watch_without_a_block_begins_with_the_first_wait(either: kv.Client) -> None:
    since = either.version()
    either.set("w", b"1")
    watch = either.watch("w", since)
    assert (watch.wait(DEADLINE_S) or pytest.fail("nothing came")).writes == {"w": b"1"}
    watch.close()


def test_a_watch_of_a_restarted_daemon_is_resynchronised(
    open_client: Connect, start_daemon: "Callable[..., Daemon]"
) -> None:
    daemon = start_daemon()
    db = open_client(daemon.address)
    db.set_many({"w:1": b"1", "w:2": b"2"})
    with db.watch("w:", since=0) as watch:
        assert watch.wait(DEADLINE_S) is not None
        daemon.terminate()
        start_daemon()
        change = watch.wait(DEADLINE_S)
        assert change is not None
        assert (change.resync, change.writes) == (True, {})
        db.set("w:3", b"3")
        change = watch.wait(DEADLINE_S)
        assert change is not None
        assert (change.resync, change.writes) == (False, {"w:3": b"3"})


def test_a_watch_fails_if_its_daemon_does_not_come_back(
    open_client: Connect, start_daemon: "Callable[..., Daemon]"
) -> None:
    daemon = start_daemon()
    db = open_client(daemon.address, timeout=0.2)
    with db.watch("w:") as watch:
        daemon.terminate()
        with pytest.raises(kv.Unavailable):
            watch.wait(DEADLINE_S)


def test_a_wait_times_out_while_the_daemon_is_away_and_the_watch_survives(
    open_client: Connect, start_daemon: "Callable[..., Daemon]"
) -> None:
    daemon = start_daemon()
    db = open_client(daemon.address)
    db.set("w:1", b"1")
    with db.watch("w:", since=0) as watch:
        assert watch.wait(DEADLINE_S) is not None
        daemon.terminate()
        for _ in range(3):
            assert watch.wait(SHORT_S) is None
        start_daemon()
        change = watch.wait(DEADLINE_S)
        assert change is not None
        assert (change.resync, change.writes) == (True, {})


def test_the_time_for_the_daemon_to_come_back_is_counted_over_all_waits(
    open_client: Connect, start_daemon: "Callable[..., Daemon]"
) -> None:
    daemon = start_daemon()
    db = open_client(daemon.address, timeout=0.3)
    with db.watch("w:") as watch:
        daemon.terminate()
        assert watch.wait(SHORT_S) is None
        with pytest.raises(kv.Unavailable):
            eventually(lambda: watch.wait(SHORT_S) is not None)


def test_a_resynchronisation_is_one_change_with_all_keys(
    open_client: Connect, scripted: "Callable[..., ScriptedServer]"
) -> None:
    def script(line: "Line") -> None:
        assert line.request() == [["watch", "w", 3]]
        line.reply(True)
        line.reply(["live", 3], ["reset", 9], ["item", "w1", b"1", 4])
        line.reply(["item", "w2", b"2", 9], ["live", 9], ["change", 10, 99, [0, 1, "x"], {"w1": None}])
        line.request()

    db = open_client(scripted(script).address)
    with db.watch("w", since=position(3, "store")) as watch:
        assert watch.wait(DEADLINE_S) == kv.Change(9, None, None, {"w1": b"1", "w2": b"2"}, resync=True)
        assert watch.version == 9
        assert watch.wait(DEADLINE_S) == kv.Change(10, 99, kv.Author(0, 1, "x"), {"w1": None})


@pytest.mark.parametrize("event", [["change", 1], ["change", 1, 2, 3, 4], [], 7, ["reset"]], ids=str)
def test_a_malformed_event_is_a_protocol_error(
    open_client: Connect, scripted: "Callable[..., ScriptedServer]", event: object
) -> None:
    def script(line: "Line") -> None:
        line.request()
        line.reply(True)
        line.reply(event)
        line.request()

    db = open_client(scripted(script).address)
    with pytest.raises(kv.ProtocolError), db.watch("w", since=3) as watch:
        watch.wait(DEADLINE_S)


# ---------------------------------------------------------------------- locks


def test_a_lock_has_one_holder_at_a_time_in_the_order_of_asking(open_client: Connect, shared_daemon: "Daemon") -> None:
    first = open_client(shared_daemon.address)
    waiting: list[threading.Thread] = []
    tokens: list[tuple[int, int]] = []
    inside: list[int] = []

    def contend(number: int) -> None:
        with open_client(shared_daemon.address).lock("order") as token:
            inside.append(number)
            assert inside == [number]
            tokens.append((number, token))
            inside.remove(number)

    with first.lock("order") as token:
        for number in range(5):
            waiting.append(threading.Thread(target=contend, args=(number,)))
            waiting[-1].start()
            eventually(lambda: len(list(first.scan("lock/order/"))) == len(waiting) + 1)
        assert tokens == []
    for thread in waiting:
        thread.join(DEADLINE_S)
    assert [number for number, _ in tokens] == [0, 1, 2, 3, 4]
    assert [token, *(each for _, each in tokens)] == sorted({token, *(each for _, each in tokens)})
    assert list(first.scan("lock/order/")) == []


def test_the_contenders_of_a_connection_use_their_keys_again(either: kv.Client) -> None:
    with either.watch("lock/again/") as watch:
        for _ in range(10):
            with either.lock("again") as token:
                assert token > 0
        written = [next(iter((watch.wait(DEADLINE_S) or pytest.fail("nothing came")).writes)) for _ in range(20)]
    assert len(set(written)) == 1
    with either.lock("again"), either.lock("other"):
        assert len(list(either.scan("lock/other/"))) == 1
    lock = either.lock("again")
    with pytest.raises(kv.LockLost), lock:  # noqa: PT012  # its end raises
        key = lock._key
        either.close()
    with lock:
        assert lock._key != key, "another connection has keys of its own: the old one may still be ending"


FORKING = """
import os, sys, kv
db = kv.connect(sys.argv[1])
lock = db.lock("parent")
with lock:
    pass
if os.fork() == 0:
    own = db.lock("parent")
    with own:
        print("child", own._key, flush=True)
    os._exit(0)
os.wait()
with lock:
    print("parent", lock._key, flush=True)
"""


def test_a_forked_child_does_not_use_the_keys_of_its_parents_contenders(shared_daemon: "Daemon") -> None:
    """Both would write one key, and hold the lock at the same time."""
    command = [sys.executable, "-c", FORKING, shared_daemon.address]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)  # noqa: S603
    keys = dict(line.split() for line in printed.stdout.splitlines())
    assert keys.keys() == {"child", "parent"}
    assert keys["child"] != keys["parent"]


def test_a_key_that_came_back_after_a_waiting_contender_is_not_ahead_of_it(
    start_daemon: "Callable[..., Daemon]",
) -> None:
    """Also if the watch did not see it go, because the history is too short: the version says its place."""
    daemon = start_daemon(KVD_HISTORY_MAX_BYTES="0")
    holder, other = kv.connect(daemon.address), kv.connect(daemon.address)
    holder.set("lock/back/holder", b"", ephemeral=True)
    lock = other.lock("back", timeout=DEADLINE_S)
    resyncs: list[bool] = []

    def do(step: object) -> object:
        result = other._do(step)
        if isinstance(step, NextChange):
            resyncs.append(result.resync)
        elif not resyncs:  # the contender has its place, and its watch has not begun yet
            holder.delete("lock/back/holder")
            holder.set("lock/back/holder", b"", ephemeral=True)
            for _ in range(50):
                holder.set("other", b"")  # each commit drops some of the history before it
        return result

    token = run_effects(lock._contend(time.clock_gettime(time.CLOCK_BOOTTIME) + DEADLINE_S), do)
    assert resyncs == [True]
    assert token is not None


def test_waiting_for_a_lock_ends_at_its_timeout_and_leaves_the_queue(
    either: kv.Client, open_client: Connect, shared_daemon: "Daemon"
) -> None:
    other = open_client(shared_daemon.address)
    with either.lock("busy"):
        with pytest.raises(kv.TimedOut, match="'busy'"), other.lock("busy", timeout=SHORT_S):
            pytest.fail("it was not free")
        assert len(list(either.scan("lock/busy/"))) == 1
    with other.lock("busy", timeout=SHORT_S):
        pass


def test_a_lock_knows_whether_it_is_held(either: kv.Client) -> None:
    lock = either.lock("known")
    assert not lock.held
    with lock as token:
        assert lock.held
        assert lock.check() == lock.token == token
    assert not lock.held
    with lock as again:
        assert again > token
    with pytest.raises(RuntimeError, match="not held"):
        lock.check()


def test_a_lock_whose_connection_ends_is_lost(either: kv.Client) -> None:
    lock = either.lock("fragile")
    with pytest.raises(kv.LockLost), lock:  # noqa: PT012  # its end raises
        either.close()
        assert not lock.held
        with pytest.raises(kv.LockLost):
            lock.check()


def test_a_lock_whose_time_to_live_is_over_is_lost(either: kv.Client) -> None:
    lock = either.lock("brief", ttl=SHORT_S)
    with pytest.raises(kv.LockLost), lock:  # noqa: PT012  # its end raises
        eventually(lambda: not lock.held)
        eventually(lambda: either.get(lock._key) is None)
    with either.lock("brief", ttl=60) as token:
        assert token > 0


def test_a_time_to_live_begins_when_the_lock_is_held(either: kv.Client) -> None:
    lock = either.lock("patient", ttl=60)
    with lock:
        remaining = either.ttl(lock._key)[0]
        assert remaining is not None
        assert 50 < remaining <= 60


def test_an_exception_in_the_block_releases_the_lock(either: kv.Client) -> None:
    with pytest.raises(ZeroDivisionError), either.lock("broken"):
        raise ZeroDivisionError
    with either.lock("broken", timeout=SHORT_S):
        pass


@pytest.mark.parametrize("name", ["", "a/b"])
def test_a_lock_name_without_characters_or_with_a_slash_is_a_value_error(either: kv.Client, name: str) -> None:
    with pytest.raises(ValueError, match="a lock's name"):
        either.lock(name)


HOLDER = """
import sys, time, os, kv
db = kv.connect(sys.argv[1])
with db.lock("dead"):
    if sys.argv[2] == "fork" and os.fork() == 0:
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["alone", "fork"])
def test_the_next_contender_has_a_dead_holders_lock_at_once(
    either: kv.Client, shared_daemon: "Daemon", kind: str
) -> None:
    """Even if a forked child of the holder lives on: the child holds neither the lock nor the connection."""
    holder = subprocess.Popen(  # noqa: S603 (our own interpreter)
        [sys.executable, "-c", HOLDER, shared_daemon.address, kind], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(kv.TimedOut), either.lock("dead", timeout=SHORT_S):
            pytest.fail("it was held")
        holder.kill()
        with either.lock("dead", timeout=DEADLINE_S):
            pass
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate()


# ---------------------------------------------------------------------- forked children


def in_child(work: Callable[[], Any]) -> int:
    """Call ``work`` in a forked child; return the child's exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def test_scopes_that_began_before_a_fork_are_refused_in_the_child(shared_daemon: "Daemon", connect: Connect) -> None:
    db = connect(shared_daemon.address, timeout=DEADLINE_S)
    db.set("fork", b"1")
    txn, snapshot, pipeline, lock = db.transaction(), db.snapshot(), db.pipeline(), db.lock("forked")
    watch = db.watch("fork")
    with snapshot, lock:
        txn.get("fork")

        def child() -> None:
            uses: list[Callable[[], object]] = [
                lambda: txn.get("fork"), lambda: txn.set("fork", b""), lambda: txn["fork"], lambda: list(txn.scan()),
                txn.__enter__, lambda: txn.__exit__(None, None, None), lambda: snapshot.get("fork"),
                lambda: list(snapshot.scan()), lambda: pipeline.get("fork"), lambda: watch.wait(0), lock.check,
                lambda: lock.__exit__(None, None, None),
            ]  # fmt: skip
            for use in uses:
                with pytest.raises(kv.ForkedClient):
                    use()
            assert not lock.held
            watch.close()
            assert db.get("fork") == b"1", "the client itself can be used"
            with pytest.raises(kv.TimedOut), db.lock("forked", timeout=SHORT_S):
                pytest.fail("the parent holds it")

        assert in_child(child) == 0
        assert lock.check() == lock.token
        assert snapshot.get("fork") == b"1"
        txn.set("fork", b"2")
        txn.__exit__(None, None, None)
        change = watch.wait(DEADLINE_S)
        assert change is not None
        assert change.writes == {"fork": b"2"}
    watch.close()
