"""The near cache as a program sees it, with either client."""

import asyncio
import inspect
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

import kv
from kv.api.procedures import run_effects
from kv.near_cache.entries import ENTRY_BYTES
from kv.wire.codecs import light
from kv.wire.exchange import Exchange
from kvd.protocol.near_cache import LEASE
from tests.harness.processes import ROOT
from tests.harness.waiting import DEADLINE_S, eventually

if TYPE_CHECKING:
    from tests.near.conftest import ReplaceableDaemon

Start = Callable[..., "ReplaceableDaemon"]


class Driven:
    """An asyncio client that is used as if it blocked."""

    def __init__(self, address: str, near_cache: bool | kv.NearCacheLimits) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = kv.aio.connect(address, timeout=DEADLINE_S, near_cache=near_cache or True)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        attribute = getattr(self.client, name)
        if not callable(attribute):
            return attribute

        def call(*args: object, **named: object) -> object:
            async def wait() -> object:
                result = attribute(*args, **named)
                return await result if inspect.isawaitable(result) else result

            return self.loop.run_until_complete(wait())

        return call

    def end(self) -> None:
        """Close the client and its loop."""
        self.loop.run_until_complete(self.client.close())
        self.loop.close()


Connect = Callable[..., Any]


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest, shared: "ReplaceableDaemon") -> Iterator[Connect]:
    """Makes clients with a near cache, of either kind, of an empty daemon."""
    ends: list[Callable[[], None]] = []
    with shared.client() as client:
        client.delete(*[item.key for item in client.scan(keys_only=True)])

    def make(limits: kv.NearCacheLimits | None = None, address: str = shared.address) -> Any:  # noqa: ANN401
        if request.param == "asyncio":
            driven = Driven(address, limits or True)
            ends.append(driven.end)
            return driven
        blocking = kv.connect(address, timeout=DEADLINE_S, near_cache=limits or True)
        ends.append(blocking.close)
        return blocking

    yield make
    for end in ends:
        end()


def counts(db: Any) -> tuple[int, int, int]:  # noqa: ANN401 - either client
    stats = db.near_cache.stats()
    return stats.hits, stats.misses, stats.refetches


# ---------------------------------------------------------------------- reading


def test_a_second_read_is_a_hit_also_of_an_absent_key(connect: Connect, other: kv.Client) -> None:
    other.set("a", b"1")
    db = connect()
    assert [db.get("a"), db.get("a"), db.get("no"), db.get("no"), db.get("a")] == [b"1", b"1", None, None, b"1"]
    assert counts(db) == (3, 2, 0)
    assert db.near_cache.stats().attached


def test_a_hit_makes_no_request(connect: Connect, other: kv.Client) -> None:
    db = connect()
    db.get("a")
    before = other.metrics()["get_operations"]
    assert [db.get("a") for _ in range(100)] == [None] * 100
    assert other.metrics()["get_operations"] == before


def test_a_change_by_another_client_is_seen_at_once(connect: Connect, other: kv.Client) -> None:
    db = connect()
    for number in range(200):
        other.set("a", b"%d" % number)
        assert db.get("a") == b"%d" % number
        assert db.get("a") == b"%d" % number
    other.delete("a")
    assert db.get("a") is None
    assert counts(db) == (200, 1, 200)


@pytest.mark.parametrize("durable", [False, True], ids=["in memory", "durable"])
def test_a_client_reads_its_own_writes(connect: Connect, start: Start, durable: bool) -> None:
    db = connect(address=start(durable=durable).address)
    for number in range(100):
        db.set("a", b"%d" % number)
        assert db.get("a") == b"%d" % number
        assert db.get_many(["a", "b"]) == {"a": b"%d" % number, "b": None}
    assert db.increment("a") == 100
    assert db.get("a") == b"100"
    db.delete("a")
    assert db.get("a") is None


def test_other_ways_to_read_ask_the_daemon(connect: Connect, other: kv.Client) -> None:
    db = connect()
    first = other.set("a", b"1")
    assert db.get("a") == b"1"
    other.set("a", b"2")
    before = counts(db)
    assert db.get_many(["a"], at=first) == {"a": b"1"}
    assert db.fetch(["a"])["a"].value == b"2"
    assert counts(db) == before


