"""Sets that are queued until the end of a loop iteration: clients cannot tell, except by the time it takes.

Random frames on several connections, in random pieces and iterations, against a server that queues no sets: the same
replies on each connection, the same versions, the same history.
"""

import asyncio
import random
from typing import Any, NamedTuple

import msgspec
import pytest

from kvd.journal.commit_log import CommitLog
from kvd.journal.records import Header
from kvd.protocol.limits import Limits
from kvd.protocol.messages import AnyRequest
from kvd.server.set_batch import MAX_REQUESTS, SetBatcher
from kvd.store.history import newest_commits
from tests.harness.in_memory import build
from tests.harness.waiting import until
from tests.journal.disks import MemoryDisk

KEYS = [f"key{number}" for number in range(6)]
LIMITS = Limits(max_key_bytes=50, max_keys_per_request=3, max_requests_per_frame=20)
SEEDS = range(60)
WALL_US = 1_700_000_000_000_000


class Connections:
    """A server without sockets, and four connections to it: two of each of two processes."""

    def __init__(self, sync: str | None) -> None:
        header = Header(0, 1, 0, 0, bytes(8))
        self.server = build(
            LIMITS,
            clock=lambda: WALL_US,
            timer=lambda: WALL_US,
            log=None if sync is None else CommitLog(MemoryDisk(), header, 1 << 20, lambda: 4711),
            sync=sync or "always",
            loop=asyncio.get_running_loop(),
        )
        self.transports = [self.server.open(pid) for pid in (10, 10, 20, 20)]

    @property
    def version(self) -> int:
        """The store's newest version."""
        return self.server.database.store.version

    def send(self, number: int, data: bytes) -> None:
        """Deliver bytes on one of the connections."""
        self.transports[number].receive(data)

    async def iterate(self) -> None:
        """Let the loop finish this iteration and begin the next."""
        await asyncio.sleep(0)

    async def until_replied(self, expected: list[int]) -> None:
        """Wait until each connection has received this number of frames."""
        pairs = list(zip(self.transports, expected, strict=True))
        await until(lambda: all(len(one.replies()) >= count for one, count in pairs), pause_s=0.0005)


class Step(NamedTuple):
    """Bytes that arrive on a connection, or with None the end of a loop iteration."""

    number: int | None
    data: bytes = b""


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


class Script:
    """The bytes that arrive, and how many frames each connection must receive."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - a test that can be repeated
        self.steps: list[Step] = []
        self.frames = [0] * 4
        for _ in range(60):
            number = self.chance.randrange(4)
            count = self.chance.choice((1, 1, 1, 2, 4))
            self.frames[number] += count
            self.steps.append(Step(number, b"".join(framed(self._payload()) for _ in range(count))))
            if self.chance.random() < 0.25:
                self.steps.append(Step(None))

    def _payload(self) -> bytes:
        if self.chance.random() < 0.03:
            return b"\xc1 no MessagePack"
        count = self.chance.choice((1, 1, 1, 1, 2, 5))
        only_sets = self.chance.random() < 0.75
        return msgspec.msgpack.encode([self._set() if only_sets else self._any() for _ in range(count)])

    def _set(self) -> list[object]:
        keys = self.chance.sample(KEYS, self.chance.choice((1, 1, 1, 1, 2, 4)))
        if self.chance.random() < 0.03:
            keys = ["k" * 51]
        entries = {key: self.chance.randbytes(self.chance.randrange(9)) for key in keys}
        options = self.chance.choice(
            [None, None, None, {"id": self.chance.randbytes(16)}, {"id": b"i" * 16}, {"ttl": 5000}, {"sync": False}]
        )
        return ["set", entries] if options is None else ["set", entries, options]

    def _any(self) -> list[object]:
        key = self.chance.choice(KEYS)
        return self.chance.choice(
            [["get", key], ["get_many", KEYS], ["delete", [key]], ["increment", key, 1], ["scan", "", None, 2],
             ["commit", {key: b"c"}, {key: self.chance.randrange(40)}], ["ping"], ["begin"], self._set()]
        )  # fmt: skip


def play_script(
    script: Script, sync: str | None, *, batches_sets: bool
) -> tuple[list[list[Any]], list[Any], list[Any]]:
    """Run the script. Return each connection's replies, all values with their versions, and all commits."""

    async def play() -> tuple[list[list[Any]], list[Any], list[Any]]:
        connections = Connections(sync)
        if not batches_sets:
            connections.server.never_batch_sets()
        for step in script.steps:
            if step.number is None:
                await connections.iterate()
            else:
                connections.send(step.number, step.data)
        await connections.until_replied(script.frames)
        store = connections.server.database.store
        values = [(item.key, item.value, item.version) for item in store.scan("", None, 1000).items]
        commits = newest_commits(store, 10_000, 1 << 30)
        await connections.server.close()
        replies = [transport.replies() for transport in connections.transports]
        return replies, values, [msgspec.to_builtins(each) for each in commits]

    return asyncio.run(play())


@pytest.mark.parametrize("sync", [None, "always", "never"])
def test_clients_cannot_tell_whether_sets_are_batched(sync: str | None) -> None:
    for seed in SEEDS:
        script = Script(seed)
        assert play_script(script, sync, batches_sets=True) == play_script(script, sync, batches_sets=False)


