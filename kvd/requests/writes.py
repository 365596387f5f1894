"""What writes: each request one commit, done once if it carries an id."""

from collections.abc import Callable, Collection, Container, Sequence
from itertools import chain
from typing import TypeVar

from kvd.engine.database import Database
from kvd.protocol import messages
from kvd.protocol.messages import How
from kvd.requests.errors import RequestError
from kvd.requests.limits import Checks
from kvd.server.peers import Peer
from kvd.store.lifetimes import KEEP_TTL, NO_EXPIRY, Expiry

Answer = TypeVar("Answer")
_BY_LESS_THAN = 2**63


class Writing:
    """The requests that change something."""

    def __init__(self, database: Database, checks: Checks) -> None:
        self._database = database
        self._checks = checks
        self._room = database.memory

    def set(self, request: messages.Set, peer: Peer) -> int:
        """Store values."""
        self._checks.entries(request.entries)
        if request.how is None and not self._room.rules.have_lives:
            return self._database.set(request.entries, peer.author)
        self._check_ttls(request.how, request.entries)
        life = self._life(request.how, peer, request.entries)
        return self._once(request.how, peer, lambda: self._database.set(request.entries, peer.author, life))

    def set_each(self, requests: Sequence[messages.Set], peer: Peer) -> list[int] | None:
        """A run of sets out of a frame so small that no value can be too large; None if they need a closer look."""
        batch = [request.entries for request in requests]
        # A code point is at most four bytes of UTF-8.
        limits = self._checks.limits
        if max(map(len, batch)) > limits.max_keys_per_request:
            return None
        longest = max(map(len, chain.from_iterable(batch)), default=0)
        if longest * 4 > limits.max_key_bytes or any("" in entries for entries in batch):
            return None
        if self._room.rules.have_lives:
            return None
        hows = [request.how for request in requests]
        if not any(hows):
            if len(batch) == 1:  # the detour through columns pays from two on
                return [self._database.set(batch[0], peer.author)]
            return self._database.set_each(batch, peer.author)
        if not all(map(_only_identified, hows)):
            return None
        ids: list[tuple[bytes, int | None]] = [(how.id, how.since) for how in hows]  # type: ignore[union-attr, misc]
        return self._database.set_each_once(peer.uid, ids, batch, peer.author)

    def delete(self, request: messages.Delete, peer: Peer) -> tuple[int, int]:
        """Delete keys."""
        self._checks.keys(request.keys, len(request.keys))
        return self._once(
            request.how,
            peer,
            lambda: self._database.delete(request.keys, peer.author, missing_ok=request.missing_ok),
        )

    def increment(self, request: messages.Increment, peer: Peer) -> tuple[int, int]:
        """Add to a number. Without a ttl it keeps the life that it has."""
        self._checks.key(request.key)
        if not -_BY_LESS_THAN <= request.by < _BY_LESS_THAN:
            raise RequestError("bad_request", "an increment is a number of 64 bits")
        how = request.how
        self._check_ttls(how, (request.key,))
        keeps = how is None or (how.ttl is None and not how.ttls)
        life = self._life(how, peer, (request.key,), keeps=keeps)
        return self._once(how, peer, lambda: self._database.increment(request.key, request.by, peer.author, life))

    def touch(self, request: messages.Touch, peer: Peer) -> list[bool]:
        """Set how long keys live."""
        self._checks.keys(request.keys, len(request.keys))
        if request.ttl is not None:
            self._checks.ttl(request.ttl)
        if self._room.rules.have_lives:
            for key in request.keys:
                self._check_longest(key, request.ttl)
        ttl_us = None if request.ttl is None else request.ttl * 1000
        return self._once(request.how, peer, lambda: self._database.touch(request.keys, ttl_us, peer.author))

    def commit(self, request: messages.Commit, peer: Peer) -> int:
        """A transaction's end: validate what it read, and write."""
        reads, ranges, snapshot = request.reads or {}, request.ranges or [], request.snapshot
        self._checks.entries(request.writes)
        self._checks.count(len(reads))
        self._checks.count(len(ranges))
        if ranges and snapshot is None:
            raise RequestError("bad_request", "ranges need the snapshot that they were read at")
        life = self._life(request.how, peer, [key for key, value in request.writes.items() if value is not None])
        self._check_ttls(request.how, request.writes)

        def write() -> int:
            return self._database.commit(request.writes, reads, ranges, snapshot or 0, peer.author, life)

        return self._once(request.how, peer, write)

    def _check_ttls(self, how: How | None, keys: Container[str]) -> None:
        """Whoever says how long a key lives has to write it."""
        for key in (how.ttls or ()) if how is not None else ():
            if key not in keys:
                raise RequestError("bad_request", "ttls has a key that is not written")

    def _once(self, how: How | None, peer: Peer, write: Callable[[], Answer]) -> Answer:
        if how is None or how.id is None:
            return write()
        return self._database.run_once(peer.uid, how.id, how.since, write)

    def _life(self, how: How | None, peer: Peer, keys: Collection[str], *, keeps: bool = False) -> Expiry:
        """How long ``keys`` are to live, by what ``how`` says and what holds below their prefixes."""
        if self._room.rules.have_lives:
            return self._life_by_rules(how, peer, keys, keeps=keeps)
        if how is None or (how.ttl is None and not how.ttls and not how.keep_ttl and not how.ephemeral):
            return KEEP_TTL if keeps else NO_EXPIRY
        self._check_how(how, peer, len(keys))
        ttl_us = None if how.ttl is None else how.ttl * 1000
        ttls_us = {key: ttl * 1000 for key, ttl in how.ttls.items()} if how.ttls else None
        owner = peer if how.ephemeral else None
        return self._database.expiry(ttl_us, ttls_us=ttls_us, keep=how.keep_ttl or keeps, owner=owner)

    def _life_by_rules(self, how: How | None, peer: Peer, keys: Collection[str], *, keeps: bool) -> Expiry:
        how = How() if how is None else how
        self._check_how(how, peer, len(keys))
        keep = how.keep_ttl or keeps
        ttls_us: dict[str, int] = {}
        for key in keys:
            ttl = (how.ttls or {}).get(key, how.ttl)
            rule = self._room.rules.rule_of(key)
            if ttl is not None:
                self._check_longest(key, ttl)
            elif rule is not None and not how.ephemeral:
                ttl = rule.default_ttl_ms or None
            if ttl is not None:
                ttls_us[key] = ttl * 1000
        if not ttls_us and not keep and not how.ephemeral:
            return NO_EXPIRY
        return self._database.expiry(None, ttls_us=ttls_us, keep=keep, owner=peer if how.ephemeral else None)

    def _check_longest(self, key: str, ttl_ms: int | None) -> None:
        rule = self._room.rules.rule_of(key)
        most = 0 if rule is None else rule.max_ttl_ms
        if most and (ttl_ms is None or ttl_ms > most):
            text = f"a key under {rule.prefix!r} lives {most} ms at most"  # type: ignore[union-attr]
            raise RequestError("bad_request", text)

    def _check_how(self, how: How, peer: Peer, count: int) -> None:
        if how.ttl is not None:
            self._checks.ttl(how.ttl)
        for ttl in (how.ttls or {}).values():
            self._checks.ttl(ttl)
        if how.ephemeral:
            most = self._checks.limits.max_ephemeral_keys_per_connection
            if self._database.count_owned(peer) + count > most:
                raise RequestError("too_large", f"a connection has at most {most} ephemeral keys")


def _only_identified(how: How | None) -> bool:
    """Whether it asks for nothing but to be done once."""
    return (
        how is not None
        and how.id is not None
        and not how.ttls
        and how.ttl is None
        and not how.keep_ttl
        and not how.ephemeral
    )