def test_transactions_and_pipelines_ask_the_daemon(near: kv.NearClient, other: kv.Client) -> None:
    near.set("a", b"1")
    assert near.get("a") == near.get("a") == b"1"
    before = counts(near)
    with near.transaction() as txn:
        other.set("b", b"x")
        txn["a"] = txn["a"] + b"2"
    with near.pipeline() as pipeline:
        read = pipeline.get("a")
    assert read.result() == b"12"
    assert counts(near) == before


def test_invalid_keys_are_refused_as_without_a_near_cache(connect: Connect) -> None:
    db = connect()
    with pytest.raises(kv.Refused, match="at least one byte"):
        db.get("")
    with pytest.raises(kv.Refused):
        db.get_many(["x" * 100_000])
    assert db.get("a") is None


# ---------------------------------------------------------------------- several keys


def test_several_keys_are_hits_when_all_are_current(connect: Connect, other: kv.Client) -> None:
    other.set_many({"a": b"1", "b": b"2"})
    db = connect()
    for _ in range(3):
        assert db.get_many(["a", "no", "b", "a"]) == {"a": b"1", "no": None, "b": b"2"}
    assert counts(db) == (6, 3, 0)
    other.set("b", b"3")
    assert db.get_many(["a", "b", "c"]) == {"a": b"1", "b": b"3", "c": None}
    assert counts(db) == (7, 4, 1)
    assert db.get_many([]) == {}


def test_a_key_that_changes_while_the_rest_is_fetched_is_fetched_too(near: kv.NearClient, other: kv.Client) -> None:
    """A key that was current changes before the daemon replies about the other key."""
    other.set_many({"a": b"1", "b": b"1"})
    assert near.get("a") == b"1"
    fetches = []

    def change_and_do(step: Exchange) -> Exchange:
        fetches.append(step.operations[0].request[1])
        if len(fetches) == 1:
            other.set_many({"a": b"2", "b": b"2"})
        near._do(step)
        return step

    assert run_effects(near.near_cache.get_many(["a", "b"]), change_and_do) == {"a": b"2", "b": b"2"}
    assert fetches == [["b"], ["a", "b"]]


# ---------------------------------------------------------------------- deadlines


def now_us() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000


def test_a_key_is_read_until_its_deadline_and_not_a_microsecond_longer(connect: Connect) -> None:
    db = connect()
    ttl_us = 50_000
    before = now_us()
    db.set("a", b"1", ttl=ttl_us / 1_000_000)
    after = now_us()
    reads = []
    while True:
        begin = now_us()
        value = db.get("a")
        reads.append((begin, now_us(), value))
        if begin > after + ttl_us:
            break
    early = [value for _, end, value in reads if end < before + ttl_us]
    late = [value for begin, _, value in reads if begin >= after + ttl_us]
    assert set(early) == {b"1"}
    assert set(late) == {None}
    assert db.near_cache.stats().hits > 10


def test_an_earlier_deadline_is_noticed(connect: Connect, other: kv.Client) -> None:
    db = connect()
    other.set("a", b"1", ttl=3600)
    assert db.get("a") == db.get("a") == b"1"
    other.touch("a", ttl=0.001)
    eventually(lambda: db.get("a") is None)
    other.set("a", b"2", ttl=0.001)
    db.get("a")
    eventually(lambda: db.get("a") is None)
    assert db.get_many(["a"]) == {"a": None}


def test_get_and_touch_is_noticed_by_every_near_cache(connect: Connect, other: kv.Client) -> None:
    db, reader = connect(), connect()
    other.set("a", b"1", ttl=3600)
    assert db.get("a") == reader.get("a") == b"1"
    assert db.get_and_touch("a", ttl=0.001) == {"a": b"1"}
    eventually(lambda: reader.get("a") is None)
    other.set("a", b"2", ttl=0.2)
    assert reader.get("a") == b"2"
    assert db.get_and_touch("a", ttl=3600) == {"a": b"2"}
    until = now_us() + 250_000
    while now_us() < until:
        assert reader.get("a") == b"2", "its first deadline does not hold any more"


