"""``cached``: one caller makes a missing value, while all others wait for it."""

import asyncio
import json
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import kv
import kv.aio
from kv.api.locks import MAKING
from kv.near_cache.cache import DecodedObjects
from tests.harness.processes import ROOT
from tests.harness.waiting import DEADLINE_S

if TYPE_CHECKING:
    from tests.harness.daemon import Daemon

CALLERS = 8

# Begins to make a value, prints a line, and never ends.
MAKER = """
import sys, time
import kv

def make():
    print("making", flush=True)
    time.sleep(1000)

kv.connect(sys.argv[1]).cached("key", make)
"""


def queue(db: kv.Client) -> list[str]:
    """Return the keys of the callers that make a value, or wait for it."""
    return [item.key for item in db.scan(MAKING, keys_only=True)]


def wait_for_queue(db: kv.Client, length: int) -> None:
    with db.watch(MAKING) as watch:
        while len(queue(db)) < length:
            assert watch.wait(DEADLINE_S) is not None


def test_an_existing_value_is_not_made(db: kv.Client) -> None:
    db.set("key", b"there")
    assert db.cached("key", lambda: pytest.fail("made")) == b"there"  # type: ignore[arg-type, return-value]


def test_a_made_value_is_stored_with_its_ttl(db: kv.Client) -> None:
    assert db.cached("key", lambda: b"made", ttl=1000) == b"made"
    assert db.get("key") == b"made"
    [left] = db.ttl("key")
    assert left is not None
    assert 900 < left <= 1000
    assert queue(db) == []


@pytest.mark.parametrize("key", ["a/b", "\n\x00", "é" * 1000])
def test_any_key_can_be_cached(db: kv.Client, key: str) -> None:
    assert db.cached(key, lambda: b"") == b""
    assert db.get(key) == b""


def test_one_caller_makes_the_value_and_the_others_wait(db: kv.Client, shared_daemon: "Daemon") -> None:
    """Half of the callers share a client, the others have a client each."""
    made: list[int] = []
    found: list[bytes] = []
    may_end = threading.Event()

    def make() -> bytes:
        made.append(1)
        assert may_end.wait(DEADLINE_S)
        return b"made"

    def ask(client: kv.Client) -> None:
        found.append(client.cached("key", make))

    others = [kv.connect(shared_daemon.address, timeout=DEADLINE_S) for _ in range(CALLERS // 2)]
    clients = [db] * (CALLERS // 2) + others
    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    wait_for_queue(db, CALLERS)
    may_end.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    for client in others:
        client.close()
    assert (len(made), found) == (1, [b"made"] * CALLERS)


def test_after_a_failure_the_next_caller_makes_the_value(db: kv.Client) -> None:
    with pytest.raises(ZeroDivisionError):
        db.cached("key", lambda: 1 // 0)  # type: ignore[arg-type, return-value]
    assert db.get("key") is None
    assert db.cached("key", lambda: b"made") == b"made"


def test_a_value_that_is_not_bytes_is_a_type_error(db: kv.Client) -> None:
    with pytest.raises(TypeError, match="a value is bytes"):
        db.cached("key", lambda: "text")  # type: ignore[arg-type, return-value]
    assert queue(db) == []


def test_when_the_maker_dies_the_next_caller_takes_over(db: kv.Client, shared_daemon: "Daemon") -> None:
    command = [sys.executable, "-c", MAKER, shared_daemon.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as maker:  # noqa: S603 - ourselves
        assert maker.stdout is not None
        assert maker.stdout.readline() == b"making\n"
        found: list[bytes] = []
        thread = threading.Thread(target=lambda: found.append(db.cached("key", lambda: b"mine")))
        thread.start()
        wait_for_queue(db, 2)
        assert found == []
        maker.kill()
        thread.join(DEADLINE_S)
    assert found == [b"mine"]


def test_a_caller_that_waits_for_too_long_times_out(db: kv.Client, shared_daemon: "Daemon") -> None:
    command = [sys.executable, "-c", MAKER, shared_daemon.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as maker:  # noqa: S603 - ourselves
        assert maker.stdout is not None
        assert maker.stdout.readline() == b"making\n"
        with pytest.raises(kv.TimedOut):
            db.cached("key", lambda: b"mine", timeout=0.05)
        maker.kill()


def test_one_asyncio_caller_makes_the_value(db: kv.Client, shared_daemon: "Daemon") -> None:
    made: list[int] = []

    async def make() -> bytes:
        made.append(1)
        await asyncio.sleep(0)
        return b"made"

    async def ask() -> list[bytes]:
        async with kv.aio.connect(shared_daemon.address, timeout=DEADLINE_S) as client:
            return await asyncio.gather(*(client.cached("key", make, ttl=1000) for _ in range(CALLERS)))

    assert asyncio.run(ask()) == [b"made"] * CALLERS
    assert len(made) == 1
    [left] = db.ttl("key")
    assert left is not None
    assert left <= 1000


def test_a_decoded_object_is_kept_for_as_long_as_its_value_is_current(shared_daemon: "Daemon") -> None:
    decoded: list[bytes] = []

    def decode(value: bytes) -> list[bytes]:
        decoded.append(value)
        return [value]

    with kv.connect(shared_daemon.address, near_cache=True) as near, kv.connect(shared_daemon.address) as db:
        db.set("key", b"one")
        first = near.cached("key", pytest.fail, decode=decode)  # type: ignore[arg-type]
        assert first == [b"one"]
        assert near.cached("key", pytest.fail, decode=decode) is first  # type: ignore[arg-type]
        db.set("key", b"two")
        second = near.cached("key", pytest.fail, decode=decode)  # type: ignore[arg-type]
        assert second == [b"two"]
        assert near.cached("key", pytest.fail, decode=decode) is second  # type: ignore[arg-type]
        assert near.cached("key", pytest.fail, decode=bytes.upper) == b"TWO"  # type: ignore[arg-type]
        assert decoded == [b"one", b"two"]
        assert db.cached("key", pytest.fail, decode=decode) == [b"two"]  # type: ignore[arg-type]


def test_decoded_objects_are_bounded() -> None:
    objects = DecodedObjects(2)
    values = [b"%d" % number for number in range(5)]
    for number, value in enumerate(values):
        assert objects.of(str(number), value, int) == number
    assert len(objects._objects) <= 2


def test_decoded_objects_are_kept_with_asyncio(shared_daemon: "Daemon") -> None:
    async def run() -> None:
        async def never() -> bytes:
            pytest.fail("made")

        async with kv.aio.connect(shared_daemon.address, near_cache=True) as near:
            await near.set("key", b"[1]")
            first = await near.cached("key", never, decode=json.loads)
            assert first == [1]
            assert await near.cached("key", never, decode=json.loads) is first
        async with kv.aio.connect(shared_daemon.address) as db:
            assert await db.cached("key", never, decode=json.loads) == [1]

    asyncio.run(run())
