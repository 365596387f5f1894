"""Sets that are put aside until the end of a turn: nobody can tell, but by the time it takes.

Random frames on several connections, in random pieces and turns, against a server that puts nothing aside: the same
replies on each connection, the same versions, the same history.
"""

import asyncio
import random
from collections import deque
from typing import Any, NamedTuple

import msgspec
import pytest

from kvd.engine.database import Database
from kvd.engine.durability import LogDurability
from kvd.engine.replay import Replay
from kvd.journal.commit_log import CommitLog
from kvd.journal.records import Header
from kvd.protocol.limits import Limits
from kvd.requests.executor import Commands
from kvd.server import session as session_module
from kvd.server.peers import Peer
from kvd.server.server import Server
from kvd.server.session import Session
from kvd.server.set_batch import MAX_REQUESTS, SetBatcher
from kvd.store.history import newest_commits
from tests.journal.disks import MemoryDisk
from tests.journal.running import journal_on

KEYS = [f"key{number}" for number in range(6)]
LIMITS = Limits(max_key_bytes=50, max_keys_per_request=3, max_requests_per_frame=20)
SEEDS = range(60)
WALL_US = 1_700_000_000_000_000


class Wire:
    """A transport that keeps what was sent, and brings nothing while reading is paused."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.sent = bytearray()
        self.is_closed = False
        self._loop = loop
        self._is_paused = False
        self._arrived: deque[bytes] = deque()
        self.session: Session

    def bring(self, data: bytes) -> None:
        """Some bytes arrive."""
        self._arrived.append(data)
        self._deliver()

    def _deliver(self) -> None:
        while self._arrived and not self._is_paused:
            data = self._arrived.popleft()
            session_module._read_view[: len(data)] = data
            self.session.buffer_updated(len(data))

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.sent += data

    def writelines(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self.write(piece)

    def close(self) -> None:
        self.is_closed = True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        self._loop.call_soon(self._deliver)

    def replies(self) -> list[Any]:
        """All frames that were sent."""
        found, at = [], 0
        while at < len(self.sent):
            end = at + 4 + int.from_bytes(self.sent[at : at + 4], "big")
            found.append(msgspec.msgpack.decode(self.sent[at + 4 : end]))
            at = end
        return found


class House:
    """A server without sockets, and its connections: two processes with two each."""

    def __init__(self, sync: str | None) -> None:
        self.loop = asyncio.get_running_loop()
        contents = Replay(clock=lambda: WALL_US, timer=lambda: WALL_US)
        durability = None
        if sync is None:
            self.database = Database(contents=contents)
        else:
            log = CommitLog(MemoryDisk(), Header(0, 1, 0, 0, bytes(8)), 1 << 20, lambda: 4711)
            durability = LogDurability(contents.store, log, sync, 100, self.loop, self._failed)
            self.database = Database(contents=contents, journal=journal_on(log, contents, durability))
        self.commands = Commands(self.database, LIMITS, None, {}, durability=durability)  # type: ignore[arg-type]
        self.server = Server(self.commands, self.loop)
        self.sessions = [self._connect(pid) for pid in (10, 10, 20, 20)]

    def _failed(self, error: BaseException) -> None:
        raise error

    def _connect(self, pid: int) -> Session:
        session = Session(self.server)
        wire = Wire(self.loop)
        wire.session, session.transport = session, wire  # type: ignore[assignment]
        session.peer = Peer(f"pid {pid}", 1000, pid, "test")
        self.server.sessions.add(session)
        return session

    def send(self, number: int, data: bytes) -> None:
        """Some bytes arrive."""
        self.wires[number].bring(data)

    async def turn(self) -> None:
        """The loop takes one turn, and a bit of the next."""
        await asyncio.sleep(0)

    async def rest(self, expected: list[int]) -> None:
        """Until each connection has been sent so many frames."""
        async with asyncio.timeout(30):
            while any(len(wire.replies()) < count for wire, count in zip(self.wires, expected, strict=True)):
                await asyncio.sleep(0.0005)

    @property
    def wires(self) -> list[Wire]:
        return [session.transport for session in self.sessions]  # type: ignore[misc]


class Step(NamedTuple):
    """Bytes that arrive on a connection; or, with None, a turn ends."""

    number: int | None
    data: bytes = b""


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


class Script:
    """What arrives, and how many frames each connection is to be sent."""

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
        how = self.chance.choice(
            [None, None, None, {"id": self.chance.randbytes(16)}, {"id": b"i" * 16}, {"ttl": 5000}, {"sync": False}]
        )
        return ["set", entries] if how is None else ["set", entries, how]

    def _any(self) -> list[object]:
        key = self.chance.choice(KEYS)
        return self.chance.choice(
            [["get", key], ["get_many", KEYS], ["delete", [key]], ["increment", key, 1], ["scan", "", None, 2],
             ["commit", {key: b"c"}, {key: self.chance.randrange(40)}], ["ping"], ["begin"], self._set()]
        )  # fmt: skip


def played(script: Script, sync: str | None, *, puts_aside: bool) -> tuple[list[list[Any]], list[Any], list[Any]]:
    """The replies on each connection, all values with their versions, and all commits."""

    async def play() -> tuple[list[list[Any]], list[Any], list[Any]]:
        house = House(sync)
        if not puts_aside:
            house.server.turn.takes = lambda requests: False  # type: ignore[method-assign, assignment]
        for step in script.steps:
            if step.number is None:
                await house.turn()
            else:
                house.send(step.number, step.data)
        await house.rest(script.frames)
        store = house.database.store
        values = [(item.key, item.value, item.version) for item in store.scan("", None, 1000).items]
        commits = newest_commits(store, 10_000, 1 << 30)
        if house.commands.durability is not None:
            await house.commands.durability.close()
        return [wire.replies() for wire in house.wires], values, [msgspec.to_builtins(each) for each in commits]

    return asyncio.run(play())


@pytest.mark.parametrize("sync", [None, "always", "never"])
def test_nobody_can_tell(sync: str | None) -> None:
    for seed in SEEDS:
        script = Script(seed)
        assert played(script, sync, puts_aside=True) == played(script, sync, puts_aside=False)


def test_sets_of_one_turn_are_one_group_of_commits() -> None:
    """So that is what was saved; and each is a commit of its own."""

    async def play() -> None:
        house = House(None)
        house.database.set(dict.fromkeys(KEYS, b""), house.sessions[0].peer.author)
        before = len(house.database.store.window.groups)
        for number, key in enumerate(KEYS[:4]):
            house.send(number, framed(msgspec.msgpack.encode([["set", {key: b"x"}]])))
        assert house.database.store.version == 1
        await house.rest([1, 1, 1, 1])
        assert [wire.replies() for wire in house.wires] == [[[2]], [[3]], [[4]], [[5]]]
        assert len(house.database.store.window.groups) == before + 2  # one for each process

    asyncio.run(play())


def test_no_more_than_a_turns_worth_is_put_aside() -> None:
    async def play() -> None:
        house = House(None)
        request = ["set", {"key": b"x"}]
        for number in range(MAX_REQUESTS // 16):
            assert house.database.store.version == 0
            house.send(number % 2, framed(msgspec.msgpack.encode([request] * 16)))
        assert house.database.store.version == MAX_REQUESTS

    asyncio.run(play())


def test_who_is_alone_is_not_kept_waiting() -> None:
    async def play() -> None:
        house = House(None)
        house.send(0, framed(msgspec.msgpack.encode([["set", {"a": b"x"}]])))
        assert house.database.store.version == 0, "others may come"
        await house.rest([1, 0, 0, 0])
        house.send(0, framed(msgspec.msgpack.encode([["set", {"a": b"x"}]])))
        assert house.wires[0].replies() == [[1], [2]]

    asyncio.run(play())


def test_who_hangs_up_has_set_all_the_same() -> None:
    async def play() -> None:
        house = House(None)
        for number in (0, 1):
            house.send(number, framed(msgspec.msgpack.encode([["set", {f"key{number}": b"x"}]])))
        house.sessions[0].connection_lost(None)
        await house.rest([0, 1, 0, 0])
        assert house.database.store.version == 2
        assert house.wires[0].replies() == []

    asyncio.run(play())


def test_a_stop_answers_what_was_put_aside_before_it_says_goodbye() -> None:
    async def play() -> None:
        house = House(None)
        house.send(0, framed(msgspec.msgpack.encode([["set", {"key": b"x"}]])))
        house.sessions[0].finish()
        replies = house.wires[0].replies()
        assert replies[0] == [1]
        assert replies[1]["error"] == "shutting_down"

    asyncio.run(play())


def test_who_sends_too_much_is_answered_for_what_came_before() -> None:
    async def play() -> None:
        house = House(None)
        too_long = (LIMITS.max_frame_bytes + 1).to_bytes(4, "big")
        house.send(0, framed(msgspec.msgpack.encode([["set", {"key": b"x"}]])) + too_long)
        replies = house.wires[0].replies()
        assert replies[0] == [1]
        assert replies[1]["error"] == "too_large"

    asyncio.run(play())


def test_a_fault_of_ours_is_told_to_all_that_it_concerns(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(requests: object, peer: object) -> None:
        raise ZeroDivisionError

    async def play() -> None:
        house = House("always")
        for number in range(4):
            house.send(number, framed(msgspec.msgpack.encode([["set", {f"key{number}": b"x"}]])))
        house.send(3, framed(msgspec.msgpack.encode([["ping"]])))  # so that the first four are made
        await house.rest([1, 1, 1, 2])
        monkeypatch.setattr(house.commands, "set_together", fail)
        for number in (0, 1):
            house.send(number, framed(msgspec.msgpack.encode([["set", {"key": b"x"}]])))
        await house.rest([2, 2, 1, 2])
        for number in (0, 1):
            assert house.wires[number].replies()[1]["error"] == "internal"
            assert house.wires[number].is_closed
        house.send(2, framed(msgspec.msgpack.encode([["get", "key2"]])))
        await house.rest([2, 2, 2, 2])
        assert house.wires[2].replies()[1] == [b"x"]
        assert house.commands.durability is not None
        await house.commands.durability.close()

    asyncio.run(play())


@pytest.mark.parametrize(("fault", "before"), [("_run", 0), ("set_together", 1)])
def test_behind_a_fault_of_ours_nothing_is_answered(fault: str, before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the sender was alone, since it sent the set before too, or its set was put aside."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async def play() -> None:
        house = House(None)
        house.send(before, framed(msgspec.msgpack.encode([["set", {"a": b"1"}]])))
        await house.turn()
        answered = len(house.wires[0].replies())
        with monkeypatch.context() as patch:
            patch.setattr(house.commands, fault, fail)
            requests = ["set", {"a": b"2"}], ["ping"], ["set", {"a": b"2"}]
            house.send(0, b"".join(framed(msgspec.msgpack.encode([request])) for request in requests))
            await house.turn()
        [reply] = house.wires[0].replies()[answered:]
        assert reply["error"] == "internal"
        assert house.wires[0].is_closed

    asyncio.run(play())


def test_a_write_that_asks_for_less_is_not_put_aside() -> None:
    requests = [msgspec.convert(["set", {"a": b""}, {"sync": False}], session_module.AnyRequest)]
    assert not SetBatcher.takes(requests)
    assert not SetBatcher.takes([*requests, *requests])
