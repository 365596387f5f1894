"""What each request does: the table of commands, and how a frame's requests are run through it.

Requests run in order. A run of gets, or of sets, goes to the store in one call: taking them together does away
with most of what Python costs for each.
"""

import hmac
import logging
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, groupby
from time import perf_counter_ns
from typing import Any

from kvd import __version__
from kvd.engine.backup import Backup
from kvd.engine.database import Database
from kvd.engine.durability import NO_WAIT, LogDurability, LogPosition
from kvd.engine.errors import EngineError
from kvd.engine.feeds import Feed, Feeds
from kvd.engine.near_cache import NearCaches, refuse_leases
from kvd.engine.snapshots import Snapshots
from kvd.journal.errors import NoSpace
from kvd.protocol import messages
from kvd.protocol.limits import Limits
from kvd.protocol.messages import AnyRequest
from kvd.requests import needs, permissions
from kvd.requests.access import CACHE, WATCH, Access, Grant, Identity
from kvd.requests.errors import RequestError, error_for, error_reply
from kvd.requests.keys import named_keys
from kvd.requests.limits import Checks
from kvd.requests.reads import Reading
from kvd.requests.reply_size import may_exceed, reply_bytes
from kvd.requests.writes import Writing
from kvd.server.peers import Peer
from kvd.store.errors import OutOfMemory, StoreError
from kvd.store.largest import largest
from kvd.telemetry.exposition import exposition
from kvd.telemetry.hot_keys import SAMPLE_EVERY, HotKeys
from kvd.telemetry.metrics import SAMPLED, ServerMetrics
from kvd.telemetry.slow_log import LARGE_VALUE_BYTES, Entry, SlowLog

logger = logging.getLogger(__name__)

Reply = Any
Refused = dict[str, object]
# These may take a millisecond each, or more: together they do not run in one turn of the loop.
_COSTLY = frozenset(
    (messages.Scan, messages.History, messages.Log, messages.Commit, messages.Largest, messages.GetMany, messages.Fetch)
)
_SEES_ALL = frozenset((messages.Scan, messages.Begin, messages.Largest))
# So many keys, or slow frames, are told at once.
MAX_TOLD = 1_000


class Administration:
    """What the process offers to administrators; the service layer fills it in."""

    def status(self) -> list[tuple[str, str | int]]:
        """Name and value of all that ``kv status`` shows."""
        raise NotImplementedError

    def reload(self) -> list[str]:
        """Read the configuration again; what changed, in words. Raises Refusal with the reason if it cannot be."""
        raise NotImplementedError

    def checkpoint(self) -> int:
        """Begin a checkpoint of all that is there; the version that it will cover. Raises Refusal if it cannot be."""
        raise NotImplementedError

    def figures(self) -> list[tuple[str, int]]:
        """Name and value of what the process counts."""
        return []

    def resident_bytes(self) -> int:
        """Resident memory of the process; 0 if it is not known."""
        return 0

    def shutdown(self) -> int:
        """Begin an orderly stop once the reply is on its way; return the process id."""
        raise NotImplementedError


