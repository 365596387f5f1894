"""All rows of a result as a page of the documentation: docs/figures.md, written beside the charts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import report
from bench.rows import Row, Samples, Target

PAGE = Path(__file__).parent.parent / "docs" / "figures.md"
_BEGIN = """\
# The figures of one whole run

Written by `make bench` (`bench/figures.py`), together with the charts; not by hand, and all of them from the same run.
What they mean, and why some targets are missed: [`performance.md`](performance.md). What each row does:
[`bench/README.md`](../bench/README.md). Medians, with the least and the greatest round in brackets.

"""
_HEADING = """\
| measured | kvd | beside it | ratio (rounds) | target | |
| --- | --- | --- | --- | --- | --- |
"""


def write(result: Path, page: Path = PAGE) -> Path:
    """Write the page of a result. Raises OSError, and ValueError, KeyError, TypeError for what is no result."""
    found = json.loads(result.read_text())
    facts = [f"- {name}: {text}" for name, text in _told(found["machine"], found["run"]).items()]
    rows = [_line(_row(each)) for each in found["rows"]]
    page.write_text(_BEGIN + "\n".join(facts) + "\n\n" + _HEADING + "\n".join(rows) + "\n")
    return page


def _told(machine: Mapping[str, str], run: Mapping[str, Any]) -> dict[str, str]:
    """What a reader has to know of the machine, without its paths."""
    interpreter = machine["interpreter"].partition(": ")[2]
    wanted = (
        "cores",
        "processor",
        "load average at start",
        "interpreter built with",
        "libraries",
        "redis",
        "memcached",
    )
    facts = {name: machine[name].partition(" (/")[0] for name in wanted if name in machine}
    return {"begun": run["started"][:16] + " UTC", "rounds": str(run["rounds"]), "interpreter": interpreter} | facts


def _row(told: dict[str, Any]) -> Row:
    """The row as it was before it became JSON."""
    ours, theirs = (
        told[side] and Samples(told[side]["name"], tuple(told[side]["values"])) for side in ("ours", "theirs")
    )
    target = told["target"] and Target(**told["target"])
    return Row(told["name"], told["unit"], ours, theirs, target, told["note"])


def _line(row: Row) -> str:
    cells = report.cells_of(row)
    if cells[-1].startswith("missed"):
        cells[-1] = f"**{cells[-1]}**"
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
