"""Caches that hold a given number of keys: kvd's own, and the caches that it is compared with.

``hits(keys)`` reads the keys one after the other and returns the number of hits. After a miss it sets the key.
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
from kvd.engine.snapshots import Snapshots
from kvd.protocol.limits import Limits
from kvd.protocol.messages import Get
from kvd.requests.limits import LimitChecker
from kvd.requests.peer import Peer
from kvd.requests.reads import ReadHandlers
from kvd.store.authors import NO_AUTHOR
from kvd.store.prefixes import PrefixRule, PrefixRules
from kvd.telemetry.metrics import ServerMetrics

_VALUE = b"v" * 64
# The number of keys that one script reads: Redis evicts only between scripts.
_REDIS_KEYS = 20
# The approximate bytes of a key in Redis, and how often its memory limit may be changed.
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
    """The store, its memory limit and its SIEVE as the daemon uses them, in this process."""

    def __init__(self, keys: int) -> None:
        self._database = Database()
        self._database.memory.set_rules(PrefixRules([PrefixRule(prefix="", max_keys=keys, evict=True)]))
        store = self._database.store
        snapshots = Snapshots(store, self._database.timer, self._database.scheduler)
        self._reads = ReadHandlers(self._database, LimitChecker(Limits()), snapshots, ServerMetrics(store.version))
        self._peer = Peer("bench", 0)

    def hits(self, keys: Iterable[str]) -> int:
        """Read these keys and return the number of hits."""
        hits = 0
        for key in keys:
            if self._reads.get(Get(key), self._peer) is None:
                self._database.set({key: _VALUE}, NO_AUTHOR)
            else:
                hits += 1
        return hits


class KvdDaemon:
    """kvd's cache in a real daemon, over its socket."""

    def __init__(self, keys: int, context: Context, stack: ExitStack) -> None:
        directory = context.new_directory()
        file = directory / "kvd.toml"
        file.write_text(f'[[prefix]]\nprefix = ""\nevict = true\nmax_keys = {keys}\n')
        server = stack.enter_context(Server(context.kvd.with_options("--config", str(file)), directory))
        self._connection = stack.enter_context(server.connect())

    def hits(self, keys: Iterable[str]) -> int:
        """Read these keys and return the number of hits."""
        hits = 0
        for key in keys:
            if msgspec.msgpack.decode(self._connection.call(exchange(["get", key]))) == [None]:
                self._connection.call(exchange(["set", {key: _VALUE}]))
            else:
                hits += 1
        return hits


class Lru:
    """Exact LRU: it evicts the least recently used key."""

    def __init__(self, keys: int) -> None:
        self._keys = keys
        self._held: OrderedDict[str, None] = OrderedDict()

    def hits(self, keys: Iterable[str]) -> int:
        """Read these keys and return the number of hits."""
        hits, held = 0, self._held
        for key in keys:
            if key in held:
                hits += 1
                self._touch(key)
            else:
                if len(held) >= self._keys:
                    held.popitem(last=False)
                held[key] = None
        return hits

    def _touch(self, key: str) -> None:
        self._held.move_to_end(key)


class Fifo(Lru):
    """It evicts the oldest key, no matter how often the key is used."""

    def _touch(self, key: str) -> None:
        pass


class Redis:
    """A real Redis with allkeys-lru, and the memory limit at which it holds ``keys`` keys."""

    def __init__(self, keys: int, context: Context, stack: ExitStack) -> None:
        server = stack.enter_context(context.fresh(context.peer("redis")))
        self._target_keys = keys
        self.held = 0
        self._connection: Connection = stack.enter_context(server.connect())
        self._call(b"CONFIG", b"SET", b"maxmemory-policy", b"allkeys-lru")
        self._tune()

    def _tune(self) -> None:
        """Find the memory limit at which it holds the target number of keys, within 1 %."""
        self.hits(self._filler(0, self._target_keys))
        max_bytes = self._used_bytes()
        for number in range(1, _TRIES):
            self._call(b"CONFIG", b"SET", b"maxmemory", b"%d" % max_bytes)
            self.hits(self._filler(number, self._target_keys))
            if abs(self.held - self._target_keys) <= self._target_keys // 100:
                return
            max_bytes += (self._target_keys - self.held) * _REDIS_KEY_BYTES
        raise BenchError(f"redis holds {self.held} keys instead of {self._target_keys}")

    def _filler(self, number: int, count: int) -> list[str]:
        return [f"filler:{number}:{key}" for key in range(count)]

    def hits(self, keys: Sequence[str]) -> int:
        """Read these keys and return the number of hits. Afterwards ``held`` is the number of keys in Redis."""
        hits = 0
        for begin in range(0, len(keys), _REDIS_KEYS):
            part = [key.encode() for key in keys[begin : begin + _REDIS_KEYS]]
            hits += int(self._call(b"EVAL", _SCRIPT, b"0", *part)[1:])
        self.held = int(self._call(b"DBSIZE")[1:])
        return hits

    def _used_bytes(self) -> int:
        info = self._call(b"INFO", b"memory").decode()
        return int(next(line for line in info.splitlines() if line.startswith("used_memory:")).partition(":")[2])

    def _call(self, *words: bytes) -> bytes:
        """Send one request. Returns the first line of the reply, or a whole string. Raises BenchError for an error."""
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