def test_sets_of_one_iteration_are_one_group_of_commits() -> None:
    """This is what batching saves. Each set is still a commit of its own."""

    async def play() -> None:
        connections = Connections(None)
        connections.server.database.set(dict.fromkeys(KEYS, b""), connections.transports[0].peer.author)
        before = len(connections.server.database.store.window.groups)
        for number, key in enumerate(KEYS[:4]):
            connections.send(number, framed(msgspec.msgpack.encode([["set", {key: b"x"}]])))
        assert connections.version == 1
        await connections.until_replied([1, 1, 1, 1])
        assert [transport.replies() for transport in connections.transports] == [[[2]], [[3]], [[4]], [[5]]]
        assert len(connections.server.database.store.window.groups) == before + 2  # one for each process

    asyncio.run(play())


def test_the_number_of_queued_sets_is_limited() -> None:
    async def play() -> None:
        connections = Connections(None)
        request = ["set", {"key": b"x"}]
        for number in range(MAX_REQUESTS // 16):
            assert connections.version == 0
            connections.send(number % 2, framed(msgspec.msgpack.encode([request] * 16)))
        assert connections.version == MAX_REQUESTS

    asyncio.run(play())


def test_a_client_that_is_alone_skips_the_queue() -> None:
    async def play() -> None:
        connections = Connections(None)
        connections.send(0, framed(msgspec.msgpack.encode([["set", {"a": b"x"}]])))
        assert connections.version == 0, "other sets may come"
        await connections.until_replied([1, 0, 0, 0])
        connections.send(0, framed(msgspec.msgpack.encode([["set", {"a": b"x"}]])))
        assert connections.transports[0].replies() == [[1], [2]]

    asyncio.run(play())


def test_the_queued_set_of_a_closed_connection_is_made() -> None:
    async def play() -> None:
        connections = Connections(None)
        for number in (0, 1):
            connections.send(number, framed(msgspec.msgpack.encode([["set", {f"key{number}": b"x"}]])))
        connections.transports[0].session.connection_lost(None)
        await connections.until_replied([0, 1, 0, 0])
        assert connections.version == 2
        assert connections.transports[0].replies() == []

    asyncio.run(play())


def test_a_stop_answers_queued_sets_before_its_last_reply() -> None:
    async def play() -> None:
        connections = Connections(None)
        connections.send(0, framed(msgspec.msgpack.encode([["set", {"key": b"x"}]])))
        connections.transports[0].session.drain()
        replies = connections.transports[0].replies()
        assert replies[0] == [1]
        assert replies[1]["error"] == "shutting_down"

    asyncio.run(play())


def test_queued_sets_are_answered_before_the_error_for_a_too_large_frame() -> None:
    async def play() -> None:
        connections = Connections(None)
        too_long = (LIMITS.max_frame_bytes + 1).to_bytes(4, "big")
        connections.send(0, framed(msgspec.msgpack.encode([["set", {"key": b"x"}]])) + too_long)
        replies = connections.transports[0].replies()
        assert replies[0] == [1]
        assert replies[1]["error"] == "too_large"

    asyncio.run(play())


def test_an_internal_error_in_a_batch_goes_to_each_of_its_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(requests: object, peer: object) -> None:
        raise ZeroDivisionError

    async def play() -> None:
        connections = Connections("always")
        for number in range(4):
            connections.send(number, framed(msgspec.msgpack.encode([["set", {f"key{number}": b"x"}]])))
        connections.send(3, framed(msgspec.msgpack.encode([["ping"]])))  # so that the first four sets are made
        await connections.until_replied([1, 1, 1, 2])
        monkeypatch.setattr(connections.server.executor, "set_each", fail)
        for number in (0, 1):
            connections.send(number, framed(msgspec.msgpack.encode([["set", {"key": b"x"}]])))
        await connections.until_replied([2, 2, 1, 2])
        for number in (0, 1):
            assert connections.transports[number].replies()[1]["error"] == "internal"
            assert connections.transports[number].is_closed
        connections.send(2, framed(msgspec.msgpack.encode([["get", "key2"]])))
        await connections.until_replied([2, 2, 2, 2])
        assert connections.transports[2].replies()[1] == [b"x"]
        await connections.server.close()

    asyncio.run(play())


@pytest.mark.parametrize(("fault", "before"), [("_run", 0), ("set_each", 1)])
def test_no_reply_follows_an_internal_error(fault: str, before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both if the sender is alone (it also sent the previous set) and if its set is queued."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async def play() -> None:
        connections = Connections(None)
        connections.send(before, framed(msgspec.msgpack.encode([["set", {"a": b"1"}]])))
        await connections.iterate()
        earlier = len(connections.transports[0].replies())
        with monkeypatch.context() as patch:
            patch.setattr(connections.server.executor, fault, fail)
            requests = ["set", {"a": b"2"}], ["ping"], ["set", {"a": b"2"}]
            connections.send(0, b"".join(framed(msgspec.msgpack.encode([request])) for request in requests))
            await connections.iterate()
        [reply] = connections.transports[0].replies()[earlier:]
        assert reply["error"] == "internal"
        assert connections.transports[0].is_closed

    asyncio.run(play())


def test_a_write_with_sync_false_is_not_queued() -> None:
    requests = [msgspec.convert(["set", {"a": b""}, {"sync": False}], AnyRequest)]
    assert not SetBatcher.accepts(requests)
    assert not SetBatcher.accepts([*requests, *requests])