def test_an_ephemeral_key_is_gone_with_its_connection(connect: Connect, shared: "ReplaceableDaemon") -> None:
    db = connect()
    with shared.client() as owner:
        owner.set("a", b"1", ephemeral=True)
        assert db.get("a") == db.get("a") == b"1"
    eventually(lambda: db.get("a") is None)


# ---------------------------------------------------------------------- bounds


def test_the_number_of_entries_is_bounded(connect: Connect) -> None:
    db = connect(kv.NearCacheLimits(entries=100))
    for number in range(1_000):
        db.get(f"{number}")
        assert db.near_cache.stats().entries <= 100
    assert db.near_cache.stats().entries >= 50


def test_the_bytes_of_entries_are_bounded(connect: Connect, other: kv.Client) -> None:
    other.set_many({f"{number}": b"x" * 1_000 for number in range(200)})
    max_bytes = 100 * (1_000 + ENTRY_BYTES)
    db = connect(kv.NearCacheLimits(bytes=max_bytes))
    for number in range(200):
        assert db.get(f"{number}") == b"x" * 1_000
        assert db.near_cache.stats().bytes <= max_bytes
    assert db.near_cache.stats().bytes >= max_bytes * 0.4
    other.set("large", b"x" * max_bytes)
    assert len(db.get("large")) == len(db.get("large")) == max_bytes
    assert db.near_cache.stats().bytes <= max_bytes


def test_entries_in_use_are_kept(connect: Connect) -> None:
    db = connect(kv.NearCacheLimits(entries=100))
    db.get("used")
    for number in range(1_000):
        db.get(f"{number}")
        before = counts(db)
        db.get("used")
        assert counts(db) == (before[0] + 1, *before[1:])


