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
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from kvd.engine.database import Database
from kvd.engine.durability import Durability, LogDurability, LogPosition, MemoryDurability
from kvd.engine.engine import Engine
from kvd.engine.errors import EngineError
from kvd.engine.expiry import TIMER_GRAIN_S
from kvd.engine.feeds import Feeds
from kvd.engine.generations import GenerationTable
from kvd.engine.journal import DurableJournal
from kvd.engine.near_cache import NearCaches
from kvd.engine.replay import Replay
from kvd.engine.snapshots import Snapshots
from kvd.journal.commit_log import CommitLog
from kvd.protocol.limits import Limits
from kvd.protocol.messages import DECODE_ERRORS, AnyRequest, Set, decode_batch, encode_replies
from kvd.requests.access import Access, AccessRule, Identity
from kvd.requests.admin import AdminBackend
from kvd.requests.authentication import Authentication
from kvd.requests.errors import error_reply
from kvd.requests.executor import Executor
from kvd.requests.limits import LimitChecker
from kvd.requests.peer import Peer
from kvd.requests.sliced import HeldBytes, Result
from kvd.requests.turns import Steps, Turns, run_to_end
from kvd.server.connection import Connections
from kvd.server.server import Server
from kvd.server.session import GOODBYE, Session
from kvd.service.config.sections import Config
from kvd.store.window import WindowLimits
from kvd.telemetry.hot_keys import HotKeys
from kvd.telemetry.metrics import LoopLag, ServerMetrics
from kvd.telemetry.slow_log import SlowLog
from kvd.telemetry.telemetry import Telemetry
from tests.harness.checked_replies import checked, joined
from tests.harness.clocks import ManualClock, ManualScheduler, TickingClock
from tests.harness.fake_backend import FakeBackend
from tests.harness.fake_transport import FakeTransport

Clock = Callable[[], int]
NO_END_NS = 1 << 62


def refuse_leases() -> None:
    """Let no client have a near cache, as the next daemon would not learn of its lease. Raises EngineError."""
    raise EngineError("bad_request", "there is no near cache here")


def default_slow_log() -> SlowLog:
    """A slow log as the daemon has it unless the configuration says otherwise."""
    settings = Config().slowlog
    return SlowLog(settings.threshold_us, settings.max_entries)


def build_database(
    window: WindowLimits | None = None, *, clock: Clock | None = None, timer: Clock | None = None
) -> Database:
    """An empty database. ``clock`` gives the times of commits, ``timer`` those of deadlines, both in µs."""
    return Database(
        window,
        clock=clock or TickingClock(1_000_000),
        timer=timer or ManualClock(10**9),
        scheduler=ManualScheduler(),
    )


def build(
    limits: Limits | None = None,
    *,
    window: WindowLimits | None = None,
    clock: Clock | None = None,
    timer: Clock | None = None,
    database: Database | None = None,
    durability: Durability | None = None,
    log: CommitLog | None = None,
    sync: str = "always",
    tokens: Mapping[str, str | None] | None = None,
    backend: AdminBackend | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
    clock_ns: Clock | None = None,
    turn_ns: int = NO_END_NS,
) -> "InMemoryServer":
    """Build a server: with a database of its own unless it is passed, in memory only unless ``log`` is passed.

    ``durability``: of a database that is passed and has a log. ``loop`` is for tests with sessions, sockets or a log;
    without it a `ManualScheduler` stands in its place. ``clock_ns`` measures slices, and ``turn_ns`` is the time of a
    turn of the loop: without them everything takes no time, and so nothing depends on how fast the machine is.
    """
    scheduler: Any = loop or ManualScheduler()
    connections, sliced_bytes = Connections(scheduler.time), HeldBytes()
    if log is not None:
        assert loop is not None
        contents = Replay(window, clock or TickingClock(1_000_000), timer or ManualClock(10**9))
        durability = log_durability = LogDurability(contents.store, log, sync, 100, loop, _fail)
        journal = DurableJournal(log, contents, log_durability)
        database = Database(contents=contents, journal=journal, buffer_bytes=connections.buffer_bytes)
    if database is None:
        database = build_database(window, clock=clock, timer=timer)
    durability = durability or MemoryDurability()
    engine = Engine(
        database,
        durability,
        Snapshots(database.store, database.timer, database.scheduler),
        Feeds(database),
        NearCaches(database.generations, database.scheduler, refuse_leases, notes_changes=not durability.always),
    )
    telemetry = Telemetry(
        ServerMetrics(database.store.version),
        default_slow_log(),
        HotKeys(),
        LoopLag(scheduler.call_later),
        connections.__len__,
    )
    limit_checker = LimitChecker(limits or Limits())
    authentication = Authentication(database, limit_checker, Access(), tokens or {})
    backend = backend or FakeBackend()
    turns = Turns(scheduler.call_soon, clock_ns or ManualClock(), turn_ns)
    executor = Executor(engine, telemetry, limit_checker, authentication, backend, turns)
    server = Server(executor, engine, authentication, telemetry.metrics, connections, sliced_bytes, scheduler, turns)
    return InMemoryServer(engine, telemetry, limit_checker, authentication, executor, server, sliced_bytes, backend)


