"""``python -m bench --against DIR``: what it computes, what it refuses, and one small run beside another checkout."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import __main__ as command_line
from bench import against
from bench.checkout import Checkout
from bench.compared_rows import ROWS, ComparedRow
from bench.context import Context
from bench.errors import BenchError
from bench.paired import Comparison, Paired, Spread, in_turn
from bench.report import comparison_lines
from bench.side import Cost, Side
from tests.harness.processes import ROOT

DEADLINE_S = 600
needs_gcc = pytest.mark.skipif(
    shutil.which("gcc") is None and "CI" not in os.environ, reason="the load generator is a C program"
)


# ------------------------------------------------------------------ the statistics


def test_the_ratio_of_a_round_is_the_median_of_its_pairs() -> None:
    paired = Paired(ours=((10, 12, 90), (8, 6, 7)), theirs=((10, 10, 10), (8, 8, 14)))
    # Pairs: 1, 1.2, 9 in the first round, and 1, 0.75, 0.5 in the second one.
    assert paired.ratios == (1.2, 0.75)


def test_the_spread_of_ratios_worked_out_by_hand() -> None:
    ratios = (1.0, 1.2, 0.9, 1.1, 1.4)
    paired = Paired(tuple((10 * ratio,) for ratio in ratios), tuple((10.0,) for _ in ratios))
    assert paired.spread == Spread(median=1.1, first_quartile=1.0, third_quartile=1.2, low=0.9, high=1.4)


def test_quartiles_lie_between_two_ratios_where_no_ratio_is_in_their_place() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0]) == Spread(2.5, 1.75, 3.25, 1.0, 4.0)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 2.0, 2.0)


def test_one_disturbed_measurement_of_three_does_not_move_the_ratio() -> None:
    calm = Paired(((5.0, 5.0, 5.0),) * 3, ((5.0, 5.0, 5.0),) * 3)
    disturbed = Paired(((5.0, 50.0, 5.0),) * 3, ((5.0, 5.0, 5.0),) * 3)
    assert disturbed.spread == calm.spread


def test_both_sides_being_slower_in_one_round_does_not_move_the_ratio() -> None:
    paired = Paired(((11.0,), (110.0,)), ((10.0,), (100.0,)))
    assert paired.spread == Spread.of([1.1, 1.1])


def test_the_median_cost_is_that_of_all_measurements() -> None:
    assert Paired(((1.0, 9.0), (2.0, 3.0)), ((4.0, 4.0), (4.0, 5.0))).medians == (2.5, 4.0)


def test_rounds_that_one_side_lacks_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        _ = Paired(((1.0,), (1.0,)), ((1.0,),)).ratios


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=30))
def test_a_spread_is_in_order(values: list[float]) -> None:
    spread = Spread.of(values)
    ordered = (spread.low, spread.first_quartile, spread.median, spread.third_quartile, spread.high)
    assert list(ordered) == sorted(ordered)
    assert (spread.low, spread.high) == (min(values), max(values))


def test_sides_take_turns_in_going_first() -> None:
    assert [in_turn(("ours", "theirs"), number) for number in range(3)] == [
        ("ours", "theirs"), ("theirs", "ours"), ("ours", "theirs"),
    ]  # fmt: skip


# ------------------------------------------------------------------ rounds and rows


class Measurements:
    """A measurement that returns these costs in turn, and records the sides and the efforts."""

    def __init__(self, *costs: Cost) -> None:
        self.order: list[str] = []
        self.efforts: list[float] = []
        self._costs = list(costs)

    def __call__(self, side: Side, effort: float) -> Cost:
        self.order.append(side.checkout.name)
        self.efforts.append(effort)
        return self._costs.pop(0)


def sides(tmp_path: pathlib.Path) -> dict[str, Side]:
    """Two sides that start nothing."""
    checkouts = [Checkout(name, tmp_path, tmp_path / "python") for name in ("ours", "theirs")]
    context = Context(checkouts[0].daemon(), [], 2, False, tmp_path)
    return {checkout.name: Side(checkout, context, ExitStack()) for checkout in checkouts}


@pytest.mark.parametrize(
    ("number", "order"),
    [
        (0, ["ours", "theirs", "ours", "theirs", "theirs", "ours"]),
        (1, ["theirs", "ours", "theirs", "ours", "ours", "theirs"]),
    ],
)
def test_a_round_warms_both_sides_up_and_pairs_them(tmp_path: pathlib.Path, number: int, order: list[str]) -> None:
    measure = Measurements(*({"server": float(cost)} for cost in range(6)))
    row = ComparedRow("a row", "us", 2, ("server",), measure)
    costs = against.one_round(row, number, sides(tmp_path), quick=False)
    assert measure.order == order
    assert [effort < 1 for effort in measure.efforts] == [True, True, False, False, False, False]
    first, second = costs[order[2]], costs[order[3]]
    assert first == [{"server": 2.0}, {"server": 5.0}]
    assert second == [{"server": 3.0}, {"server": 4.0}]


def test_a_row_compares_the_sum_of_its_parts_and_knows_each_part() -> None:
    row = ComparedRow("a row", "us", 1, ("client", "server"), Measurements())
    costs = {"ours": [{"client": 6.0, "server": 5.0}], "theirs": [{"client": 8.0, "server": 2.0}]}
    result = against.comparison("get1", row, [costs, costs])
    assert result.cost == Paired(((11.0,), (11.0,)), ((10.0,), (10.0,)))
    assert result.parts["client"].ratios == (0.75, 0.75)
    assert result.parts["server"].ratios == (2.5, 2.5)


def test_a_whole_process_is_compared_by_its_wall_time() -> None:
    for name in ("kv_get", "tab"):
        assert ROWS[name].cost({"wall": 20.0, "client": 15.0, "server": 1.0}) == 20.0


def test_a_row_is_printed_with_its_spread_and_its_parts() -> None:
    client = Paired(((9.0,), (9.0,), (9.0,)), ((10.0,), (10.0,), (10.0,)))
    row = Comparison("get1", "us", "1 get a frame", client, {"client": client})
    _, line, *_, explanation = comparison_lines([row])
    assert line.split() == [
        "get1", "9.00", "us", "10.0", "us", "0.900", "0.900-0.900", "0.900-0.900",
        "client", "9.00", "/", "10.0", "(0.900)",
    ]  # fmt: skip
    assert explanation == "get1: 1 get a frame"


# ------------------------------------------------------------------ the command line


def test_the_rows_that_two_checkouts_are_compared_by() -> None:
    assert set(ROWS) == {"get1", "get64", "get_many", "set1", "set64", "set100", "durable", "kv_get", "tab"}
    options = command_line.parse(["--against", "/other", "--only", "get1", "tab", "--rounds", "9"])
    assert (options.against, options.only, options.rounds) == (pathlib.Path("/other"), ["get1", "tab"], 9)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--only stall get1 http", "cannot measure stall, http"),
        ("--charts results.json", "neither --charts nor --serve"),
        ("--serve kv", "neither --charts nor --serve"),
        ("--rounds 0", "--rounds"),
    ],
)
def test_options_that_do_not_go_together(capsys: pytest.CaptureFixture[str], words: str, reason: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        command_line.parse(["--against", "/other", *words.split()])
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_checkout_without_an_environment_says_what_to_run(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BenchError, match="is not a directory"):
        Checkout.other(tmp_path / "missing")
    with pytest.raises(BenchError, match=rf"run `make -C {tmp_path} \.venv/\.kvd`"):
        Checkout.other(tmp_path)


def test_an_environment_that_runs_the_code_of_another_checkout_is_refused(tmp_path: pathlib.Path) -> None:
    checkout = Checkout("theirs", tmp_path, pathlib.Path(sys.executable))
    with pytest.raises(BenchError, match=rf"does not run the code of {tmp_path} but"):
        checkout.describe()


# ------------------------------------------------------------------ one small run


@pytest.fixture
def other(tmp_path: pathlib.Path) -> pathlib.Path:
    """A second checkout with the same code, and an environment that runs it."""
    folder = tmp_path / "other"
    for package in ("kv", "kvd"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    binaries = folder / ".venv" / "bin"
    binaries.mkdir(parents=True)
    python = binaries / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    shutil.copy(ROOT / "kv" / "script.py", binaries / "kv")
    return folder


def run(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", "bench", *options],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=DEADLINE_S,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip


@needs_gcc
def test_a_quick_run_beside_another_checkout(other: pathlib.Path, tmp_path: pathlib.Path) -> None:
    result = tmp_path / "result.json"
    done = run("--against", str(other), "--quick", "--rounds", "1", "--json", str(result))
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(result.read_text())
    assert (record["run"]["rounds"], record["run"]["failures"]) == (1, [])
    assert str(other) in record["machine"]["theirs"]
    assert list((other / "kv").rglob("*.pyc")), "each start compiled every module"
    assert [row["name"] for row in record["rows"]] == list(ROWS)
    for row in record["rows"]:
        assert len(row["ratios"]) == 1
        assert row["ratio"]["low"] > 0
        assert list(row["parts"]) == {
            "kv_get": ["wall", "client", "server"], "tab": ["wall", "client", "server"], "durable": ["server"],
        }.get(row["name"], ["client", "server"])  # fmt: skip
        assert f"{row['name']}: {row['description']}" in done.stdout


@needs_gcc
def test_what_cannot_be_measured_is_named_and_ends_the_run_with_status_1(
    other: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    script = other / ".venv" / "bin" / "kv"
    script.write_text("import sys\nif 'get' in sys.argv:\n    sys.exit('broken')\n" + script.read_text())
    result = tmp_path / "result.json"
    done = run("--against", str(other), "--quick", "--rounds", "1", "--only", "kv_get", "get1", "--json", str(result))
    assert done.returncode == 1
    assert "kv_get was not measured: " in done.stderr
    record: dict[str, Any] = json.loads(result.read_text())
    assert [row["name"] for row in record["rows"]] == ["get1"]
    assert [failure.partition(":")[0] for failure in record["run"]["failures"]] == ["kv_get"]
