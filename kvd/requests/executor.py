"""Runs a frame: its requests in; out come the bytes of its reply, and the log position that they wait for.

        requests ──▶ expire what they could see ──▶ check rights ──▶ run each by its row ──▶ (bytes, position)
                          │ much is due, or the requests may take long
                          └──▶ None: nothing has run; the frame must run in steps (``sliced.py``)

Requests run in order. Neighbouring gets, or sets, go to the store in one call, which saves most of Python's overhead.
The return value holds the whole result of a frame; nothing is left on this object.

What a frame may cost is judged before anything is computed from it: by its row in the table, by the number of keys, and
by the size of the values that it reads. What it did cost counts in this turn of the loop (``turns.py``).
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from itertools import chain, groupby, islice
from time import perf_counter_ns
from types import GeneratorType
from typing import Any, TypeVar

from kvd.engine.durability import NO_WAIT, LogPosition
from kvd.engine.engine import Engine
from kvd.engine.errors import EngineError, NoSpace
from kvd.protocol import HEADER_BYTES, messages
from kvd.protocol.limits import Limits
from kvd.protocol.messages import AnyRequest, encode_replies
from kvd.requests import permissions
from kvd.requests.admin import AdminBackend, AdminHandlers
from kvd.requests.authentication import Authentication
from kvd.requests.costs import PIECE_VALUE_BYTES, Costs
from kvd.requests.errors import RequestError, error_for, error_reply, internal_error
from kvd.requests.limits import LimitChecker
from kvd.requests.needs import Needs
from kvd.requests.peer import Peer
from kvd.requests.reads import ReadHandlers
from kvd.requests.reply_pieces import bytes_in_steps, too_large
from kvd.requests.reply_size import may_exceed, reply_bytes
from kvd.requests.streams import StreamHandlers
from kvd.requests.table import (
    CHEAP_US,
    MAY_SEE_ALL,
    TABLE,
    bind_handlers,
    named_keys,
    quoted_keys,
    sampled_keys,
    sees_all,
)
from kvd.requests.turns import Steps, Turns, run_to_end
from kvd.requests.writes import WriteHandlers
from kvd.store.errors import StoreError
from kvd.telemetry.hot_keys import SAMPLE_EVERY
from kvd.telemetry.metrics import MIXED, SAMPLED
from kvd.telemetry.slow_log import LARGE_VALUE_BYTES
from kvd.telemetry.telemetry import Telemetry

logger = logging.getLogger(__name__)

Reply = Any
ErrorReply = dict[str, object]
Result = TypeVar("Result")

_EXPIRED_IN_ONE_STEP = 256
_GETS: AbstractSet[type] = {messages.Get}


class Executor:
    """Runs requests against the engine. ``hello`` is the only request of a client that is not authenticated."""

    def __init__(
        self,
        engine: Engine,
        telemetry: Telemetry,
        limits: LimitChecker,
        authentication: Authentication,
        backend: AdminBackend,
        turns: Turns,
    ) -> None:
        self._engine = engine
        self._database = engine.database
        self._store = engine.database.store
        self._telemetry = telemetry
        self._metrics = telemetry.metrics
        self._slow_log = telemetry.slow_log
        self._hot_keys = telemetry.hot_keys
        self._limits = limits
        self._turns = turns
        self._needs = Needs(engine.database, engine.durability)
        self._may_wait = engine.durability.may_wait
        self._reads = ReadHandlers(engine.database, limits, engine.snapshots, telemetry.metrics)
        self._writes = WriteHandlers(engine.database, limits)
        self._costs = Costs(engine.database, limits, self._writes.needs_room)
        self._admin = AdminHandlers(engine, telemetry, limits, authentication, backend)
        streams = StreamHandlers(engine, limits)
        self._handlers = bind_handlers(self._reads, self._writes, streams, authentication, self._admin)
        self.set_limits(limits.limits)
        self._frames_until_timed = SAMPLED
        self._lone_until_timed = SAMPLED
        self._gets_until_sampled = SAMPLE_EVERY

    # ------------------------------------------------------------------ a frame

    def run(self, requests: Sequence[AnyRequest], peer: Peer, frame_bytes: int) -> tuple[bytes, LogPosition] | None:
        """Run a frame's requests. Return the reply frame, and what it waits for.

        Return None, with nothing done, if that may take too long for one step of the loop: the frame must then run in
        steps. ``frame_bytes`` is the size of the frame: no key or value in it can be larger.
        """
        self._frames_until_timed = frames = self._frames_until_timed - 1
        timed_ns = 0 if frames else self._begin_timing()
        is_expired = self._database.expire_due_bounded()
        is_lone_get = len(requests) == 1 and type(requests[0]) is messages.Get
        kinds = _GETS if is_lone_get else set(map(type, requests))
        if not is_lone_get and self._costs.may_take_long(requests, kinds, peer, frame_bytes):
            return None
        if not is_expired and peer.is_authenticated and not self.can_run(requests):
            return None
        replies: list[Reply] | ErrorReply
        began_ns = 0  # 0: this frame is not measured for the slow log
        if peer.is_restricted and not permissions.permits_all(requests, peer.grant):
            began_ns = perf_counter_ns()
            replies = self._run_restricted(requests, peer)
        elif (
            is_lone_get
            and peer.is_authenticated
            and (largest_bytes := self._store.largest_value_bytes) <= self._limits.limits.max_reply_bytes
        ):
            # The most common frame by far skips the table.
            if largest_bytes >= LARGE_VALUE_BYTES:
                if largest_bytes > PIECE_VALUE_BYTES < self._costs.value_bytes(requests[0]):
                    return None
                began_ns = perf_counter_ns()
            request: Any = requests[0]
            replies = [self._reads.get(request, peer)]
            self._gets_until_sampled -= 1
            if not self._gets_until_sampled:
                self._gets_until_sampled = self._hot_keys.sample_get(request.key)
        else:
            began_ns = perf_counter_ns()
            replies = self._run(requests, kinds, peer, frame_bytes)
            if not began_ns % SAMPLE_EVERY:
                self._hot_keys.sample_frame(requests, sampled_keys)
        position = self._needs.position_for(_allowed(requests, replies, peer)) if self._may_wait else NO_WAIT
        if timed_ns:
            self._add_timed(requests, timed_ns)
        encoded = encode_replies(replies)
        if began_ns:
            held_ns, turns = perf_counter_ns() - began_ns, self._turns
            turns.spent_ns += held_ns
            if turns.spent_ns >= turns.turn_ns:
                turns.note()
            if held_ns >= self._slow_log.threshold_ns:
                self._add_slow(requests, peer, held_ns)
        return len(encoded).to_bytes(HEADER_BYTES, "big") + encoded, position

    def _run(
        self, requests: Sequence[AnyRequest], kinds: AbstractSet[type], peer: Peer, frame_bytes: int
    ) -> list[Reply] | ErrorReply:
        limits, largest_bytes = self._limits.limits, self._store.largest_value_bytes
        if len(requests) > limits.max_requests_per_frame:
            return self.too_many(len(requests))
        budget_bytes, largest_bytes = limits.max_reply_bytes, max(largest_bytes, frame_bytes)
        if not peer.is_authenticated or may_exceed(budget_bytes, kinds, len(requests), frame_bytes, largest_bytes):
            return self._run_within(requests, peer, budget_bytes)[0]
        if len(kinds) == 1:
            return self._run_alike(requests, peer, frame_bytes)
        replies: list[Reply] = []
        for _, group in groupby(requests, type):
            replies += self._run_alike(list(group), peer, frame_bytes)
        return replies

    def _run_alike(self, requests: Sequence[Any], peer: Peer, frame_bytes: int) -> list[Reply]:
        """Run requests of one kind."""
        kind = type(requests[0])
        if kind is messages.Get:
            return self._reads.get_each(requests)
        if kind is messages.Set and frame_bytes <= self._limits.limits.max_value_bytes:
            versions = self._writes.set_each(requests, peer)
            if versions is not None:
                return versions
        return [self._run_one(request, peer) for request in requests]

    def _run_restricted(self, requests: Sequence[AnyRequest], peer: Peer) -> list[Reply] | ErrorReply:
        """Run the requests that the peer may have run, and deny each of the others."""
        if len(requests) > self.limits.max_requests_per_frame:
            return self.too_many(len(requests))
        return self._run_within(requests, peer, self.limits.max_reply_bytes)[0]

    def _run_within(self, requests: Sequence[AnyRequest], peer: Peer, budget_bytes: int) -> tuple[list[Reply], int]:
        replies: list[Reply] = []
        for request in requests:
            reply = self._run_one(request, peer)
            size = reply_bytes(request, reply)
            if size > budget_bytes:
                reply = too_large(size, self.limits.max_reply_bytes)
            else:
                budget_bytes -= size
            replies.append(reply)
        return replies, budget_bytes

    def _run_one(self, request: AnyRequest, peer: Peer) -> Reply:
        """Run one cheap request; an error becomes its reply."""
        try:
            if not peer.is_authenticated:
                _check_is_greeting(request)
            permissions.check(request, peer)
            reply = self._handlers[type(request)](request, peer)
            return run_to_end(reply) if type(reply) is GeneratorType else reply
        except Exception as error:
            return self._refusal(error, request, peer)

    def _refusal(self, error: Exception, request: AnyRequest, peer: Peer) -> ErrorReply:
        """Return the reply in place of an error, and count it."""
        match error:
            case RequestError():
                reply = error.reply()
            case EngineError():
                reply = error_reply(error.code, error.message)
            case StoreError():
                reply = error_for(error).reply()
            case NoSpace():
                reply = error_reply("no_space", str(error))
            case _:
                logger.error("internal error in %s of %s", type(request).__name__, peer.name, exc_info=error)
                reply = internal_error()
        self._metrics.errors[str(reply["error"])] += 1
        return reply

    # ------------------------------------------------------------------ sets of several frames

    def set_each(self, requests: list[messages.Set], peer: Peer) -> tuple[list[int], LogPosition] | None:
        """Run sets from several small frames of one author. Return their versions, and what all replies wait for.

        Return None, with nothing done, if each frame must run by itself.
        """
        began_ns = perf_counter_ns()
        self._frames_until_timed = frames = self._frames_until_timed - 1
        timed_ns = 0 if frames else self._begin_timing()
        if not self._database.expire_due_bounded():
            self.can_run(requests)
        versions = self._writes.set_each(requests, peer)
        if versions is None:
            return None
        if not began_ns % SAMPLE_EVERY:
            self._hot_keys.sample_frame(requests, sampled_keys)
        self._add_held(requests, peer, perf_counter_ns() - began_ns)
        if timed_ns:
            self._add_timed(requests, timed_ns)
        return versions, self._needs.position_for(requests) if self._may_wait else NO_WAIT

    # ------------------------------------------------------------------ parts of a frame, and requests of HTTP

    def run_slice(
        self, requests: Sequence[AnyRequest], peer: Peer, budget_bytes: int
    ) -> tuple[list[Reply], int, LogPosition]:
        """Run requests one by one. Return the replies, what is left of the budget, and what the replies wait for.

        A reply that does not fit into the budget is replaced by an error. ``can_run`` must have said yes.
        """
        replies, budget_bytes = self._run_within(requests, peer, budget_bytes)
        requests = _allowed(requests, replies, peer)
        if not perf_counter_ns() % SAMPLE_EVERY:
            self._hot_keys.sample_frame(requests, sampled_keys)
        position = self._needs.position_for(requests) if self._may_wait else NO_WAIT
        return replies, budget_bytes, position

    def run_in_steps(self, request: AnyRequest, peer: Peer) -> Steps[tuple[Reply, LogPosition]]:
        """Run a costly request. Return the reply, which may be of any size, and what it waits for."""
        reply = yield from self._reply_in_steps(request, peer)
        if not perf_counter_ns() % SAMPLE_EVERY:
            self._hot_keys.sample_frame((request,), sampled_keys)
        if not self._may_wait or not _allowed((request,), [reply], peer):
            return reply, NO_WAIT
        return reply, (yield from self._needs.position_in_steps(request))

    def _reply_in_steps(self, request: AnyRequest, peer: Peer) -> Steps[Reply]:
        """Run a costly request; an error becomes its reply. Counts are checked first, then rights."""
        try:
            if not peer.is_authenticated:
                _check_is_greeting(request)
            if (row := TABLE.get(type(request))) is not None:
                self._limits.counts(row.counts(request))
            yield from permissions.check_in_steps(request, peer)
            yield from self._expire_in_steps(request)
            reply = self._handlers[type(request)](request, peer)
            if type(reply) is GeneratorType:
                reply = yield from reply
            return reply
        except Exception as error:
            return self._refusal(error, request, peer)

    def _expire_in_steps(self, request: AnyRequest) -> Steps[None]:
        """As ``can_run`` for one costly request, and wait if all keys have to expire that are due."""
        database = self._database
        if database.expire_due_bounded():
            return
        if sees_all(request):
            since = database.timer()
            while not database.expire_due_at(since):
                yield
            return
        keys = iter(named_keys(request))
        while some := list(islice(keys, _EXPIRED_IN_ONE_STEP)):
            database.expire_named(some)
            yield

    def ask(self, request: AnyRequest, peer: Peer) -> Steps[tuple[Reply, LogPosition]]:
        """Run one request. Return the reply, and what it waits for."""
        if self._costs.of(request, peer) > CHEAP_US:
            reply, position = yield from self.run_in_steps(request, peer)
            size = yield from bytes_in_steps(request, reply)
            max_bytes = self.limits.max_reply_bytes
            return (reply if size <= max_bytes else too_large(size, max_bytes)), position
        yield from self.expire_for((request,))
        (reply,), _, position = self.run_slice((request,), peer, self.limits.max_reply_bytes)
        return reply, position

    def measured(self, work: Steps[Result], requests: Sequence[AnyRequest], peer: Peer) -> Steps[Result]:
        """Do ``work``, which runs ``requests``. A step that held the loop for long is added to the slow log."""
        while True:
            began_ns = perf_counter_ns()
            try:
                next(work)
            except StopIteration as end:
                self._note_slow(requests, peer, perf_counter_ns() - began_ns)
                result: Result = end.value
                return result
            self._note_slow(requests, peer, perf_counter_ns() - began_ns)
            yield

    def get(self, key: str, peer: Peer) -> tuple[Reply, LogPosition]:
        """Run one get, on the fast path if possible. Return the reply and what it waits for."""
        request = messages.Get(key)
        self.can_run((request,))
        if peer.is_restricted or self._store.largest_value_bytes >= LARGE_VALUE_BYTES:
            (reply,), _, position = self.run_slice((request,), peer, self.limits.max_reply_bytes)
            return reply, position
        reply = self._reads.get(request, peer)
        self._gets_until_sampled -= 1
        if not self._gets_until_sampled:
            self._gets_until_sampled = self._hot_keys.sample_get(key)
        return reply, self._needs.position_for((request,)) if self._may_wait else NO_WAIT

    def peek(self, key: str) -> tuple[bytes | None, int]:
        """Return a key's value and version now, (None, 0) if it is absent. Counts no get and checks no right."""
        self.can_run((messages.Get(key),))
        head = self._store.find(key)
        return (None, 0) if head is None or head.value is None else (head.value, head.version)

    def can_run(self, requests: Sequence[AnyRequest], since: int | None = None) -> bool:
        """Expire the due keys that ``requests`` could see. Return False if those are all keys and that takes long.

        ``since``: when requests came that such an answer has kept waiting; what was due then has to expire for them.
        """
        if self._database.expire_due_bounded():
            return True
        if not MAY_SEE_ALL.isdisjoint(map(type, requests)) and any(map(sees_all, requests)):
            return since is not None and self._database.expire_due_at(since)
        self._database.expire_named(chain.from_iterable(map(named_keys, requests)))
        return True

    def expire_for(self, requests: Sequence[AnyRequest]) -> Steps[None]:
        """Expire what ``requests`` could see and was due when they came."""
        since = self._database.timer()
        while not self.can_run(requests, since):
            yield

    def add_sliced(self, requests: Sequence[AnyRequest], seconds: float) -> None:
        """Count a frame that ran in steps for this long; a costly request alone in its frame counts by its kind."""
        if len(requests) != 1:
            self._metrics.sliced.observe(seconds)
            return
        self._lone_until_timed -= 1
        if not self._lone_until_timed:
            self._lone_until_timed = SAMPLED
            self._metrics.add_frame(_name(type(requests[0])), seconds)

    # ------------------------------------------------------------------ the rest

    def cost_us(self, request: AnyRequest, peer: Peer) -> int:
        """How many microseconds a request may take, with the values that it reads as they are now."""
        return self._costs.of(request, peer)

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self._limits.limits

    def set_limits(self, limits: Limits) -> None:
        """Replace the limits, after a reload."""
        self._limits.limits = limits
        self._database.outcomes.limit = limits.max_remembered_writes
        self._engine.snapshots.idle_us = limits.snapshot_idle_timeout_ms * 1_000

    @property
    def store_id(self) -> str:
        """The id of the store that versions belong to."""
        return self._database.store_id

    @property
    def version(self) -> int:
        """The newest version."""
        return self._store.version

    def now_us(self) -> int:
        """The time by the clock of deadlines, in microseconds."""
        return self._database.timer()

    def disconnect(self, peer: Peer) -> None:
        """Release everything that a closed connection owned."""
        engine = self._engine
        engine.feeds.close(peer)
        engine.snapshots.release(peer)
        engine.near_caches.detach(peer)
        engine.database.delete_owned(peer, peer.author)

    def too_many(self, count: int) -> ErrorReply:
        """Return the error reply to a frame of too many requests."""
        return error_reply(
            "too_large", f"a frame has at most {self.limits.max_requests_per_frame} requests, not {count}"
        )

    # ------------------------------------------------------------------ telemetry

    def _begin_timing(self) -> int:
        self._frames_until_timed = SAMPLED
        return perf_counter_ns()

    def _add_timed(self, requests: Sequence[AnyRequest], began_ns: int) -> None:
        seconds = (perf_counter_ns() - began_ns) * 1e-9
        is_mixed = len(requests) > 1 and len(set(map(type, requests))) > 1
        self._metrics.add_frame(MIXED if is_mixed else _name(type(requests[0])), seconds)

    def _add_held(self, requests: Sequence[AnyRequest], peer: Peer, held_ns: int) -> None:
        """Count the time of a frame that ran at once in this turn of the loop, and note it if it was long."""
        turns = self._turns
        turns.spent_ns += held_ns
        if turns.spent_ns >= turns.turn_ns:
            turns.note()
        if held_ns >= self._slow_log.threshold_ns:
            self._add_slow(requests, peer, held_ns)

    def _note_slow(self, requests: Sequence[AnyRequest], peer: Peer, held_ns: int) -> None:
        if held_ns >= self._slow_log.threshold_ns:
            self._add_slow(requests, peer, held_ns)

    def _add_slow(self, requests: Sequence[AnyRequest], peer: Peer, held_ns: int) -> None:
        kinds = [(_name(kind), count) for kind, count in Counter(map(type, requests)).most_common()]
        keys = chain.from_iterable(map(quoted_keys, requests))
        self._slow_log.add(kinds, keys, peer.author, held_us=held_ns // 1_000, ended_us=time.time_ns() // 1_000)


def _check_is_greeting(request: AnyRequest) -> None:
    if type(request) is not messages.Hello:
        raise RequestError("unauthenticated", "say hello with a token first")


def _name(kind: type) -> str:
    return str(kind.__struct_config__.tag)  # type: ignore[attr-defined]


def _allowed(requests: Sequence[AnyRequest], replies: list[Reply] | ErrorReply, peer: Peer) -> Sequence[AnyRequest]:
    """Requests that were not denied. A denial must not wait for durability, or its timing would show what exists."""
    if not peer.is_restricted or isinstance(replies, dict):
        return requests
    pairs = zip(requests, replies, strict=True)
    return [request for request, reply in pairs if type(reply) is not dict or reply["error"] != "forbidden"]