def connect(
    limits: Limits | None = None, *, token: str | None = None, uid: int | None = os.geteuid(), **window: int
) -> "InMemoryClient":
    """A connection to a server of its own. ``window``: the limits of its history."""
    server = build(limits, window=WindowLimits(**window), tokens={token: None} if token else {})
    return server.connect(uid)


def deadlines_us(database: Database) -> list[int]:
    """In how many microseconds each deadline was that the database set a timer for."""
    calls = database.scheduler.calls_of(database.expirer)  # type: ignore[attr-defined] # a ManualScheduler
    return [round((call.delay_s - TIMER_GRAIN_S) * 1_000_000) for call in calls]


def in_steps(work: Steps[Result]) -> Iterator[Result | None]:
    """None after each step of ``work``, at last its result."""
    yield (yield from work)


def _fail(error: BaseException) -> None:
    raise error


class InMemoryServer:
    """A database, what runs requests against it, and the server of its connections. Made by ``build``."""

    def __init__(
        self,
        engine: Engine,
        telemetry: Telemetry,
        limits: LimitChecker,
        authentication: Authentication,
        executor: Executor,
        server: Server,
        sliced: HeldBytes,
        backend: Any,  # noqa: ANN401 - a FakeBackend, or the test's own
    ) -> None:
        self.engine = engine
        self.telemetry = telemetry
        self.limits = limits
        self.authentication = authentication
        self.executor = executor
        self.server = server
        self._sliced = sliced
        self.backend = backend
        self.database = engine.database
        self.durability: Any = engine.durability
        self.timer: Any = self.database.timer
        self.scheduler: Any = self.database.scheduler
        self.snapshots = engine.snapshots
        self.feeds = engine.feeds
        self.near_caches = engine.near_caches
        self.metrics = telemetry.metrics
        self.slow_log = telemetry.slow_log
        self.hot_keys = telemetry.hot_keys

    # ------------------------------------------------------------------ connections

    def connect(self, uid: int | None = os.geteuid(), name: str = "test") -> "InMemoryClient":
        """A connection over the Unix socket, or with ``uid=None`` over TCP; of the daemon's own user by default."""
        return InMemoryClient(self, Peer(name, uid))

    def connect_as(self, identity: Identity) -> "InMemoryClient":
        """A connection of a client that has shown who it is, with the rights that the rules give it."""
        peer = Peer("somebody", identity.uid, gids=identity.gids)
        peer.identity = identity
        peer.is_authenticated = True
        peer.apply_access(self.access)
        return InMemoryClient(self, peer)

    def open(self, pid: int) -> FakeTransport:
        """A connection of a process with a session, as an event loop would make it."""
        return FakeTransport(self.server, Peer(f"pid {pid}", 1000, pid, "test"))

    @asynccontextmanager
    async def listening(
        self, path: str, make_session: Callable[[], asyncio.BaseProtocol] | None = None
    ) -> AsyncIterator[None]:
        """Serve a Unix socket; ``make_session`` makes the session of each connection, if it is not the daemon's own."""
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            make_session = make_session or (lambda: Session(self.server))
            await self.server.listen(listening, make_session, own=True, goodbye=GOODBYE)
            try:
                yield
            finally:
                await self.server.stop()

    async def flush(self) -> None:
        """Write and sync what is in the log, which there is."""
        await self.durability.flush()

    async def close(self) -> None:
        """Write what is left to the log, if there is one."""
        if self.durability.may_wait:
            await self.durability.close()

    # ------------------------------------------------------------------ settings

    @property
    def access(self) -> Access:
        """The access rules in force."""
        return self.authentication.access

    def set_rules(self, rules: Sequence[AccessRule]) -> None:
        """Put other access rules in force, for connections to come."""
        self.authentication.access = Access(rules)

    def set_limits(self, limits: Limits) -> None:
        """Put other limits in force."""
        self.executor.set_limits(limits)

    def never_batch_sets(self) -> None:
        """Run each set at once, instead of those of one turn of the loop together."""
        self.server.set_batch.accepts = lambda requests: False  # type: ignore[method-assign, assignment]

    def share_table(self) -> GenerationTable:
        """Make the table of generations that near caches share, as the first of them does when it attaches."""
        return self.database.generations.create(1 << 10, notes_changes=True)

    # ------------------------------------------------------------------ looking

    @property
    def sliced_bytes(self) -> int:
        """What the frames that run in slices hold: their input, and their replies so far."""
        return self._sliced.total

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
        self.server.executor.disconnect(self.peer)

    # ------------------------------------------------------------------ frames

    def frame(self, payload: bytes) -> Any:  # noqa: ANN401 - whatever the server replies
        """The reply to a frame's payload, as the client decodes it."""
        try:
            requests = decode_batch(payload)
        except DECODE_ERRORS as error:
            return msgspec.msgpack.decode(encode_replies(error_reply("bad_request", str(error))))
        result = self.server.executor.run(requests, self.peer, len(payload))
        if result is None:  # as the session does
            work = self.server.server.sliced_runs.run_requests(requests, self.peer)
            return checked(joined(in_steps(work)), len(requests))
        reply = msgspec.msgpack.decode(result[0][4:])
        return reply if isinstance(reply, dict) else checked(reply, len(requests))

    def slices(self, payload: bytes) -> Iterator[Result | None]:
        """Run a frame as large frames run: None after each slice, at last the pieces of the reply and what it needs."""
        return in_steps(self.server.server.sliced_runs.run_payload(memoryview(payload), self.peer))

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
        result = self.server.executor.run(requests, self.peer, frame_bytes)
        return None if result is None else msgspec.msgpack.decode(result[0][4:])

    def run_with_position(self, requests: Sequence[AnyRequest], frame_bytes: int) -> tuple[Any, LogPosition]:
        """The replies to decoded requests, and what they wait for."""
        result = self.server.executor.run(requests, self.peer, frame_bytes)
        if result is None:
            pieces, position = run_to_end(self.server.server.sliced_runs.run_requests(requests, self.peer))
            result = b"".join(pieces), position
        return msgspec.msgpack.decode(result[0][4:]), result[1]

    def run_slice(self, requests: Sequence[AnyRequest], budget_bytes: int) -> tuple[list[Any], LogPosition]:
        """Run one slice of a large frame; the replies, and what they wait for."""
        replies, _, position = self.server.executor.run_slice(requests, self.peer, budget_bytes)
        return replies, position

    def run_one(self, request: AnyRequest) -> Any:  # noqa: ANN401 - whatever the server replies
        """The reply to one decoded request."""
        ((reply,), _) = self.run_slice([request], 1 << 30)
        return reply

    def set_each(self, requests: list[Set]) -> object:
        """Run sets as those of several frames of one turn of the loop run."""
        return self.server.executor.set_each(requests, self.peer)
