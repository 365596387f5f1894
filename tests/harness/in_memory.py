"""The daemon's objects, wired in the test's own process; and clients that need no socket.

``build`` is the one place that calls the constructors of the database, the requests' executor and the server:

    build() ─▶ InMemoryServer ─ connect() ─▶ InMemoryClient    payload in, reply out; no session, no transport
                              ─ open()    ─▶ FakeTransport     bytes in, frames out; through a session
                              ─ listening(path)                a real Unix socket on the test's own event loop

Time stands still, but for the clock of commits: each commit is a microsecond after the one before it.
"""

import asyncio
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from kvd.engine.database import Database
from kvd.engine.durability import NO_WAIT, Durability, LogPosition
from kvd.engine.generations import GenerationTable
from kvd.journal.commit_log import CommitLog
from kvd.protocol.errors import CODES
from kvd.protocol.limits import Limits
from kvd.protocol.messages import DECODE_ERRORS, AnyRequest, Set, decode_batch, encode_replies
from kvd.requests.access import Access, AccessRule, Identity
from kvd.requests.errors import RequestError, error_reply
from kvd.requests.executor import Administration, Commands
from kvd.requests.sliced import replies_in_slices, run_in_slices
from kvd.server import session as session_module
from kvd.server.peers import Peer
from kvd.server.server import Server
from kvd.server.session import Session
from kvd.store.window import WindowLimits
from tests.harness.clocks import ManualClock, ManualScheduler, TickingClock

# An error message has at most this many characters.
MAX_MESSAGE = 300 + len("…")
Clock = Callable[[], int]


class FakeBackend(Administration):
    """What the process around the server offers to administrators: fixed replies, and a note of a shutdown."""

    def __init__(self) -> None:
        self.stopping = False

    def status(self) -> list[tuple[str, str | int]]:
        return [("version", "1"), ("connections", 2)]

    def reload(self) -> list[str]:
        raise RequestError("bad_request", "kvd.toml, line 3: no such key")

    def shutdown(self) -> int:
        self.stopping = True
        return 4711


def build_database(
    window: WindowLimits | None = None, *, clock: Clock | None = None, timer: Clock | None = None
) -> Database:
    """An empty database. ``clock`` gives the times of commits, ``timer`` those of deadlines, both in µs."""
    return Database(window, clock=clock or TickingClock(1_000_000), timer=timer or ManualClock(10**9))


def build(
    limits: Limits | None = None,
    *,
    window: WindowLimits | None = None,
    clock: Clock | None = None,
    timer: Clock | None = None,
    database: Database | None = None,
    log: CommitLog | None = None,
    sync: str = "always",
    tokens: Mapping[str, str | None] | None = None,
    backend: Administration | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
) -> "InMemoryServer":
    """Build a server: with a database of its own unless it is passed, in memory only unless ``log`` is passed.

    ``loop`` is for tests with sessions, sockets or a log. Without it a `ManualScheduler` stands in its place.
    """
    if database is None:
        database = build_database(window, clock=clock, timer=timer)
    database.log = database.log or log
    commands = Commands(database, limits or Limits(), backend or FakeBackend(), tokens or {})
    server = Server(commands, loop or ManualScheduler())  # type: ignore[arg-type] # it is all that is used of a loop
    if log is not None:
        assert loop is not None
        commands.durability = Durability(database, log, sync, 100, loop, _fail)
        commands.durability.before_write = server.turn.make
    return InMemoryServer(commands, server)


def connect(
    limits: Limits | None = None, *, token: str | None = None, uid: int | None = os.geteuid(), **window: int
) -> "InMemoryClient":
    """A connection to a server of its own. ``window``: the limits of its history."""
    server = build(limits, window=WindowLimits(**window), tokens={token: None} if token else {})
    return server.connect(uid)


def _fail(error: BaseException) -> None:
    raise error


