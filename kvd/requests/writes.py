"""The requests that write. Each is one commit; a request with an id takes effect only once."""

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from itertools import chain
from typing import TypeVar

from kvd.engine.database import Database
from kvd.engine.errors import NoSpace
from kvd.protocol import messages
from kvd.protocol.messages import WriteOptions
from kvd.requests.errors import RequestError
from kvd.requests.limits import LimitChecker
from kvd.requests.peer import Peer
from kvd.store.errors import OutOfMemory
from kvd.store.lifetimes import KEEP_TTL, NO_EXPIRY, Expiry
from kvd.store.steps import STEP_KEYS, Steps, slices

Reply = TypeVar("Reply")
_INCREMENT_BOUND = 2**63
# Sets with more keys do not run together in one step.
MAX_KEYS_TOGETHER = 2_048


class WriteHandlers:
    """The requests that change something. Each method is named in the table and returns the reply."""

    def __init__(self, database: Database, limits: LimitChecker) -> None:
        self._database = database
        self._limits = limits
        self._memory = database.memory

    def set(self, request: messages.Set, peer: Peer) -> int | Steps[int]:
        """Store values; return the version. A large write is prepared in steps."""
        self._limits.entries(request.entries)
        if self._needs_steps(request.entries):
            return self._set_in_steps(request, peer)
        if request.how is None and not self._memory.rules.have_ttls:
            return self._database.set(request.entries, peer.author)
        self._check_ttls(request.how, request.entries)
        expiry = self._expiry(request.how, peer, request.entries)
        return self._once(request.how, peer, lambda: self._database.set(request.entries, peer.author, expiry))

    def _needs_steps(self, entries: Mapping[str, bytes | None]) -> bool:
        return len(entries) > STEP_KEYS or self.needs_room(entries)

    def needs_room(self, entries: Mapping[str, bytes | None]) -> bool:
        """Whether so much may have to go before ``entries`` can be written that it goes in steps."""
        if not self._memory.is_under_pressure:
            return False
        size = sum(map(len, entries)) + sum(map(len, filter(None, entries.values())))
        return not self._memory.is_quick(len(entries), size)

    def _set_in_steps(self, request: messages.Set, peer: Peer) -> Steps[int]:
        how, entries = request.how, request.entries
        self._check_ttls(how, entries)
        expiry = self._expiry(how, peer, entries)
        yield
        if self._is_repeated(how, peer):
            return self._once(how, peer, int)
        return (
            yield from self._database.set_in_steps(
                entries, peer.author, expiry, lambda write: self._once(how, peer, write)
            )
        )

    def set_each(self, requests: Sequence[messages.Set], peer: Peer) -> list[int] | None:
        """Store the sets of a small frame, each as a commit of its own. No value in such a frame can be too large.

        Return None, with nothing done, if the sets must run one by one, or there is no room for all of them together.
        """
        if self._memory.rules.have_ttls:
            return None
        try:
            if len(requests) > 1 or requests[0].how is not None:
                return self._set_in_columns(requests, peer)
            # For one set, the detour through columns costs more than it saves.
            entries, limits = requests[0].entries, self._limits.limits
            # A code point is at most four bytes of UTF-8.
            is_long = max(map(len, entries), default=0) * 4 > limits.max_key_bytes
            if is_long or "" in entries or len(entries) > limits.max_keys_per_request:
                return None
            return [self._database.set(entries, peer.author)]
        except (NoSpace, OutOfMemory):
            return None

    def _set_in_columns(self, requests: Sequence[messages.Set], peer: Peer) -> list[int] | None:
        batch = [request.entries for request in requests]
        limits = self._limits.limits
        most_keys = max(map(len, batch))
        if most_keys > limits.max_keys_per_request or most_keys * len(batch) > MAX_KEYS_TOGETHER:
            return None
        longest_key = max(map(len, chain.from_iterable(batch)), default=0)
        if longest_key * 4 > limits.max_key_bytes or any("" in entries for entries in batch):
            return None
        if self._memory.is_under_pressure:
            size = sum(map(len, chain.from_iterable(batch))) + sum(
                map(len, chain.from_iterable(map(dict.values, batch)))
            )
            if not self._memory.is_quick(sum(map(len, batch)), size):
                return None
        options = [request.how for request in requests]
        if not any(options):
            return self._database.set_each(batch, peer.author)
        if not all(map(_only_identified, options)):
            return None
        ids: list[tuple[bytes, int | None]] = [(peer.unique_id(each.id), each.since) for each in options]  # type: ignore[union-attr, arg-type]
        return self._database.set_each_once(peer.uid, ids, batch, peer.author)

    def delete(self, request: messages.Delete, peer: Peer) -> tuple[int, int] | Steps[tuple[int, int]]:
        """Delete keys; return the version and how many keys existed. Many keys are looked up in steps."""
        if len(request.keys) > STEP_KEYS:
            return self._delete_in_steps(request, peer)
        self._limits.keys(request.keys, len(request.keys))
        return self._delete(request, peer)

    def _delete_in_steps(self, request: messages.Delete, peer: Peer) -> Steps[tuple[int, int]]:
        yield from self._check_keys(request.keys)
        return (yield from self._database.delete_in_steps(request.keys, lambda: self._delete(request, peer)))

    def _delete(self, request: messages.Delete, peer: Peer) -> tuple[int, int]:
        return self._once(
            request.how,
            peer,
            lambda: self._database.delete(request.keys, peer.author, missing_ok=request.missing_ok),
        )

    def increment(self, request: messages.Increment, peer: Peer) -> tuple[int, int]:
        """Add to a number; return the sum and the version. Without a ttl the key keeps the expiry that it has."""
        self._limits.key(request.key)
        if not -_INCREMENT_BOUND <= request.by < _INCREMENT_BOUND:
            raise RequestError("bad_request", "an increment is a number of 64 bits")
        how = request.how
        self._check_ttls(how, (request.key,))
        keeps = how is None or (how.ttl is None and not how.ttls)
        expiry = self._expiry(how, peer, (request.key,), keeps=keeps)
        return self._once(how, peer, lambda: self._database.increment(request.key, request.by, peer.author, expiry))

    def touch(self, request: messages.Touch, peer: Peer) -> list[bool] | Steps[list[bool]]:
        """Replace the time to live of keys; return whether each exists. Many keys are looked up in steps."""
        if len(request.keys) > STEP_KEYS:
            return self._touch_in_steps(request, peer)
        self._limits.keys(request.keys, len(request.keys))
        return self._touch(request, peer, self._ttl_us(request, request.keys))

    def _touch_in_steps(self, request: messages.Touch, peer: Peer) -> Steps[list[bool]]:
        yield from self._check_keys(request.keys)
        ttl_us = self._ttl_us(request, ())
        for some in slices(request.keys):
            self._ttl_us(request, some)
            yield
        if self._is_repeated(request.how, peer):
            return self._touch(request, peer, ttl_us)
        return (
            yield from self._database.touch_in_steps(request.keys, ttl_us, lambda: self._touch(request, peer, ttl_us))
        )

    def _ttl_us(self, request: messages.Touch, keys: Sequence[str]) -> int | None:
        """Return the time to live that ``request`` gives. Raises RequestError if one of ``keys`` may not have it."""
        if request.ttl is not None:
            self._limits.ttl(request.ttl)
        if self._memory.rules.have_ttls:
            for key in keys:
                self._check_max_ttl(key, request.ttl)
        return None if request.ttl is None else request.ttl * 1000

    def _touch(self, request: messages.Touch, peer: Peer, ttl_us: int | None) -> list[bool]:
        return self._once(request.how, peer, lambda: self._database.touch(request.keys, ttl_us, peer.author))

    def _check_keys(self, keys: list[str]) -> Steps[None]:
        for some in slices(keys):
            self._limits.keys(some, len(keys))
            yield

    def commit(self, request: messages.Commit, peer: Peer) -> int | Steps[int]:
        """End a transaction: validate what it read, and write. Return the version.

        A read set with ranges, or with many keys, is validated in steps.
        """
        reads, ranges, snapshot = request.reads or {}, request.ranges or [], request.snapshot
        self._limits.entries(request.writes)
        self._limits.count(len(reads))
        self._limits.count(len(ranges))
        if ranges and snapshot is None:
            raise RequestError("bad_request", "ranges need the snapshot that they were read at")
        expiry = self._expiry(request.how, peer, [key for key, value in request.writes.items() if value is not None])
        self._check_ttls(request.how, request.writes)

        if ranges or len(reads) > STEP_KEYS or self._needs_steps(request.writes):
            return self._commit_in_steps(request, peer, expiry)

        def write() -> int:
            return self._database.commit(request.writes, reads, ranges, snapshot or 0, peer.author, expiry)

        return self._once(request.how, peer, write)

    def _commit_in_steps(self, request: messages.Commit, peer: Peer, expiry: Expiry) -> Steps[int]:
        if self._is_repeated(request.how, peer):
            return self._once(request.how, peer, int)
        return (
            yield from self._database.commit_in_steps(
                request.writes,
                request.reads or {},
                request.ranges or [],
                request.snapshot or 0,
                peer.author,
                expiry,
                lambda write: self._once(request.how, peer, write),
            )
        )

    def _is_repeated(self, how: WriteOptions | None, peer: Peer) -> bool:
        """Whether the write has committed before, or is refused: then nothing has to be prepared for it."""
        return how is not None and how.id is not None and self._database.is_known(peer.uid, how.id, how.since)

    def _check_ttls(self, how: WriteOptions | None, keys: Container[str]) -> None:
        """Reject a ``ttls`` entry for a key that the request does not write."""
        for key in (how.ttls or ()) if how is not None else ():
            if key not in keys:
                raise RequestError("bad_request", "ttls has a key that is not written")

    def _once(self, how: WriteOptions | None, peer: Peer, write: Callable[[], Reply]) -> Reply:
        if how is None or how.id is None:
            return write()
        return self._database.run_once(peer.uid, peer.unique_id(how.id), how.since, write)

    def _expiry(self, how: WriteOptions | None, peer: Peer, keys: Collection[str], *, keeps: bool = False) -> Expiry:
        """The expiry of ``keys``, from the request's options and the rules for the keys' prefixes."""
        if self._memory.rules.have_ttls:
            return self._expiry_by_rules(how, peer, keys, keeps=keeps)
        if how is None or (how.ttl is None and not how.ttls and not how.keep_ttl and not how.ephemeral):
            return KEEP_TTL if keeps else NO_EXPIRY
        self._check_how(how, peer, len(keys))
        ttl_us = None if how.ttl is None else how.ttl * 1000
        ttls_us = {key: ttl * 1000 for key, ttl in how.ttls.items()} if how.ttls else None
        owner = peer if how.ephemeral else None
        return self._database.expiry(ttl_us, ttls_us=ttls_us, keep=how.keep_ttl or keeps, owner=owner)

    def _expiry_by_rules(self, how: WriteOptions | None, peer: Peer, keys: Collection[str], *, keeps: bool) -> Expiry:
        how = WriteOptions() if how is None else how
        self._check_how(how, peer, len(keys))
        keep = how.keep_ttl or keeps
        ttls_us: dict[str, int] = {}
        for key in keys:
            ttl = (how.ttls or {}).get(key, how.ttl)
            rule = self._memory.rules.rule_of(key)
            if ttl is not None:
                self._check_max_ttl(key, ttl)
            elif rule is not None and not how.ephemeral:
                ttl = rule.default_ttl_ms or None
            if ttl is not None:
                ttls_us[key] = ttl * 1000
        if not ttls_us and not keep and not how.ephemeral:
            return NO_EXPIRY
        return self._database.expiry(None, ttls_us=ttls_us, keep=keep, owner=peer if how.ephemeral else None)

    def _check_max_ttl(self, key: str, ttl_ms: int | None) -> None:
        rule = self._memory.rules.rule_of(key)
        max_ttl_ms = 0 if rule is None else rule.max_ttl_ms
        if max_ttl_ms and (ttl_ms is None or ttl_ms > max_ttl_ms):
            text = f"a key under {rule.prefix!r} lives {max_ttl_ms} ms at most"  # type: ignore[union-attr]
            raise RequestError("bad_request", text)

    def _check_how(self, how: WriteOptions, peer: Peer, count: int) -> None:
        if how.ttl is not None:
            self._limits.ttl(how.ttl)
        for ttl in (how.ttls or {}).values():
            self._limits.ttl(ttl)
        if how.ephemeral:
            limit = self._limits.limits.max_ephemeral_keys_per_connection
            if self._database.count_owned(peer) + count > limit:
                raise RequestError("too_large", f"a connection has at most {limit} ephemeral keys")


def _only_identified(how: WriteOptions | None) -> bool:
    """Whether the options only ask for the write to take effect once."""
    return (
        how is not None
        and how.id is not None
        and not how.ttls
        and how.ttl is None
        and not how.keep_ttl
        and not how.ephemeral
    )
