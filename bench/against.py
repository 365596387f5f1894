"""`--against DIR`: this checkout and another one in the same rounds, each with its own client and its own daemon.

Everything runs on one core: the daemons, their clients and the load generator. On two cores the CPU time of a request
depends on the number of requests that wait when the daemon polls, and so on the other load of the machine. On one core
the same work costs the same each time. The result does not show what threads gain from a second core.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path

from bench import report
from bench.checkout import Checkout
from bench.compared_rows import ROWS, ComparedRow
from bench.context import Context
from bench.errors import BenchError
from bench.machine import describe
from bench.paired import Comparison, Paired, Rounds, in_turn
from bench.side import Cost, Side

ROUNDS = 12  # an even number: as many rounds begin with one side as with the other
_QUICK_ROUNDS = 2
_SMALL_EFFORT = 0.2  # of the work of one measurement: to warm up, and in a quick run
_HERE = Path(__file__).parent.parent
_Costs = dict[str, list[Cost]]  # side → its costs in one round, pair by pair


def main(directory: Path, only: Sequence[str] | None, rounds: int | None, quick: bool, json: Path | None) -> int:
    """Measure, print and keep. Returns 1 if a measurement failed; a slower checkout is a result, not a failure."""
    started = datetime.now(UTC)
    rounds = rounds or (_QUICK_ROUNDS if quick else ROUNDS)
    try:
        checkouts = (Checkout("ours", _HERE, Path(sys.executable)), Checkout.other(directory))
        facts = facts_of(checkouts)
        print("\n".join(f"{fact}: {text}" for fact, text in facts.items()))
        with on_one_core(), tempfile.TemporaryDirectory(prefix="kvd-bench-") as temporary:
            context = Context(checkouts[0].daemon(), [], rounds, quick, Path(temporary))
            rows, failures = compare(checkouts, context, [name for name in ROWS if name in (only or ROWS)])
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(report.comparison_lines(rows)))
    run = {"started": started.isoformat(), "rounds": rounds, "quick": quick, "failures": failures}
    path = json or report.new_path(started)
    report.write_json(path, facts, run, rows)
    print(f"\nkept in {path}")
    return 1 if failures else 0


def facts_of(checkouts: Sequence[Checkout]) -> dict[str, str]:
    """Describe the machine and both checkouts. Warns if their interpreters or libraries differ."""
    descriptions = {checkout.name: checkout.describe() for checkout in checkouts}
    ours, theirs = descriptions.values()
    for fact in ("python", "libraries"):
        if ours[fact] != theirs[fact]:
            print(f"warning: {fact} of the checkouts differ: {ours[fact]}; {theirs[fact]}", file=sys.stderr)
    texts = {name: ", ".join(f"{fact} {text}" for fact, text in facts.items()) for name, facts in descriptions.items()}
    return describe([]) | texts


def compare(
    checkouts: Sequence[Checkout], context: Context, names: Sequence[str]
) -> tuple[list[Comparison], list[str]]:
    """Measure these rows in every round. Returns the rows and the failures. A row that fails once is left out."""
    costs: dict[str, list[_Costs]] = {name: [] for name in names}
    failures: dict[str, str] = {}
    for number in range(context.rounds):
        with ExitStack() as stack:
            sides = {checkout.name: Side(checkout, context, stack) for checkout in checkouts}
            for name in [name for name in names if name not in failures]:
                try:
                    costs[name].append(one_round(ROWS[name], number, sides, context.quick))
                except (BenchError, OSError) as error:
                    failures[name] = f"{name}: {error}"
                    print(f"{name} was not measured: {error}", file=sys.stderr)
        print(f"round {number + 1} of {context.rounds} is complete", file=sys.stderr)
    rows = [comparison(name, ROWS[name], costs[name]) for name in names if name not in failures]
    return rows, list(failures.values())


def one_round(row: ComparedRow, number: int, sides: Mapping[str, Side], quick: bool) -> _Costs:
    """Warm up, then measure the pairs of a round. Rounds and pairs begin with each side in turn."""
    costs: _Costs = {name: [] for name in sides}
    for name in in_turn(list(sides), number):
        row.measure(sides[name], _SMALL_EFFORT)
    for pair in range(1 if quick else row.pairs):
        for name in in_turn(list(sides), number + pair):
            costs[name].append(row.measure(sides[name], _SMALL_EFFORT if quick else 1))
    return costs


def comparison(name: str, row: ComparedRow, rounds: Sequence[_Costs]) -> Comparison:
    """Pair the costs of a row: the cost that it compares, and each part by itself."""

    def paired(figure: Callable[[Cost], float]) -> Paired:
        ours, theirs = (_figures(rounds, side, figure) for side in ("ours", "theirs"))
        return Paired(ours, theirs)

    parts = {part: paired(itemgetter(part)) for part in rounds[0]["ours"][0]}
    return Comparison(name, row.unit, row.description, paired(row.cost), parts)


def _figures(rounds: Sequence[_Costs], side: str, figure: Callable[[Cost], float]) -> Rounds:
    return tuple(tuple(figure(cost) for cost in costs[side]) for costs in rounds)


@contextmanager
def on_one_core() -> Iterator[None]:
    """Restrict this process, and all processes that it starts meanwhile, to the last of its cores."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
