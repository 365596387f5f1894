"""A bug in the server while it answers over HTTP: the one connection ends, and the others go on."""

import asyncio
import pathlib
import sys
from collections.abc import Awaitable, Callable

import pytest

from kvd.engine.database import Database
from kvd.http.listener import Listener
from kvd.http.session import HttpSession
from kvd.store.authors import Author
from tests.harness.in_memory import build, build_database
from tests.harness.waiting import DEADLINE_S

UNENCODABLE = Author(None, None, "\ud800")  # a lone surrogate: no text that can be encoded
ANOTHER = Author(None, None, "another")
Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


def with_listener(path: str, database: Database, work: Callable[[Connect], Awaitable[None]]) -> None:
    """Run ``work`` beside a server that speaks HTTP. ``work`` gets a function that connects to the server."""

    async def run() -> None:
        server = build(database=database, loop=asyncio.get_running_loop())
        listener = Listener(server.server, hosts=[], is_open=False, max_json_bytes=1024)
        writers: list[asyncio.StreamWriter] = []

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_unix_connection(path)
            writers.append(writer)
            return reader, writer

        async with server.listening(path, lambda: HttpSession(listener)), asyncio.timeout(DEADLINE_S):
            try:
                await work(connect)
            finally:
                for writer in writers:
                    writer.close()

    asyncio.run(run())


async def watch(connect: Connect, prefix: str) -> asyncio.StreamReader:
    """Start a watch. Return a reader of all that follows its first event."""
    reader, writer = await connect()
    writer.write(b"GET /v2/watch?prefix=%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % prefix.encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert b"event: live\n" in await reader.readuntil(b"\n\n\r\n")
    return reader


def test_an_event_that_cannot_be_encoded_ends_its_watch(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = build_database()

    async def work(connect: Connect) -> None:
        watching, elsewhere = await watch(connect, ""), await watch(connect, "b")
        database.set({"a": b"1"}, UNENCODABLE)
        assert await watching.read() == b"", "no last chunk, because it would mark the stream as complete"
        database.set({"b": b"1"}, ANOTHER)
        assert b"event: change\n" in await elsewhere.readuntil(b"\n\n\r\n"), "another watch goes on"

    with_listener(str(tmp_path / "s"), database, work)
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage().startswith("internal error in a feed of uid ")
    assert record.exc_info is not None


class NotInstalled:
    """An import finder for which prometheus-client is not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "prometheus_client":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_metrics_for_prometheus_answer_501_if_the_extra_is_missing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "kvd.telemetry.prometheus", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "prometheus_client"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NotInstalled(), *sys.meta_path])
    answers: list[bytes] = []

    async def work(connect: Connect) -> None:
        for path, accept in ((b"/metrics/prometheus", b"*/*"), (b"/metrics", b"text/plain;version=0.0.4")):
            reader, writer = await connect()
            writer.write(b"GET %s HTTP/1.1\r\nHost: localhost\r\nAccept: %s\r\n\r\n" % (path, accept))
            head = await reader.readuntil(b"\r\n\r\n")
            answers.append(head.partition(b"\r\n")[0])

    with_listener(str(tmp_path / "s"), build_database(), work)
    assert answers == [b"HTTP/1.1 501 Not Implemented"] * 2
