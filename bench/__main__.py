"""`python -m bench`: run the benchmarks, print a row for each figure, and keep the rows as JSON."""

import argparse
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench import against, charts, figures, report
from bench.compared_rows import ROWS
from bench.context import Context
from bench.errors import BenchError
from bench.machine import describe
from bench.peers.base import Peer
from bench.peers.kvd import SERVE, Kvd
from bench.peers.memcached import Memcached
from bench.peers.redis import Redis
from bench.rows import Row
from bench.suite import BENCHMARKS


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = ", ".join(BENCHMARKS)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(BENCHMARKS), help=f"only these of: {names}")
    parser.add_argument(
        "--rounds",
        type=_positive,
        metavar="N",
        help=f"rounds of each workload (7; quick: 3; with --against {against.ROUNDS}; quick: 2)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the result goes (bench/results/TIME.json)")
    parser.add_argument(
        "--quick", action="store_true", help="less work: shows that the benchmarks run, not how fast kvd is"
    )
    parser.add_argument(
        "--charts",
        nargs="+",
        type=Path,
        metavar="RESULTS",
        help="measure nothing; draw docs/charts/ of the first file; write docs/figures.md, later files replace rows",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="DIR",
        help=f"measure this checkout beside the one in DIR, in the same rounds; rows: {', '.join(ROWS)}",
    )
    parser.add_argument(
        "--serve", default=shlex.join(SERVE), metavar="COMMAND", help="the command that starts kvd on {socket}"
    )
    args = parser.parse_args(argv)
    if args.against and (others := [name for name in args.only or [] if name not in ROWS]):
        parser.error(f"--against cannot measure {', '.join(others)}, only {', '.join(ROWS)}")
    if args.against and (args.charts or args.serve != parser.get_default("serve")):
        parser.error("--against goes with neither --charts nor --serve")
    return args


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def available(peers: Sequence[Peer]) -> list[Peer]:
    """Return the installed peers, and name the missing ones on stderr."""
    for peer in peers:
        if reason := peer.missing():
            print(f"{peer.name} is left out: {reason}", file=sys.stderr)
    return [peer for peer in peers if not peer.missing()]


def run(context: Context, names: Sequence[str]) -> tuple[list[Row], list[str]]:
    """Run these benchmarks and print each row when it is measured. Returns the rows and the failures."""
    rows: list[Row] = []
    failures: list[str] = []
    print(report.heading())
    for name in names:
        try:
            for row in BENCHMARKS[name](context):
                print(report.line(row), flush=True)
                rows.append(row)
        except (BenchError, OSError) as error:
            failures.append(f"{name}: {error}")
            print(f"{name} was not measured: {error}", file=sys.stderr)
    return rows, failures


def draw(results: Sequence[Path]) -> int:
    """Draw the charts of the first result and write the figures of all. Returns 2 if a file is not a result."""
    try:
        for path in [*charts.write(results[0]), figures.write(results)]:
            print(f"written: {path}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"this file is not a result of the benchmarks: {error!r}", file=sys.stderr)
        return 2
    return 0


def main(argv: Sequence[str]) -> int:
    """Run, print and keep. Returns 1 if a measurement failed; a missed target is a result, not a failure."""
    args = parse(argv)
    if args.charts:
        return draw(args.charts)
    if args.against:
        return against.main(args.against, args.only, args.rounds, args.quick, args.json)
    kvd = Kvd(shlex.split(args.serve))
    peers = available([Redis(), Memcached()])
    machine = describe([kvd, *peers])
    for fact, text in machine.items():
        print(f"{fact}: {text}")
    print("A quick run: the figures show that the benchmarks work, not how fast kvd is.\n" if args.quick else "")
    started = datetime.now(UTC)
    rounds = args.rounds or (3 if args.quick else 7)
    with tempfile.TemporaryDirectory(prefix="kvd-bench-") as directory:
        context = Context(kvd, peers, rounds, args.quick, Path(directory))
        try:
            rows, failures = run(context, args.only or list(BENCHMARKS))
        finally:
            context.close()
    facts = {"started": started.isoformat(), "rounds": rounds, "quick": args.quick, "failures": failures}
    path = args.json or report.new_path(started)
    report.write_json(path, machine, facts, rows)
    print(f"\nkept in {path}")
    if not args.only and not args.quick:
        draw([path])
    return 1 if failures else 0


def _end(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)  # raises an exception, so that the servers are stopped on the way out
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