class Commands:
    """Runs requests against the database."""

    def __init__(
        self,
        database: Database,
        limits: Limits,
        administration: Administration,
        tokens: Mapping[str, str | None],
        *,
        durability: LogDurability | None = None,
        near_caches: NearCaches | None = None,
    ) -> None:
        self.database = database
        self._store = database.store
        self.measures = ServerMetrics(database.store.version)
        self._until_timed = SAMPLED
        self._checks = Checks(limits)
        self.snapshots = Snapshots(database.store, database.timer, database.scheduler)
        self.limits = limits
        self.access = Access()
        self.administration = administration
        self.tokens = tokens  # and whose they are, where they have names
        self.feeds = Feeds(database)
        self.near_caches = near_caches or NearCaches(
            database.generations, database.scheduler, refuse_leases, notes_changes=True
        )
        # None while everything is in memory only.
        self.durability = durability
        self.needs = NO_WAIT
        # What the frames that run in slices hold: their input, and their replies so far.
        self.sliced_bytes = 0
        self.slow_log = SlowLog()
        self.hot_keys = HotKeys()
        self._gets_to_pass = SAMPLE_EVERY  # until one is looked at
        # When the frame that runs began, if it is measured (else 0): until its replies are encoded.
        self.began_ns = 0
        # Called before requests run: what was put aside of those before them runs first (``turn.py``).
        self.before_others: Callable[[], None] = _nothing
        self._reading = reading = Reading(database, self._checks, self.snapshots, self.near_caches, self.measures)
        self._writing = writing = Writing(database, self._checks)
        self._handlers: dict[type, Callable[[Any, Peer], Reply]] = {
            messages.Hello: self._hello,
            messages.Attach: self._attach,
            messages.Ping: self._ping,
            messages.Get: reading.get,
            messages.GetMany: reading.get_many,
            messages.Fetch: reading.fetch,
            messages.Set: writing.set,
            messages.Delete: writing.delete,
            messages.Increment: writing.increment,
            messages.Commit: writing.commit,
            messages.Begin: reading.begin,
            messages.End: reading.end,
            messages.Scan: reading.scan,
            messages.Touch: writing.touch,
            messages.Ttl: reading.ttl,
            messages.History: reading.history,
            messages.Log: reading.log,
            messages.VersionAt: reading.version_at,
            messages.Watch: self._watch,
            messages.Metrics: self._metrics,
            messages.Exposition: self._exposition,
            messages.Status: self._status,
            messages.Reload: self._reload,
            messages.Access: self._explain_access,
            messages.SlowLog: self._slow_log,
            messages.Largest: self._largest,
            messages.Hottest: self._hottest,
            messages.Checkpoint: self._checkpoint,
            messages.Backup: self._backup,
            messages.Shutdown: self._shutdown,
        }

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self._checks.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._checks.limits = limits
        self.database.outcomes.limit = limits.max_remembered_writes
        self.snapshots.idle_us = limits.snapshot_idle_timeout_ms * 1000

    def forget(self, peer: Peer) -> None:
        """A connection has ended: give back what hung on it."""
        self.feeds.close(peer)
        self.snapshots.release(peer)
        self.near_caches.detach(peer)
        self.database.delete_owned(peer, peer.author)

    def run(self, requests: Sequence[AnyRequest], peer: Peer, frame_bytes: int) -> list[Reply] | Refused | None:
        """Run a frame's requests; one reply for each, or a map that refuses the frame.

        None if nothing has run because it may take too long for one turn of the loop: see ``large_frames.py``.
        ``frame_bytes`` is the size of the frame they came in: no key or value in it can be larger. Afterwards ``needs``
        says what the replies have to wait for.
        """
        self.before_others()
        self._until_timed = left = self._until_timed - 1
        began_ns = 0 if left else self._begin_timing()
        if not self.database.expire_due_bounded() and peer.greeted and not self.may_run(requests):
            return None
        replies: list[Reply] | Refused | None
        if peer.grant is not None and not self.allows(requests, peer.grant):
            self.began_ns = perf_counter_ns()
            replies = self._run_allowed(requests, peer)
        elif (
            type(request := requests[0]) is messages.Get
            and len(requests) == 1
            and peer.greeted
            and (largest_bytes := self._store.largest_value_bytes) <= self._checks.limits.max_reply_bytes
        ):
            # The commonest frame of all, without the detour through the table.
            self.began_ns = perf_counter_ns() if largest_bytes >= LARGE_VALUE_BYTES else 0
            replies = [self._reading.get(request, peer)]
            self._gets_to_pass -= 1
            if not self._gets_to_pass:
                self._gets_to_pass = self.hot_keys.sample_get(request.key)
        else:
            self.began_ns = perf_counter_ns()
            replies = self._run(requests, peer, frame_bytes)
            if not self.began_ns % SAMPLE_EVERY and replies is not None:
                self.hot_keys.look(requests)
        if self.durability is not None and replies is not None:
            self.needs = needs.position_for(self.durability, self.database, _answered(requests, replies, peer))
        if began_ns and replies is not None:
            self.measures.note_frame(requests, began_ns)
        return replies

    def note_slow(self, requests: Sequence[AnyRequest], peer: Peer, held_ns: int) -> None:
        """These held the loop for long."""
        self.slow_log.note(requests, peer.author, held_ns // 1_000, time.time_ns() // 1_000)

    def _begin_timing(self) -> int:
        self._until_timed = SAMPLED
        return perf_counter_ns()

    def _run(self, requests: Sequence[AnyRequest], peer: Peer, frame_bytes: int) -> list[Reply] | Refused | None:
        limits, largest_bytes = self._checks.limits, self._store.largest_value_bytes
        if len(requests) > limits.max_requests_per_frame:
            return self.too_many(len(requests))
        kinds = set(map(type, requests))
        if len(requests) > 1 and not kinds.isdisjoint(_COSTLY) and peer.greeted and sum(map(is_costly, requests)) > 1:
            return None
        budget_bytes, largest_bytes = limits.max_reply_bytes, max(largest_bytes, frame_bytes)
        if not peer.greeted or may_exceed(budget_bytes, kinds, len(requests), frame_bytes, largest_bytes):
            return self._run_counting(requests, peer, budget_bytes)[0]
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
            return self._reading.get_each(requests)
        if kind is messages.Set and frame_bytes <= self._checks.limits.max_value_bytes:
            return self._set_each(requests, peer)
        return [self.run_one(request, peer) for request in requests]

    def _set_each(self, requests: Sequence[messages.Set], peer: Peer) -> list[Reply]:
        try:
            versions: list[Reply] | None = self._writing.set_each(requests, peer)
        except (NoSpace, OutOfMemory):
            versions = None  # for all of them together; some may fit
        return [self.run_one(request, peer) for request in requests] if versions is None else versions

    def set_together(self, requests: list[messages.Set], peer: Peer) -> tuple[list[int], LogPosition] | None:
        """Sets out of several small frames of one author; their versions, and what all the replies have to wait for.

        None, with nothing done, if they need a closer look, each frame by itself.
        """
        self.began_ns = perf_counter_ns()
        self._until_timed = left = self._until_timed - 1
        began_ns = 0 if left else self._begin_timing()
        self.may_run(requests)
        try:
            versions = self._writing.set_each(requests, peer)
        except (NoSpace, OutOfMemory):
            return None
        if versions is None:
            return None
        if not self.began_ns % SAMPLE_EVERY:
            self.hot_keys.look(requests)
        took_ns = perf_counter_ns() - self.began_ns
        if took_ns >= self.slow_log.threshold_ns:
            self.note_slow(requests, peer, took_ns)
        if began_ns:
            self.measures.note_frame(requests, began_ns)
        if self.durability is None:
            return versions, NO_WAIT
        return versions, needs.position_for(self.durability, self.database, requests)

    def may_run(self, requests: Sequence[AnyRequest]) -> bool:
        """Let expire what these could see; False if they could see all, and that takes longer than one step."""
        if self.database.expire_due_bounded():
            return True
        if any(map(_sees_all, requests)):
            return False
        self.database.expire_named(chain.from_iterable(map(named_keys, requests)))
        return True

    def allows(self, requests: Sequence[AnyRequest], grant: Grant) -> bool:
        """Whether all of ``requests`` may run."""
        return permissions.may_run_all(requests, grant)

    def _run_allowed(self, requests: Sequence[AnyRequest], peer: Peer) -> list[Reply] | Refused | None:
        """Run those that may run, and refuse each of the others."""
        if len(requests) > self.limits.max_requests_per_frame:
            return self.too_many(len(requests))
        if peer.greeted and sum(map(is_costly, requests)) > 1:
            return None
        return self._run_counting(requests, peer, self.limits.max_reply_bytes)[0]

    def may_go_on(self, peer: Peer) -> bool:
        """Whether what ``peer`` is being told may still be told to it."""
        if isinstance(peer.feed, Feed):
            return peer.grant is None or peer.grant.may_prefix(WATCH, peer.feed.prefix)
        return peer.administrator

    def too_many(self, count: int) -> dict[str, object]:
        """The map that refuses a frame of too many requests."""
        return error_reply(
            "too_large", f"a frame has at most {self.limits.max_requests_per_frame} requests, not {count}"
        )

    def run_one(self, request: AnyRequest, peer: Peer) -> Reply:
        """Run one request; an error becomes its reply."""
        try:
            if not peer.greeted and type(request) is not messages.Hello:
                raise RequestError("unauthenticated", "say hello with a token first")
            permissions.check(request, peer.grant)
            return self._handlers[type(request)](request, peer)
        except RequestError as refusal:
            reply = refusal.reply()
        except EngineError as error:
            reply = error_reply(error.code, error.message)
        except StoreError as error:
            reply = error_for(error).reply()
        except NoSpace as error:
            reply = error_reply("no_space", str(error))
        except Exception:
            logger.exception("internal error in %s of %s", type(request).__name__, peer.name)
            reply = error_reply("internal", "a fault in the server; its logging says more")
        self.measures.errors[str(reply["error"])] += 1
        return reply

    def run_counting(self, requests: Sequence[AnyRequest], peer: Peer, budget_bytes: int) -> tuple[list[Reply], int]:
        """Run requests one by one, replacing each reply that does not fit into ``budget_bytes``; and what is left.

        They must be such that ``may_run`` says so. Afterwards ``needs`` says what the replies have to wait for.
        """
        self.before_others()
        replies, budget_bytes = self._run_counting(requests, peer, budget_bytes)
        requests = _answered(requests, replies, peer)
        if not perf_counter_ns() % SAMPLE_EVERY:
            self.hot_keys.look(requests)
        if self.durability is not None:
            self.needs = needs.position_for(self.durability, self.database, requests)
        return replies, budget_bytes

    def _run_counting(self, requests: Sequence[AnyRequest], peer: Peer, budget_bytes: int) -> tuple[list[Reply], int]:
        replies: list[Reply] = []
        for request in requests:
            reply = self.run_one(request, peer)
            size = reply_bytes(request, reply)
            if size > budget_bytes:
                text = f"the reply of {size} bytes does not fit into a frame of {self.limits.max_reply_bytes}"
                reply = error_reply("reply_too_large", text)
            else:
                budget_bytes -= size
            replies.append(reply)
        return replies, budget_bytes

    def _watch(self, request: messages.Watch, peer: Peer) -> bool:
        """The session does the rest, once this reply has left."""
        self._check_free(peer)
        self._checks.prefix(request.prefix)
        limit = sys.maxsize if peer.administrator else self.limits.max_watches_per_uid
        user = peer.identity if peer.uid is None else peer.uid
        peer.feed = self.feeds.open(peer, user, request.prefix, request.from_version, limit)
        return True

    def _backup(self, request: messages.Backup, peer: Peer) -> bool:
        """As with a watch."""
        self._check_administrator(peer, "backup")
        self._check_free(peer)
        peer.feed = Backup(self.database, secrets.randbits(64))
        self.feeds.add(peer, peer.feed)
        logger.info("backup begun by %s", peer.name)
        return True

    def _check_free(self, peer: Peer) -> None:
        if peer.feed is not None:
            raise RequestError("bad_request", "this connection is told something already; open another one")

    # ------------------------------------------------------------------ the server itself

    def _hello(self, request: messages.Hello, peer: Peer) -> list[object]:
        if request.protocol != messages.PROTOCOL:
            text = f"this server speaks protocol {messages.PROTOCOL}, not {request.protocol}"
            raise RequestError("unsupported_protocol", text, protocols=[messages.PROTOCOL])
        if not peer.greeted:
            token = self.match_token((request.token or "").encode())
            if token is None:
                logger.warning("refused %s: wrong or missing token", peer.name)
                raise RequestError("unauthenticated", "wrong or missing token")
            self.authenticate(peer, token)
        database = self.database
        return [messages.PROTOCOL, __version__, database.store_id, database.store.version, self.limits]

    def match_token(self, given: bytes) -> str | None:
        """The token that was given, if there is such a one. All of them are compared, whichever it is."""
        known = [token for token in self.tokens if hmac.compare_digest(given, token.encode())]
        return known[0] if known else None

    def authenticate(self, peer: Peer, token: str) -> None:
        """``peer`` has shown this token, which is one of ours."""
        peer.token = token
        peer.authenticate_as(Identity(token=self.tokens[token]))
        peer.allow(self.access)

    def token_is_valid(self, peer: Peer) -> bool:
        """Whether the token that ``peer`` has shown, if it has, is valid still, and under the same name."""
        shown = peer.token
        return shown is None or (shown in self.tokens and self.tokens[shown] == peer.identity.token)

    def _attach(self, request: messages.Attach, peer: Peer) -> tuple[int, int, int, int]:
        """The session sends the table with the reply."""
        if peer.uid is None:
            raise RequestError("bad_request", "a near cache needs a Unix socket: over TCP nothing can be shared")
        if not peer.fresh or peer.descriptor is not None:
            raise RequestError("bad_request", "attach belongs into the first frame of a connection, once")
        if peer.grant is not None and not peer.grant.may_anywhere(CACHE):
            raise RequestError("forbidden", "no right to a near cache")
        reply, peer.descriptor = self.near_caches.attach(peer)
        return reply

    def _ping(self, request: messages.Ping, peer: Peer) -> bool:
        return True

    def _metrics(self, request: messages.Metrics, peer: Peer) -> list[tuple[str, int]]:
        measures = self.measures
        counted = [("get_misses", measures.get_misses), ("conflicts", measures.conflicts)]
        return [*self.database.metrics(), *counted, *self.administration.figures()]

    def _exposition(self, request: messages.Exposition, peer: Peer) -> str:
        return exposition(self).decode()

    def _status(self, request: messages.Status, peer: Peer) -> list[tuple[str, str | int]]:
        return self.administration.status()

    def _reload(self, request: messages.Reload, peer: Peer) -> list[str]:
        self._check_administrator(peer, "reload")
        return self.administration.reload()

    def _explain_access(self, request: messages.Access, peer: Peer) -> tuple[list[str], str, list[str]]:
        self._check_administrator(peer, "access")
        self._checks.key(request.key)
        who = Identity(
            uid=request.uid, gids=frozenset(request.gids), certificate=request.certificate, token=request.token
        )
        return self.access.explain(who, request.key)

    def _slow_log(self, request: messages.SlowLog, peer: Peer) -> list[Entry]:
        self._check_administrator(peer, "slowlog")
        _check_told(request.limit)
        entries = self.slow_log.newest(request.limit)
        if request.reset:
            self.slow_log.reset()
        return entries

    def _largest(self, request: messages.Largest, peer: Peer) -> tuple[list[tuple[str, int]], str | None]:
        self._check_administrator(peer, "the largest keys")
        self._checks.prefix(request.start)
        _check_told(request.limit)
        return largest(self._store, request.start, request.limit)

    def _hottest(self, request: messages.Hottest, peer: Peer) -> tuple[int, list[tuple[str, int]]]:
        self._check_administrator(peer, "the hottest keys")
        _check_told(request.limit)
        sampled = self.hot_keys.reads if request.by == "reads" else self.hot_keys.writes
        return sampled.most(request.limit)

    def _checkpoint(self, request: messages.Checkpoint, peer: Peer) -> int:
        self._check_administrator(peer, "checkpoint")
        return self.administration.checkpoint()

    def _shutdown(self, request: messages.Shutdown, peer: Peer) -> list[int]:
        self._check_administrator(peer, "shutdown")
        logger.info("shutdown asked for by %s", peer.name)
        return [self.administration.shutdown()]

    def _check_administrator(self, peer: Peer, what: str) -> None:
        if not peer.administrator:
            logger.warning("refused %s: may not ask for %s", peer.name, what)
            raise RequestError(
                "forbidden", f"only root and the daemon's own user may ask for {what}, over the Unix socket"
            )


def _check_told(limit: int) -> None:
    if not 1 <= limit <= MAX_TOLD:
        raise RequestError("bad_request", f"a limit is 1 to {MAX_TOLD}")


def is_costly(request: AnyRequest) -> bool:
    """Whether a request may take a millisecond or more: of reads one of the past, for a key may have many versions."""
    kind = type(request)
    if kind is messages.GetMany or kind is messages.Fetch:
        return request.at is not None  # type: ignore[union-attr]
    return kind in _COSTLY and (kind is not messages.Commit or bool(request.ranges))  # type: ignore[union-attr]


def _sees_all(request: AnyRequest) -> bool:
    """Whether it may show keys that it does not name."""
    kind = type(request)
    return kind in _SEES_ALL or (kind is messages.Commit and bool(request.ranges))  # type: ignore[union-attr]


def _answered(requests: Sequence[AnyRequest], replies: list[Reply] | Refused, peer: Peer) -> Sequence[AnyRequest]:
    """Those that were not denied: a denial shows nothing, and must not tell what there is by how long it takes."""
    if peer.grant is None or isinstance(replies, dict):
        return requests
    both = zip(requests, replies, strict=True)
    return [request for request, reply in both if type(reply) is not dict or reply["error"] != "forbidden"]


def _nothing() -> None:
    """Nothing was put aside."""
