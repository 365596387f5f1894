"""What limits and rules cost: eviction, and 100 access rules, each beside the same daemon without them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from time import clock_gettime_ns

from bench.context import THROUGHPUT_KEYS, Context
from bench.data import Items, chosen, value
from bench.errors import BenchError
from bench.exchange import Exchange
from bench.peers.kvd import exchange
from bench.pinger import cpu_clock
from bench.rows import Row, Samples, Target
from bench.servers import Server
from bench.throughput import CONNECTIONS, operations_a_second

# A user who is neither root nor the daemon's own user, because the rules do not apply to these two.
_STRANGER = 54_321
_RULES = 100
# load.c replaces the ############ by another number each time: each set adds a new key.
_NEW_KEY = "key:############"
_MAX_BYTES = 64 * 1024 * 1024
_LOADED_KEYS = 3 * THROUGHPUT_KEYS  # more than _MAX_BYTES can hold

_ROOMY = "memory.max_bytes = 68719476736\n"
_EVICTING = f'memory.max_bytes = {_MAX_BYTES}\n[[prefix]]\nprefix = ""\nevict = true\n'
_OPEN = 'listen.socket_mode = "0666"\n'


@dataclass(frozen=True)
class Work:
    """The exchange that every connection repeats; all connections send it `rounds_sent` times in all."""

    title: str
    exchange: Exchange
    rounds_sent: int


def gets(count: int, rounds_sent: int) -> Work:
    """`count` gets a frame, of the same keys each time."""
    keys = chosen(count, THROUGHPUT_KEYS)
    return Work(f"{count} get{'s' * (count > 1)} a frame", exchange(*(["get", key] for key in keys)), rounds_sent)


def sets(count: int, rounds_sent: int) -> Work:
    """`count` sets a frame, each of a new key."""
    requests = [["set", {_NEW_KEY: value(1)}]] * count
    return Work(f"{count} set{'s' * (count > 1)} of new keys a frame", exchange(*requests), rounds_sent)


def overwrites(count: int, rounds_sent: int) -> Work:
    """`count` sets a frame, of the same keys each time: each set adds a version to the history."""
    keys = chosen(count, THROUGHPUT_KEYS)
    requests = [["set", {key: value(1)}] for key in keys]
    return Work(f"{count} set{'s' * (count > 1)} of the same keys a frame", exchange(*requests), rounds_sent)


WORKS = (gets(64, 20_000), gets(1, 100_000), sets(64, 3_000), sets(1, 60_000))


def eviction(context: Context) -> Iterator[Row]:
    """A daemon whose memory is full and whose keys are all evictable, beside a daemon with free memory.

    Gets, and sets of stored keys, do the same work in both daemons. A set of a new key evicts a key in the full daemon,
    and only adds a key in the other one.
    """
    works = (*WORKS, overwrites(64, 6_000), overwrites(1, 60_000))
    yield from _compared(context, works, _EVICTING, _ROOMY, "eviction on", "off", 0.85, ())


def rules(context: Context) -> Iterator[Row]:
    """100 access rules beside none, for a user to whom the rules apply."""
    if os.geteuid() != 0:
        raise BenchError("needs root: the load must come from another user than the daemon's")
    user = ("setpriv", f"--reuid={_STRANGER}", f"--regid={_STRANGER}", "--clear-groups")
    yield from _compared(context, WORKS, _OPEN + _ROOMY + _many_rules(), _OPEN + _ROOMY, "100 rules", "none", 0.9, user)


def _many_rules() -> str:
    """Rules for prefixes of several lengths and for many users. One rule allows the measured requests."""
    rest = 'rights = ["read", "write"]\n'
    tables = [
        f'[[access]]\nprefix = "{"app" + "s" * (number % 10)}/{number}/"\nuid = {60_000 + number}\n{rest}'
        for number in range(_RULES - 1)
    ]
    tables.append(f'[[access]]\nprefix = "key:"\nuid = {_STRANGER}\n{rest}')
    return "".join(tables)


def _compared(
    context: Context, works: Sequence[Work], on: str, off: str, title: str, name: str, bound: float, user: Sequence[str]
) -> Iterator[Row]:
    """Measure each workload with both daemons in turn, round after round."""
    with ExitStack() as stack:
        ours, theirs = (_Case(context, stack, config, user) for config in (on, off))
        for work in works:
            figures = [(*ours.measure(work), *theirs.measure(work)) for _ in range(context.rounds)]
            with_it, own, without, other = zip(*figures, strict=True)
            note = f"processor time {median(own):.2f} µs each to {median(other):.2f}"
            target = Target(">=", bound)
            yield Row(f"{work.title}, {title}", "/s", Samples("kvd", with_it), Samples(name, without), target, note)


class _Case:
    """One loaded daemon with a configuration of its own."""

    def __init__(self, context: Context, stack: ExitStack, config: str, user: Sequence[str]) -> None:
        self._context = context
        self._user = user
        directory = context.new_directory()
        if user:
            for folder in (directory, directory.parent):
                folder.chmod(0o711)
        file = directory / "kvd.toml"
        file.write_text(config)
        file.chmod(0o600)
        self._server = stack.enter_context(Server(context.kvd.with_options("--config", str(file)), directory))
        with self._server.connect() as connection:
            for first in range(0, _LOADED_KEYS, 100):
                items = {f"load:{number:011d}": value(number) for number in range(first, first + 100)}
                self._server.peer.check(connection.call(exchange(["set", items])))

    def measure(self, work: Work) -> tuple[float, float]:
        """Measure one round: operations a second, and the daemon's CPU time for one operation in microseconds.

        The keys that are read are stored before the round, and the check after it shows that they still are.
        """
        self._server.load(THROUGHPUT_KEYS)
        read: Items = chosen(64, THROUGHPUT_KEYS)
        load, sent = self._context.program("load"), self._context.work(work.rounds_sent)
        clock = cpu_clock(self._server.pid)
        begin_ns = clock_gettime_ns(clock)
        rate = operations_a_second(load, self._server, work.exchange, CONNECTIONS, sent, self._user)
        took_us = (clock_gettime_ns(clock) - begin_ns) / 1000
        if "get" in work.title:
            self._server.try_once(self._server.peer.gets(read))
        else:
            self._server.try_once(work.exchange)
        return rate, took_us / (sent * work.exchange.operations)
