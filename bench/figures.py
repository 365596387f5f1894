"""All rows of a result as a page of the documentation: docs/figures.md, written beside the charts."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.rows import Row, Samples, Target

PAGE = Path(__file__).parent.parent / "docs" / "figures.md"
_BEGIN = """\
# The figures of one whole run

Written by `make bench` (`bench/figures.py`), together with the charts; not by hand. All rows are of the same run, or of
one that measured some of them again, as the first lines tell.
What they mean, and why some targets are missed: [`performance.md`](performance.md). What each row does:
[`bench/README.md`](../bench/README.md). Medians, with the least and the greatest round in brackets.

"""
_HEADING = """\
| measured | kvd | beside it | ratio (rounds) | target | |
| --- | --- | --- | --- | --- | --- |
"""


def write(results: Sequence[Path], page: Path = PAGE) -> Path:
    """Write the page of a whole result, and of others that measured some of its rows again: theirs count.

    Raises OSError, and ValueError, KeyError, TypeError for what is no result.
    """
    whole, *others = (json.loads(result.read_text()) for result in results)
    facts = [f"- {name}: {text}" for name, text in _told(whole["machine"], whole["run"]).items()]
    rows = {_title(each): each for each in whole["rows"]}
    for other in others:
        again = {_title(each): each for each in other["rows"]}
        rows |= again
        began = other["run"]["started"][:16]
        facts.append(f"- again, begun {began} UTC, {other['run']['rounds']} rounds: the last {len(again)} rows")
        rows |= {title: rows.pop(title) for title in again}  # to the end
    lines = [_line(_row(each)) for each in rows.values()]
    page.write_text(_BEGIN + "\n".join(facts) + "\n\n" + _HEADING + "\n".join(lines) + "\n")
    return page


def _title(told: dict[str, Any]) -> tuple[str, str]:
    """What a row measures, and beside what."""
    return told["name"], told["theirs"]["name"] if told["theirs"] else ""


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
