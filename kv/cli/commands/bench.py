"""``kv bench``: the throughput and the latency of the running daemon, measured from this machine."""

import time

from kv.cli.bench.options import Options, read_distribution, read_duration_s, read_mix, read_reads
from kv.cli.context import Context
from kv.cli.numbers import whole_number
from kv.cli.parser import Parser, set_completer
from kvd.protocol import exits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import _ArgumentGroup

    from kv.blocking.client import Client
    from kv.cli.bench.plan import Plan
    from kv.cli.bench.report import Results
    from kv.cli.bench.tally import Tally
    from kv.cli.bench.workers import Workers
    from kvd.service.progress import ProgressBar

USAGE = "kv bench [OPTION]..."
EXAMPLES = """
kv bench                            5 seconds: 95 % gets, 5 % sets, 16 connections
kv bench --mix get=50,set=40,incr=10 --duration 30
kv bench --pipeline 64 --processes 2   many requests a frame, from two processes
kv bench --reads 99 --near-cache    reads that programs answer in their own memory
kv bench --keys 1000000 --value-size 1000 --distribution zipf
kv bench --requests 100000 --json   for programs
"""
DETAILS = """
It loads --keys keys below a prefix of its own, kv-bench/ and a random name, and deletes them at the end, also after
Ctrl-C; after a 'kill -9' use 'kv del --prefix kv-bench/'. Nobody else's keys are read or written, but a daemon at work
has less time for others, and the history keeps what is overwritten, as ever. Writes are as durable as the daemon is
configured.

Each connection sends a frame, waits for its answer and sends the next; a request's latency is that of its frame. It is
known to 1.6 %, and with --near-cache of every 16th operation. Mind the last line: these clients are written in Python,
and often they are the limit, not the daemon. Exit code 5 if there were errors.
"""


def arguments(parser: Parser) -> None:
    """The options of ``kv bench``."""
    work = parser.add_argument_group("the work")
    mix = work.add_mutually_exclusive_group()
    mix.add_argument(
        "--mix", metavar="NAME=SHARE,...", type=read_mix, help="get, set, del, incr (default: get=95,set=5)"
    )
    mix.add_argument("--reads", metavar="PERCENT", type=read_reads, help="that many gets, the rest sets")
    _number(work, "--keys", "N", "different keys (default: 10000)")
    _number(work, "--value-size", "BYTES", "of each value (default: 64)", minimum=0, dest="value_bytes")
    set_completer(
        work.add_argument("--distribution", metavar="NAME", type=read_distribution,
                          help="uniform, or zipf: few keys get most requests (default: uniform)"),
        "distributions",
    )  # fmt: skip
    _number(work, "--seed", "N", "other choices of operations and keys (default: 1)", minimum=0)
    end = work.add_mutually_exclusive_group()
    set_completer(
        end.add_argument("--duration", dest="duration_s", metavar="DURATION", type=read_duration_s,
                         help="for how long (default: 5s)"),
        "durations",
    )  # fmt: skip
    _number(end, "--requests", "N", "end after so many requests")
    clients = parser.add_argument_group("the clients")
    _number(clients, "--connections", "N", "in all (default: 16)")
    _number(clients, "--pipeline", "N", "requests a frame (default: 1)")
    _number(clients, "--processes", "N", "worker processes (default: 1)")
    clients.add_argument(
        "--near-cache", action="store_true", help="with a near cache in each process, one connection each"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")


def _number(
    group: "_ArgumentGroup", option: str, metavar: str, text: str, *, minimum: int = 1, dest: str | None = None
) -> None:
    group.add_argument(option, dest=dest, metavar=metavar, type=whole_number(option, minimum), help=text)


def run(context: Context, options: Options) -> int:
    """Measure and print. However the measurement ends, its keys are removed."""
    from kv.cli.bench import signals
    from kv.cli.bench.plan import Plan
    from kv.cli.bench.report import as_json, as_text

    plan = Plan(options)
    with signals.ending():
        results = _measure(context, plan)
    if options.json:
        context.print_json(as_json(results))
    else:
        for line in as_text(results):
            context.print(line)
    return exits.SERVER_ERROR if results.tally.errors else exits.OK


def _measure(context: Context, plan: "Plan") -> "Results":
    from kv.cli.bench.keys import new_prefix
    from kv.cli.bench.workers import Workers

    prefix = new_prefix()
    with context.connect() as client:
        client.ping()  # fails here, before any process is started, if there is no daemon
        try:
            with Workers(plan, prefix) as workers:
                workers.start()
                return _work(context, client, plan, prefix, workers)
        finally:
            _remove(context, client, prefix)


def _work(context: Context, client: "Client", plan: "Plan", prefix: str, workers: "Workers") -> "Results":
    from kv.cli.bench import keys
    from kv.cli.bench.processor import daemon_pid, used_s
    from kv.cli.bench.report import Results

    pid = daemon_pid(client.status().get("pid"), client.server_pid())
    started = time.monotonic()
    with context.progress(" keys", "loading") as bar:
        keys.load(client, plan, prefix, bar)
    loaded_s = time.monotonic() - started
    before_s = None if pid is None else used_s(pid)
    with context.progress(" requests" if plan.requests else "s", "measuring") as bar:
        tally = _work_with_bar(workers, plan, bar)
    after_s = None if pid is None else used_s(pid)
    daemon_s = None if before_s is None or after_s is None else after_s - before_s
    return Results(plan, tally, daemon_s, loaded_s)


def _work_with_bar(workers: "Workers", plan: "Plan", bar: "ProgressBar") -> "Tally":
    started = time.monotonic()

    def progress(done: int) -> None:
        if plan.requests is not None:
            bar.update(done, plan.requests)
        else:
            total_s = int(plan.duration_s or 0)
            bar.update(min(int(time.monotonic() - started), total_s), total_s)

    return workers.work(progress)


def _remove(context: Context, client: "Client", prefix: str) -> None:
    """Delete the keys, undisturbed by another Ctrl-C. Warns if that fails."""
    from kv.cli.bench import keys, signals
    from kv.errors import KvdError

    with signals.deferred(), context.progress(" keys", "removing") as bar:
        try:
            keys.remove(client, prefix, bar)
        except KvdError as error:
            context.warn(f"warning: keys below {prefix} may be left: {error.message}")
