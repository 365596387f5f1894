"""One of the two checkouts during a round: its daemons, and the CPU time that a workload costs."""

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
USERS: Items = {f"user:{n}": b"%d" % n for n in range(20)}
_DURABLE_KEYS = 1_000  # few, because the durable row only sets


class Side:
    """A checkout with its running daemons. `stack` stops them."""

    def __init__(self, checkout: Checkout, context: Context, stack: ExitStack) -> None:
        self.checkout = checkout
        self._context = context
        self._stack = stack
        self._servers: dict[bool, Server] = {}

    def server(self, durable: bool = False) -> Server:
        """Return the daemon in memory, or the one that syncs each commit. Starts and loads it on the first call."""
        if durable not in self._servers:
            directory = self._context.new_directory()
            options = ("--data-dir", str(directory / "data"), "--data-sync", "always") if durable else ()
            server = Server(self.checkout.daemon(*options), directory, self.checkout.directory)
            self._servers[durable] = self._stack.enter_context(server)
            server.load(_DURABLE_KEYS if durable else THROUGHPUT_KEYS)
            server.try_once(server.peer.load_batch(USERS))
        return self._servers[durable]

    def requests(self, exchange: Exchange, rounds: int, durable: bool = False) -> Cost:
        """Send the exchange `rounds` times by the load generator. Returns us of the daemon's CPU time an operation.

        Both sides use the load generator of this checkout, so that both daemons get the same bytes in the same way.
        """
        server = self.server(durable)
        load = self._context.program("load")
        server.try_once(exchange)
        begin_ns = _cpu_ns(server)
        operations_a_second(load, server, exchange, CONNECTIONS, rounds)
        return {SERVER: (_cpu_ns(server) - begin_ns) / 1000 / (rounds * exchange.operations)}

    def calls(self, work: str, operations: int, items: Items) -> Cost:
        """Call the checkout's own client. Returns us of CPU time an operation, of the client and of the daemon."""
        server = self.server()
        file = server.socket.with_name("items.json")
        file.write_text(json.dumps({key: value.decode() for key, value in items.items()}))
        words = (work, str(server.socket), str(cpu_clock(server.pid)), str(operations), str(file))
        cost: Cost = json.loads(output(self.checkout.driver(*words), clean_environment()))
        return cost

    def command(self, words: tuple[str, ...], variables: dict[str, str], outputs: Mapping[int, Path]) -> Cost:
        """Run the command `kv` with these words. Returns ms of wall time, and of CPU time of the process and daemon."""
        server = self.server()
        env = clean_environment() | {"KVD_SOCKET": str(server.socket)} | variables
        begin_ns = _cpu_ns(server)
        wall_ms, cpu_ms = whole_process(self.checkout.command(*words), env, outputs)
        return {WALL: wall_ms, CLIENT: cpu_ms, SERVER: (_cpu_ns(server) - begin_ns) / 1e6}


def _cpu_ns(server: Server) -> int:
    """CPU time of all threads of a daemon. The clock counts nanoseconds, /proc/PID/stat only steps of 10 ms."""
    return time.clock_gettime_ns(cpu_clock(server.pid))
