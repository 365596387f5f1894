"""One of the two checkouts while a round runs: its daemons, and the CPU time that work costs it."""

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from bench.checkout import Checkout
from bench.context import THROUGHPUT_KEYS, Context
from bench.data import Items
from bench.exchange import Exchange
from bench.pinger import cpu_clock
from bench.process import clean_environment, output, whole_process
from bench.servers import Server
from bench.throughput import CONNECTIONS, operations_a_second

# The parts of a cost: CPU time of the checkout's own client and of its daemon, and the wall time of a whole process.
CLIENT, SERVER, WALL = "client", "server", "wall"
Cost = dict[str, float]
FEW: Items = {f"user:{n}": b"%d" % n for n in range(20)}
_DURABLE_KEYS = 1_000  # nothing is read from it


class Side:
    """A checkout with the daemons that run for it. `stack` stops them."""

    def __init__(self, checkout: Checkout, context: Context, stack: ExitStack) -> None:
        self.checkout = checkout
        self._context = context
        self._stack = stack
        self._servers: dict[bool, Server] = {}

    def server(self, durable: bool = False) -> Server:
        """The daemon in memory, or the one that syncs each commit: started and loaded when it is first needed."""
        if durable not in self._servers:
            directory = self._context.new_directory()
            options = ("--data-dir", str(directory / "data"), "--data-sync", "always") if durable else ()
            server = Server(self.checkout.daemon(*options), directory, self.checkout.directory)
            self._servers[durable] = self._stack.enter_context(server)
            server.load(_DURABLE_KEYS if durable else THROUGHPUT_KEYS)
            server.try_once(server.peer.load_batch(FEW))
        return self._servers[durable]

    def requests(self, exchange: Exchange, rounds: int, durable: bool = False) -> Cost:
        """CPU time of the daemon for one operation in us, while the load generator sends the exchange `rounds` times.

        The load generator is this checkout's for both sides, so that both daemons meet the same bytes at the same pace.
        """
        server = self.server(durable)
        load = self._context.program("load")
        server.try_once(exchange)
        begin_ns = _cpu_ns(server)
        operations_a_second(load, server, exchange, CONNECTIONS, rounds)
        return {SERVER: (_cpu_ns(server) - begin_ns) / 1000 / (rounds * exchange.operations)}

    def calls(self, work: str, operations: int, items: Items) -> Cost:
        """CPU time of one operation in us: of the checkout's own client, and of its daemon meanwhile."""
        server = self.server()
        file = server.socket.with_name("items.json")
        file.write_text(json.dumps({key: value.decode() for key, value in items.items()}))
        words = (work, str(server.socket), str(cpu_clock(server.pid)), str(operations), str(file))
        cost: Cost = json.loads(output(self.checkout.driver(*words), clean_environment()))
        return cost

    def command(self, words: tuple[str, ...], variables: dict[str, str], outputs: Mapping[int, Path]) -> Cost:
        """Times in ms of the command `kv` with these words: of the wall, and the CPU time of it and of the daemon."""
        server = self.server()
        env = clean_environment() | {"KVD_SOCKET": str(server.socket)} | variables
        begin_ns = _cpu_ns(server)
        wall_ms, cpu_ms = whole_process(self.checkout.command(*words), env, outputs)
        return {WALL: wall_ms, CLIENT: cpu_ms, SERVER: (_cpu_ns(server) - begin_ns) / 1e6}


def _cpu_ns(server: Server) -> int:
    """CPU time of all threads of a daemon, to the nanosecond; /proc counts it in steps of 10 ms."""
    return time.clock_gettime_ns(cpu_clock(server.pid))