class InMemoryServer:
    """A database, what runs requests against it, and the server of its connections. Made by ``build``."""

    def __init__(self, commands: Commands, server: Server) -> None:
        self.commands = commands
        self.server = server
        self.database = commands.database
        self.timer: Any = self.database.timer
        self.snapshots = commands.snapshots
        self.feeds = commands.feeds
        self.near_caches = commands.near_caches
        self.slow_log = commands.slow_log
        self.hot_keys = commands.hot_keys

    # ------------------------------------------------------------------ connections

    def connect(self, uid: int | None = os.geteuid(), name: str = "test") -> "InMemoryClient":
        """A connection over the Unix socket, or with ``uid=None`` over TCP; of the daemon's own user by default."""
        return InMemoryClient(self, Peer(name, uid))

    def connect_as(self, identity: Identity) -> "InMemoryClient":
        """A connection of a client that has shown who it is, with the rights that the rules give it."""
        peer = Peer("somebody", identity.uid, gids=identity.gids)
        peer.identity = identity
        peer.greeted = True
        peer.allow(self.commands.access)
        return InMemoryClient(self, peer)

    def open(self, pid: int) -> "FakeTransport":
        """A connection of a process with a session, as an event loop would make it."""
        return FakeTransport(self, Peer(f"pid {pid}", 1000, pid, "test"))

    @asynccontextmanager
    async def listening(
        self, path: str, spoken: Callable[[], asyncio.BaseProtocol] | None = None
    ) -> AsyncIterator[None]:
        """Serve a Unix socket; ``spoken`` makes the session of each connection, if it is not the daemon's own."""
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            await self.server.listen(listening, own=True, spoken=spoken)
            try:
                yield
            finally:
                await self.server.stop()

    async def flush(self) -> None:
        """Write and sync what is in the log, which there is."""
        assert self.commands.durability is not None
        await self.commands.durability.flush()

    async def close(self) -> None:
        """Write what is left to the log, if there is one."""
        if self.commands.durability is not None:
            await self.commands.durability.close()

    # ------------------------------------------------------------------ settings

    @property
    def backend(self) -> Any:  # noqa: ANN401 - a FakeBackend, or the test's own
        """What the process offers to administrators."""
        return self.commands.administration

    @backend.setter
    def backend(self, backend: Administration) -> None:
        self.commands.administration = backend

    @property
    def access(self) -> Access:
        """The access rules in force."""
        return self.commands.access

    def set_rules(self, rules: Sequence[AccessRule]) -> None:
        """Put other access rules in force, for connections to come."""
        self.commands.access = Access(rules)

    def set_limits(self, limits: Limits) -> None:
        """Put other limits in force."""
        self.commands.limits = limits

    def never_batch_sets(self) -> None:
        """Run each set at once, instead of those of one turn of the loop together."""
        self.server.turn.takes = lambda requests: False  # type: ignore[method-assign, assignment]

    def share_table(self) -> GenerationTable:
        """Make the table of generations that near caches share, as the first of them does when it attaches."""
        return self.near_caches._make_table(lambda: None)

    # ------------------------------------------------------------------ looking

    @property
    def sliced_bytes(self) -> int:
        """What the frames that run in slices hold: their input, and their replies so far."""
        return self.commands.sliced_bytes

    def metric(self, name: str) -> int:
        """One of the database's counters."""
        return dict(self.database.metrics())[name]


