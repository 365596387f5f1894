"""A bug in the server: the one connection gets an error and is closed. It does not hang, and others go on."""

import asyncio
import pathlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec
import pytest

from kvd.engine.database import Database
from kvd.store.authors import Author
from tests.harness.fake_backend import FakeBackend
from tests.harness.in_memory import build, build_database
from tests.harness.raw_peer import frame
from tests.harness.waiting import DEADLINE_S
from tests.journal.disks import MemoryDisk
from tests.journal.running import Running

Result = TypeVar("Result")
UNENCODABLE = Author(None, None, "\ud800")  # a lone surrogate: no text that can be encoded
PADDING = ["hello", 1, "x" * 70_000]  # makes a large frame


class Faulty(FakeBackend):
    """A backend whose status cannot be encoded."""

    def status(self) -> list[tuple[str, str | int]]:
        return [("more than 64 bits", 2**70)]


class Client:
    """A connection to a server of the same process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def receive(self) -> object:
        """Return the next frame, or None at the end."""
        try:
            length = int.from_bytes(await self._reader.readexactly(4), "big")
            return msgspec.msgpack.decode(await self._reader.readexactly(length))
        except asyncio.IncompleteReadError:
            return None

    def close(self) -> None:
        self._writer.close()


Connect = Callable[[], Awaitable[Client]]


def with_server(path: str, work: Callable[[Connect], Awaitable[Result]], database: Database | None = None) -> Result:
    """Run ``work`` beside a server of its own. ``work`` gets a function that connects to the server."""

    async def run() -> Result:
        server = build(database=database, backend=Faulty(), loop=asyncio.get_running_loop())
        clients: list[Client] = []

        async def connect() -> Client:
            clients.append(Client(*await asyncio.open_unix_connection(path)))
            return clients[-1]

        async with server.listening(path), asyncio.timeout(DEADLINE_S):
            try:
                return await work(connect)
            finally:
                for client in clients:
                    client.close()

    return asyncio.run(run())


@pytest.mark.parametrize("padding", [[], [PADDING]], ids=["small", "large"])
@pytest.mark.parametrize("split", [False, True], ids=["at once", "in two pieces"])
def test_a_reply_that_cannot_be_encoded_ends_the_connection_with_an_error(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, padding: list[object], split: bool
) -> None:
    async def work(connect: Connect) -> tuple[list[object], object]:
        client, other = await connect(), await connect()
        data = frame(["ping"]) + frame(["set", {"a": b"1"}], ["status"], *padding) + frame(["ping"])
        if split:
            client.send(data[:20])
            other.send(frame(["ping"]))
            await other.receive()
        client.send(data[20 if split else 0 :])
        received = [await client.receive() for _ in range(3)]
        other.send(frame(["get", "a"]))
        return received, await other.receive()

    path = str(tmp_path / "s")
    (first, last, end), other_reply = with_server(path, work)
    assert first == [True]
    assert last == {"error": "internal", "message": "a fault in the server; its log has the details"}
    assert end is None
    assert other_reply == [b"1"], "the requests before the fault have run"
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage().startswith("internal error in a frame of uid ")
    assert record.exc_info is not None


def test_an_event_that_cannot_be_encoded_ends_its_watch_with_an_error(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = build_database()

    async def work(connect: Connect) -> tuple[list[object], Any]:
        watching, elsewhere = await connect(), await connect()
        for client, prefix in ((watching, ""), (elsewhere, "b")):
            client.send(frame(["watch", prefix]))
            assert await client.receive() == [True]
            assert await client.receive() == [["live", 0]]
        database.set({"a": b"1"}, UNENCODABLE)
        received = [await watching.receive() for _ in range(2)]
        database.set({"b": b"1"}, Author(None, None, "another"))
        return received, await elsewhere.receive()

    received, other_events = with_server(str(tmp_path / "s"), work, database)
    assert received == [{"error": "internal", "message": "a fault in the server; its log has the details"}, None]
    assert [event[0] for event in other_events] == ["change"], "another watch goes on"
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage().startswith("internal error in a feed of uid ")
    assert record.exc_info is not None


def test_pending_log_writes_count_as_memory() -> None:
    async def main() -> None:
        running = Running(MemoryDisk())
        memory = running.database.memory
        before = memory.by_kind()["buffers"]
        running.set({"a": bytes(10_000)})
        assert memory.by_kind()["buffers"] >= before + 10_000
        running.write()
        assert memory.by_kind()["buffers"] == before

    asyncio.run(main())
