"""The requests that read: current values, the values of a snapshot, and the past."""

from collections.abc import Sequence
from typing import Any

from kvd.engine.database import Database
from kvd.engine.generations import GenerationTable
from kvd.engine.snapshots import Snapshots
from kvd.protocol import messages
from kvd.requests.access import CACHE
from kvd.requests.errors import RequestError
from kvd.requests.limits import PAGE_BYTES, LimitChecker
from kvd.requests.peer import Peer
from kvd.store import reading
from kvd.store.following import Commits
from kvd.store.heads import LINKS
from kvd.store.history import Commit, Version, commits_from, newest_commits, versions_in_steps
from kvd.store.steps import STEP_KEYS, Steps, slices
from kvd.store.store import Page
from kvd.telemetry.metrics import ServerMetrics

Reply = Any
WITHOUT_END = -1
# A near cache asks again for an evictable key after this time, so that the server sees that the key is in use.
NEAR_CACHED_US = 10_000_000


class ReadHandlers:
    """The requests that change nothing. Each method is named in the table and returns the reply."""

    def __init__(
        self,
        database: Database,
        limits: LimitChecker,
        snapshots: Snapshots,
        metrics: ServerMetrics,
    ) -> None:
        self._database = database
        self._store = database.store
        self._limits = limits
        self._snapshots = snapshots
        self._generations = database.generations
        self._memory = database.memory
        self._metrics = metrics

    # ------------------------------------------------------------------ values

    def get(self, request: messages.Get, _: Peer) -> Reply:
        """Return the value or nil."""
        value = self._store.get(request.key)
        if value is None:
            return self._missed([request.key], 1)
        if (marks := self._memory.marks) is not None:
            marks.places[hash(request.key) & marks.mask] = 1
        return value

    def get_each(self, requests: Sequence[messages.Get]) -> list[Reply]:
        """Return the replies to a run of gets."""
        store = self._store
        first = store.first
        try:
            values: list[Reply] = [first[request.key].value for request in requests]
        except KeyError:
            values = store.get_many([request.key for request in requests])
        else:
            store.counters.get_operations += len(values)
        marks, complete = (
            self._memory.marks,
            all(values),
        )  # faster than `None in`; an empty value only takes the slower path
        if marks is not None and complete:
            marks.set_all([request.key for request in marks.sample(requests)])
        elif marks is not None:
            marks.set_found([request.key for request in requests], values)
        if not complete:
            for number, request in enumerate(requests):
                if values[number] is None:
                    values[number] = self._missed([request.key], 1)
        return values

    def get_many(self, request: messages.GetMany, peer: Peer) -> Reply | Steps[Reply]:
        """Return the values or nils; of many keys, or of the past, in steps."""
        self._limits.count(len(request.keys))
        if self._needs_steps(request):
            return self._get_many_in_steps(request, peer)
        values = self._store.get_many(request.keys, self._version(request.at, peer))
        if (marks := self._memory.marks) is not None:
            marks.set_found(request.keys, values)
        error = None if all(values) else self._missed(request.keys, values.count(None))
        return values if error is None else error

    def _needs_steps(self, request: messages.GetMany | messages.Fetch) -> bool:
        return len(request.keys) > STEP_KEYS or (request.at is not None and self._store.version - request.at > LINKS)

    def _get_many_in_steps(self, request: messages.GetMany, peer: Peer) -> Steps[Reply]:
        keys = request.keys
        values = yield from reading.values(self._store, keys, self._version(request.at, peer))
        self._store.counters.get_operations += len(keys)
        if (marks := self._memory.marks) is not None:
            marks.set_found(keys, values)
        error = None if all(values) else (yield from self._missed_in_steps(keys, values.count(None)))
        return values if error is None else error

    def fetch(self, request: messages.Fetch, peer: Peer) -> Reply | Steps[Reply]:
        """Return values with their versions, and what a near cache needs; of many keys, or of the past, in steps."""
        self._limits.count(len(request.keys))
        if self._needs_steps(request):
            return self._fetch_in_steps(request, peer)
        table = self._generations.table
        if table is not None and request.at is None and not peer.is_restricted and self._memory.marks is None:
            entries = self._entries(request.keys, table)
            if entries is not None:
                return entries
        items = self._store.fetch(request.keys, self._version(request.at, peer))
        if (marks := self._memory.marks) is not None:
            marks.set_found(request.keys, [value for value, _, _ in items])
        misses = 0 if all(version for _, version, _ in items) else sum(not version for _, version, _ in items)
        error = self._missed(request.keys, misses) if misses else None
        if error is not None:
            return error
        return self._fetched(request.keys, items, None if request.at is not None else table, peer)

    def _fetched(
        self, keys: Sequence[str], items: Sequence[reading.Row], table: GenerationTable | None, peer: Peer
    ) -> list[Any]:
        """Add to each item what a near cache needs; ``table`` is None if nothing may be cached."""
        if table is None:
            return [(value, version, None, None, deadline) for value, version, deadline in items]
        slots: list[tuple[int | None, int | None]] = list(table.slots_and_generations(keys))
        if peer.is_restricted:
            rights = peer.grant.rights
            slots = [slot if rights(key) & CACHE else (None, None) for slot, key in zip(slots, keys, strict=True)]
        if self._memory.marks is not None:
            items = self._with_short_deadlines(keys, items)
        return [
            (value, version, *slot, deadline) for (value, version, deadline), slot in zip(items, slots, strict=True)
        ]

    def _fetch_in_steps(self, request: messages.Fetch, peer: Peer) -> Steps[Reply]:
        keys, store = request.keys, self._store
        items = yield from reading.rows(store, keys, self._version(request.at, peer))
        table = None if request.at is not None else self._generations.table
        store.counters.get_operations += len(keys)
        if (marks := self._memory.marks) is not None:
            marks.set_found(keys, [value for value, _, _ in items])
        changed: set[str] = set()  # since the items were read: their generations belong to newer values
        reply: list[Any] = []
        with Commits(store) as commits:
            for begin in range(0, len(keys), STEP_KEYS):
                yield
                changed.update(head.key for head in commits.take())
                some = keys[begin : begin + STEP_KEYS]
                fetched = self._fetched(some, items[begin : begin + STEP_KEYS], table, peer)
                if changed:
                    fetched = [
                        (item[0], item[1], None, None, None) if key in changed else item
                        for key, item in zip(some, fetched, strict=True)
                    ]
                reply += fetched
        misses = sum(not version for _, version, _ in items)
        error = (yield from self._missed_in_steps(keys, misses)) if misses else None
        return reply if error is None else error

    def _entries(self, keys: list[str], table: GenerationTable) -> Reply | None:
        """Answer a fetch for a near cache on the fast path; return None if one of ``keys`` does not allow that."""
        store = self._store
        first = store.first
        try:
            heads = [first[key] for key in keys]
        except KeyError:
            return None
        for head in heads:
            if head.value is None:
                return None
        store.counters.get_operations += len(keys)
        deadlines = store.lifetimes.deadlines_of(keys)
        slots = table.slots_and_generations(keys)
        return [
            (head.value, head.version, slot, generation, deadline)
            for head, (slot, generation), deadline in zip(heads, slots, deadlines, strict=True)
        ]

    def _with_short_deadlines(self, keys: Sequence[str], items: Sequence[reading.Row]) -> list[reading.Row]:
        """Cap the near-cache lifetimes of evictable keys.

        Reads from a near cache are invisible to eviction, so a hot key would look idle.
        """
        latest = self._database.timer() + NEAR_CACHED_US
        rules = self._memory.rules
        return [
            (value, version, latest if deadline is None else min(deadline, latest))
            if (rule := rules.rule_of(key)) is not None and rule.evict
            else (value, version, deadline)
            for key, (value, version, deadline) in zip(keys, items, strict=True)
        ]

    def ttl(self, request: messages.Ttl, _: Peer) -> list[int | None] | Steps[list[int | None]]:
        """Return the remaining time to live of each key, in ms, rounded up; of many keys in steps."""
        if len(request.keys) > STEP_KEYS:
            return self._ttl_in_steps(request.keys)
        self._limits.keys(request.keys, len(request.keys))
        return [self._ttl_ms(key) if self._store.exists(key) else None for key in request.keys]

    def _ttl_in_steps(self, keys: list[str]) -> Steps[list[int | None]]:
        for some in slices(keys):
            self._limits.keys(some, len(keys))
            yield
        rows = yield from reading.rows(self._store, keys, None)
        now, reply = self._database.timer(), list[int | None]()
        for some_rows in slices(rows):
            reply += [
                None if value is None else WITHOUT_END if deadline is None else -(-max(0, deadline - now) // 1000)
                for value, _, deadline in some_rows
            ]
            yield
        return reply

    def _ttl_ms(self, key: str) -> int:
        left_us = self._database.time_to_live_us(key)
        return WITHOUT_END if left_us is None else -(-left_us // 1000)

    def scan(self, request: messages.Scan, peer: Peer) -> Page | Steps[Page]:
        """Return a page of keys in order; of the past in steps."""
        self._limits.page(request.limit, "a scan")
        at = self._version(request.at, peer)
        if at is not None and self._store.version - at > LINKS:
            return self._store.scan_at(
                request.start, request.end, request.limit, at=at, keys_only=request.keys_only, max_bytes=PAGE_BYTES
            )
        return self._store.scan(
            request.start,
            request.end,
            request.limit,
            at=at,
            keys_only=request.keys_only,
            max_bytes=PAGE_BYTES,
        )

    # ------------------------------------------------------------------ the past

    def history(self, request: messages.History, _: Peer) -> Steps[list[Version]]:
        """Return the versions of a key, newest first, in steps."""
        self._limits.key(request.key)
        self._limits.page(request.limit, "a history")
        return versions_in_steps(self._store, request.key, request.limit, request.before, PAGE_BYTES)

    def log(self, request: messages.Log, _: Peer) -> list[Commit]:
        """Return commits, oldest first."""
        self._limits.page(request.limit, "a log")
        if request.from_version is None:
            return newest_commits(self._store, request.limit, PAGE_BYTES, request.before)
        if request.before is not None:
            raise RequestError("bad_request", "a log has either a first version or a version before which it ends")
        return commits_from(self._store, request.from_version, request.limit, PAGE_BYTES)

    def version_at(self, request: messages.VersionAt, _: Peer) -> int:
        """Return the version that was current at a time."""
        return self._database.version_at(request.time)

    # ------------------------------------------------------------------ snapshots

    def begin(self, request: messages.Begin, peer: Peer) -> int:
        """Begin a snapshot for this peer; return its version."""
        version = self._snapshots.begin(peer, self._limits.limits.max_snapshots_per_connection)
        peer.last_snapshot = version
        return version

    def end(self, request: messages.End, peer: Peer) -> bool:
        """Release a snapshot; return whether it was held."""
        return self._snapshots.end(peer, request.snapshot)

    def _version(self, at: int | None, peer: Peer) -> int | None:
        """The version that a request reads at; None means the current one."""
        if at is None:
            return None
        if at == messages.BEGUN:
            if peer.last_snapshot is None:
                raise RequestError(
                    "bad_request", "at = -1 means the latest snapshot of this connection, but it has begun none"
                )
            at = peer.last_snapshot
        self._snapshots.used(peer, at)
        return at

    def _missed_in_steps(self, keys: list[str], count: int) -> Steps[dict[str, object] | None]:
        """As ``_missed``, in steps."""
        self._metrics.get_misses += count
        for some in slices(keys):
            error = self._missed(some, 0)
            if error is not None:
                self._metrics.get_misses -= count
                self._store.counters.get_operations -= len(keys) - len(some)
                return error
            yield
        return None

    def _missed(self, keys: Sequence[str], count: int) -> dict[str, object] | None:
        """Count ``count`` misses. Return an error reply if one of ``keys`` is invalid: only a missing one can be."""
        try:
            for key in keys:
                self._limits.key(key)
        except RequestError as error:
            self._store.counters.get_operations -= len(keys)
            return error.reply()
        self._metrics.get_misses += count
        return None