class InMemoryClient:
    """One connection: what the client sends, through decoder, executor and encoder, to what it receives."""

    def __init__(self, server: InMemoryServer, peer: Peer) -> None:
        self.server = server
        self.peer = peer

    @property
    def database(self) -> Database:
        """The server's database."""
        return self.server.database

    @property
    def timer(self) -> ManualClock:
        """The clock of deadlines, in µs."""
        timer: ManualClock = self.server.timer
        return timer

    @property
    def backend(self) -> Any:  # noqa: ANN401 - a FakeBackend, or the test's own
        """What the server's process offers to administrators."""
        return self.server.backend

    def another(self, uid: int | None = os.geteuid()) -> "InMemoryClient":
        """Another connection to the same server."""
        return self.server.connect(uid, "another")

    def disconnect(self) -> None:
        """End the connection."""
        self.server.commands.forget(self.peer)

    # ------------------------------------------------------------------ frames

    def frame(self, payload: bytes) -> Any:  # noqa: ANN401 - whatever the server replies
        """The reply to a frame's payload, as the client decodes it."""
        try:
            requests = decode_batch(payload)
        except DECODE_ERRORS as error:
            return msgspec.msgpack.decode(encode_replies(error_reply("bad_request", str(error))))
        replies = self.run(requests, len(payload))
        if replies is None:  # as the session does
            slices = run_in_slices(self.server.commands, [requests], len(requests), self.peer)
            return checked(joined(slices), len(requests))
        reply = msgspec.msgpack.decode(encode_replies(replies))
        return reply if isinstance(reply, dict) else checked(reply, len(requests))

    def slices(self, payload: bytes) -> Iterator[list[bytes] | None]:
        """Run a frame as large frames run: None after each slice, at last the reply frame in pieces."""
        return replies_in_slices(self.server.commands, memoryview(payload), self.peer)

    def sliced(self, payload: bytes) -> Any:  # noqa: ANN401 - whatever the server replies
        """The reply to a frame that runs as large frames run, as the client decodes it."""
        return joined(self.slices(payload))

    def batch(self, *requests: list[object]) -> list[Any]:
        """The replies to a frame of these requests."""
        replies: list[Any] = self.frame(msgspec.msgpack.encode(requests))
        assert isinstance(replies, list), replies
        return replies

    def ask(self, *request: object) -> Any:  # noqa: ANN401 - whatever the server replies
        """The reply to one request, alone in its frame."""
        return self.batch(list(request))[0]

    def code(self, *request: object) -> str:
        """The code with which one request is refused; "" if it is not."""
        reply = self.ask(*request)
        return str(reply["error"]) if isinstance(reply, dict) else ""

    def metric(self, name: str) -> int:
        """One of the database's counters."""
        return self.server.metric(name)

    # ------------------------------------------------------------------ decoded requests

    def run(self, requests: Sequence[AnyRequest], frame_bytes: int) -> Any:  # noqa: ANN401 - replies, a map, or None
        """The replies to decoded requests; a map if the frame is refused; None if it has to run in slices."""
        return self.run_with_needs(requests, frame_bytes)[0]

    def run_with_needs(self, requests: Sequence[AnyRequest], frame_bytes: int) -> tuple[Any, LogPosition]:
        """The same, and what the replies have to wait for."""
        commands = self.server.commands
        commands.needs = NO_WAIT
        replies = commands.run(requests, self.peer, frame_bytes)
        return replies, commands.needs

    def run_slice(self, requests: Sequence[AnyRequest], budget_bytes: int) -> tuple[list[Any], LogPosition]:
        """Run one slice of a large frame; the replies, and what they have to wait for."""
        commands = self.server.commands
        commands.needs = NO_WAIT
        replies, _ = commands.run_counting(requests, self.peer, budget_bytes)
        return replies, commands.needs

    def run_one(self, request: AnyRequest) -> Any:  # noqa: ANN401 - whatever the server replies
        """The reply to one decoded request."""
        return self.server.commands.run_one(request, self.peer)

    def set_together(self, requests: list[Set]) -> object:
        """Run sets as those of several frames of one turn of the loop run."""
        return self.server.commands.set_together(requests, self.peer)


class FakeTransport:
    """A connection's transport: it keeps what the session writes, and brings nothing while reading is paused."""

    def __init__(self, server: InMemoryServer, peer: Peer) -> None:
        self.sent = bytearray()
        self.is_closed = False
        self._loop = server.server.loop
        self._is_paused = False
        self._arrived: deque[bytes] = deque()
        self.session = Session(server.server)
        self.session.transport = self  # type: ignore[assignment] # it is all that a session uses of one
        self.session.peer = self.peer = peer
        server.server.sessions.add(self.session)

    def receive(self, data: bytes) -> None:
        """Some bytes arrive from the client."""
        self._arrived.append(data)
        self._deliver()

    def _deliver(self) -> None:
        while self._arrived and not self._is_paused:
            data = self._arrived.popleft()
            session_module._read_view[: len(data)] = data
            self.session.buffer_updated(len(data))

    def replies(self) -> list[Any]:
        """The frames that the session has written, decoded."""
        frames, at = [], 0
        while at < len(self.sent):
            end = at + 4 + int.from_bytes(self.sent[at : at + 4], "big")
            frames.append(msgspec.msgpack.decode(self.sent[at + 4 : end]))
            at = end
        return frames

    # ------------------------------------------------------------------ called by the session

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


def joined(work: Iterator[list[bytes] | None]) -> Any:  # noqa: ANN401 - whatever the server replies
    """The reply to a frame that is run in slices."""
    *slices, pieces = work
    assert slices
    assert set(slices) == {None}
    assert pieces is not None
    frame = b"".join(pieces)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    return msgspec.msgpack.decode(frame[4:])


def checked(replies: list[Any], count: int) -> list[Any]:
    """What holds for every reply frame: one reply for each request, and errors of the documented form."""
    assert isinstance(replies, list)
    assert len(replies) == count
    for reply in replies:
        if isinstance(reply, dict):
            assert reply["error"] in CODES
            assert isinstance(reply["message"], str)
            assert 0 < len(reply["message"]) <= MAX_MESSAGE
    return replies
