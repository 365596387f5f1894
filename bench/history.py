"""What the history costs gets: another connection writes meanwhile, with and without pruning and snapshots."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from bench.context import THROUGHPUT_KEYS, Context
from bench.data import chosen
from bench.process import Child, clean_environment
from bench.rows import Row, Samples, Target
from bench.servers import Server
from bench.throughput import CONNECTIONS, GET_64, operations_a_second

_CHECKOUT = Path(__file__).parent.parent
_SNAPSHOTS = 1_000
_DAY_MS = 86_400_000

# A history that is long enough to drop nothing during a run, and one in which each write drops as much as it adds.
_LONG = "history.max_versions = 1000000000\nhistory.max_bytes = 1099511627776\n"
_SHORT = "history.max_versions = 1000\n"
_PATIENT = f"limits.snapshot_idle_timeout_ms = {_DAY_MS}\n"


def history(context: Context) -> Iterator[Row]:
    """64 gets a frame beside a steady writer: plain, while each write prunes, and while 1,000 snapshots are held."""
    with ExitStack() as stack:
        plain = _Case(context, stack, _LONG, 0)
        pruned = _Case(context, stack, _SHORT, 0)
        pinned = _Case(context, stack, _LONG + _PATIENT, _SNAPSHOTS)
        for _ in range(context.rounds):
            for case in (plain, pruned, pinned):
                case.measure()
        beside = Samples("no pruning, none held", tuple(plain.figures))
        target = Target(">=", 0.9)
        yield Row("gets beside a writer, pruning", "/s", Samples("kvd", tuple(pruned.figures)), beside, target)
        title = f"gets beside a writer, {_SNAPSHOTS} snapshots held"
        yield Row(title, "/s", Samples("kvd", tuple(pinned.figures)), beside, target)


class _Case:
    """One server with limits of its own. A writer runs only while the server is measured."""

    def __init__(self, context: Context, stack: ExitStack, config: str, snapshots: int) -> None:
        self.figures: list[float] = []
        self._context = context
        self._snapshots = snapshots
        directory = context.new_directory()
        file = directory / "kvd.toml"
        file.write_text(config)
        self._server = stack.enter_context(Server(context.kvd.with_options("--config", str(file)), directory))
        self._server.load(THROUGHPUT_KEYS)

    def measure(self) -> None:
        """Measure one round."""
        command = [sys.executable, "-m", "bench.paced_writer", str(self._server.socket), str(self._snapshots)]
        writer = Child(command, self._server.socket.with_name("writer.log"), clean_environment(), cwd=_CHECKOUT)
        try:
            writer.wait_for_output("ready", 20.0)
            load = self._context.program("load")
            gets = self._context.kvd.gets(chosen(GET_64.keys, THROUGHPUT_KEYS))
            sent = self._context.work(GET_64.rounds_sent)
            self.figures.append(operations_a_second(load, self._server, gets, CONNECTIONS, sent))
        finally:
            writer.stop()