@pytest.mark.parametrize("limits", [{"entries": 1}, {"entries": -5}, {"bytes": 0}])
def test_limits_for_less_than_two_keys_are_a_value_error(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        kv.NearCacheLimits(**limits)


# ---------------------------------------------------------------------- connections, threads, forks


def test_closing_forgets_and_the_next_call_attaches_again(connect: Connect, other: kv.Client) -> None:
    other.set("a", b"1")
    db = connect()
    assert db.get("a") == b"1"
    db.close()
    assert db.near_cache.stats().entries == 0
    assert not db.near_cache.stats().attached
    other.set("a", b"2")
    assert db.get("a") == b"2"
    assert db.near_cache.stats().attached


def test_after_a_restart_the_new_daemon_is_asked(connect: Connect, start: Start) -> None:
    daemon = start()
    db = connect(address=daemon.address)
    db.set("a", b"1")
    assert db.get("a") == b"1"
    daemon.kill()
    daemon.serve()
    assert db.get("a") is None
    assert db.get("a") is None
    assert db.near_cache.stats().attached


def test_without_a_lease_no_read_is_answered_from_the_near_cache(connect: Connect, start: Start) -> None:
    """No read of any kind, of keys in either half, is answered: the daemon is dead, and each read says so."""
    daemon = start()
    read: list[Callable[[Any], object]] = [
        lambda db: db.get("c"),
        lambda db: db.get("a"),
        lambda db: db.get_many(["c"]),
        lambda db: db.get_many(["a", "c"]),
        lambda db: db.get_many(["a", "new"]),
    ]
    clients = [connect(kv.NearCacheLimits(entries=4), daemon.address) for _ in read]
    for db in clients:
        for key in ("a", "b", "c"):  # which puts a and b into the older half
            db.get(key)
        assert {*db.near_cache.table.older} == {"a", "b"}
    daemon.kill()
    # Closed connections detach the table. Put it back, so that only the lease can prevent an answer.
    tables = [db.near_cache.table for db in clients]
    eventually(lambda: all(table.words[LEASE] < time.monotonic_ns() for table in tables))
    for db, table, ask in zip(clients, tables, read, strict=True):
        db.near_cache.table = table
        with pytest.raises((kv.Unavailable, kv.ConnectionLost)):
            ask(db)


def test_a_forked_child_has_a_near_cache_of_its_own(near: kv.NearClient, other: kv.Client) -> None:
    near.set("a", b"1")
    assert near.get("a") == b"1"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            before = near.near_cache.stats()
            other.set("a", b"2")
            values = [near.get("a"), near.get("a")]
            after = near.near_cache.stats()
            report = (before.entries, before.attached, values, after.hits - before.hits, after.attached)
            os.write(writing, repr(report).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as report:
        assert report.read() == repr((0, False, [b"2", b"2"], 1, True)).encode()
    os.waitpid(child, 0)
    assert near.get("a") == near.get("a") == b"2"
    assert near.near_cache.stats().attached


def test_a_near_cache_works_with_either_codec(shared: "ReplaceableDaemon", other: kv.Client) -> None:
    other.set("a", b"1", ttl=3600)
    with kv.connect(shared.address, near_cache=True, codec=light()) as db:
        assert [db.get("a"), db.get("a"), db.get("no"), db.get("no")] == [b"1", b"1", None, None]
        assert counts(db) == (2, 2, 0)


def test_threads_may_share_a_near_cache(near: kv.NearClient, other: kv.Client) -> None:
    other.set_many({f"{number}": b"%d" % number for number in range(50)})
    wrong: list[object] = []

    def read() -> None:
        for number in range(5_000):
            key = f"{number % 50}"
            if near.get(key) != key.encode():
                wrong.append(key)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert near.near_cache.stats().hits > 19_000


# ---------------------------------------------------------------------- without a near cache


@pytest.mark.parametrize("make", [kv.connect, kv.connect_async])
def test_over_tcp_a_near_cache_is_a_value_error(make: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="Unix socket"):
        make("tcp://127.0.0.1:7070", near_cache=True)


def test_over_a_configured_tcp_address_a_near_cache_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("KVD_SOCKET", f"tcp://127.0.0.1:{listening.getsockname()[1]}")
        with kv.connect(near_cache=True) as db, pytest.raises(kv.KvdError, match="Unix socket") as refused:
            db.get("a")
    assert refused.value.code == "near_cache"


def test_with_other_clocks_the_client_works_without_a_near_cache(
    connect: Connect, other: kv.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kv.near_cache.attach.clock_id", lambda: 1)
    db = connect()
    for number in range(3):
        other.set("a", b"%d" % number)
        assert db.get("a") == b"%d" % number
        assert db.get_many(["a", "b"]) == {"a": b"%d" % number, "b": None}
    stats = db.near_cache.stats()
    assert (stats.hits, stats.attached, stats.entries) == (0, False, 0)
    assert "clock" in stats.reason


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a time namespace")
def test_in_a_time_namespace_the_client_works_without_a_near_cache(
    shared: "ReplaceableDaemon", other: kv.Client
) -> None:
    other.set("a", b"1")
    program = "import kv, sys; db = kv.connect(sys.argv[1], near_cache=True); print(db.get('a'), db.near_cache.stats())"
    done = subprocess.run(  # noqa: S603 (our own interpreter)
        ["unshare", "--time", "--fork", "--monotonic", "1000", sys.executable, "-c", program, shared.address],  # noqa: S607
        cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("b'1'")
    assert "attached=False" in done.stdout
    assert "clocks" in done.stdout


async def awaited(call: Awaitable[Any]) -> Any:  # noqa: ANN401
    return await call


def test_asyncio_answers_can_be_gathered(shared: "ReplaceableDaemon", other: kv.Client) -> None:
    other.set("a", b"1")

    async def play() -> None:
        async with kv.aio.connect(shared.address, near_cache=True) as db:
            assert await asyncio.gather(*(db.get("a") for _ in range(3))) == [b"1"] * 3
            assert await asyncio.gather(*(db.get("a") for _ in range(3))) == [b"1"] * 3
            assert await asyncio.wait_for(db.get("a"), 5) == b"1"
            assert await asyncio.create_task(awaited(db.get("a"))) == b"1"
            assert counts(db) == (5, 3, 0)

    asyncio.run(play())
