"""Caches of so many keys, each asked one key after the other: kvd's own, and what it is compared with.

Each takes keys one at a time, ``hits(keys)`` counts how many were there; those that were not are put in.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack

import msgspec

from bench.context import Context
from bench.errors import BenchError
from bench.exchange import Connection, Exchange
from bench.peers.kvd import exchange
from bench.peers.redis import command
from bench.servers import Server
from kvd.engine.database import Database
from kvd.engine.near_cache import NearCaches, refuse_leases
from kvd.engine.snapshots import Snapshots
from kvd.protocol.limits import Limits
from kvd.protocol.messages import Get
from kvd.requests.limits import Checks
from kvd.requests.reads import Reading
from kvd.server.peers import Peer
from kvd.store.authors import NOBODY
from kvd.store.prefixes import PrefixRule, PrefixRules
from kvd.telemetry.metrics import ServerMetrics

_VALUE = b"v" * 64
# How many keys one script of Redis asks for: it evicts only between scripts.
_REDIS_KEYS = 20
# What a key takes there, roughly; and how often its memory may be set anew.
_REDIS_KEY_BYTES = 180
_TRIES = 30
_SCRIPT = b"""
local hits = 0
for _, key in ipairs(ARGV) do
  if redis.call('GET', key) then hits = hits + 1 else redis.call('SET', key, string.rep('v', 64)) end
end
return hits
"""


class Kvd:
    """The store, its room and its SIEVE as the daemon uses them, in this process."""

    def __init__(self, keys: int) -> None:
        self._database = Database()
        self._database.memory.set_rules(PrefixRules([PrefixRule(prefix="", max_keys=keys, evict=True)]))
        store, timer = self._database.store, self._database.timer
        scheduler, generations = self._database.scheduler, self._database.generations
        snapshots = Snapshots(store, timer, scheduler)
        near_caches = NearCaches(generations, scheduler, refuse_leases, notes_changes=True)
        self._reading = Reading(self._database, Checks(Limits()), snapshots, near_caches, ServerMetrics(store.version))
        self._peer = Peer("bench", 0)

    def hits(self, keys: Iterable[str]) -> int:
        """How many of ``keys`` were there."""
        found = 0
        for key in keys:
            if self._reading.get(Get(key), self._peer) is None:
                self._database.set({key: _VALUE}, NOBODY)
            else:
                found += 1
        return found


class KvdDaemon:
    """The same over the socket of a real daemon."""

    def __init__(self, keys: int, context: Context, stack: ExitStack) -> None:
        directory = context.new_directory()
        file = directory / "kvd.toml"
        file.write_text(f'[[prefix]]\nprefix = ""\nevict = true\nmax_keys = {keys}\n')
        server = stack.enter_context(Server(context.kvd.with_options("--config", str(file)), directory))
        self._connection = stack.enter_context(server.connect())

    def hits(self, keys: Iterable[str]) -> int:
        """How many of ``keys`` were there."""
        found = 0
        for key in keys:
            if msgspec.msgpack.decode(self._connection.call(exchange(["get", key]))) == [None]:
                self._connection.call(exchange(["set", {key: _VALUE}]))
            else:
                found += 1
        return found


class Lru:
    """Exact: the key that was used least recently goes."""

    def __init__(self, keys: int) -> None:
        self._keys = keys
        self._there: OrderedDict[str, None] = OrderedDict()

    def hits(self, keys: Iterable[str]) -> int:
        """How many of ``keys`` were there."""
        found, there = 0, self._there
        for key in keys:
            if key in there:
                found += 1
                self._used(key)
            else:
                if len(there) >= self._keys:
                    there.popitem(last=False)
                there[key] = None
        return found

    def _used(self, key: str) -> None:
        self._there.move_to_end(key)


class Fifo(Lru):
    """The key that came first goes, however much it is used."""

    def _used(self, key: str) -> None:
        pass


class Redis:
    """A real one with allkeys-lru, and as much memory as so many keys take in it."""

    def __init__(self, keys: int, context: Context, stack: ExitStack) -> None:
        server = stack.enter_context(context.fresh(context.peer("redis")))
        self._wanted = keys
        self.held = 0
        self._connection: Connection = stack.enter_context(server.connect())
        self._ask(b"CONFIG", b"SET", b"maxmemory-policy", b"allkeys-lru")
        self._tune()

    def _tune(self) -> None:
        """Find the memory with which it holds as many keys, within a hundredth, by what it holds of others."""
        self.hits(self._filler(0, self._wanted))
        most = self._used_bytes()
        for number in range(1, _TRIES):
            self._ask(b"CONFIG", b"SET", b"maxmemory", b"%d" % most)
            self.hits(self._filler(number, self._wanted))
            if abs(self.held - self._wanted) <= self._wanted // 100:
                return
            most += (self._wanted - self.held) * _REDIS_KEY_BYTES
        raise BenchError(f"redis holds {self.held} keys, and not {self._wanted}")

    def _filler(self, number: int, count: int) -> list[str]:
        return [f"filler:{number}:{key}" for key in range(count)]

    def hits(self, keys: Sequence[str]) -> int:
        """How many of ``keys`` were there. Afterwards ``held`` tells how many it has."""
        found = 0
        for begin in range(0, len(keys), _REDIS_KEYS):
            part = [key.encode() for key in keys[begin : begin + _REDIS_KEYS]]
            found += int(self._ask(b"EVAL", _SCRIPT, b"0", *part)[1:])
        self.held = int(self._ask(b"DBSIZE")[1:])
        return found

    def _used_bytes(self) -> int:
        info = self._ask(b"INFO", b"memory").decode()
        return int(next(line for line in info.splitlines() if line.startswith("used_memory:")).partition(":")[2])

    def _ask(self, *words: bytes) -> bytes:
        """One request; its reply's first line, or a whole text. Raises BenchError for an error."""
        self._connection.call(Exchange(command(*words), 0, 1))
        line = self._line()
        if line.startswith(b"-"):
            raise BenchError(f"redis answered {line!r}")
        if line.startswith(b"$"):
            return self._connection.call(Exchange(b"", int(line[1:]) + 2, 1))
        return line

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\r\n"):
            line += self._connection.call(Exchange(b"", 1, 1))
        return line[:-2]
