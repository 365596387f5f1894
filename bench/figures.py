"""Write all rows of a result as a page of the documentation, docs/figures.md. The charts are written with it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import report
from bench.rows import Row, Samples, Target

PAGE = Path(__file__).parent.parent / "docs" / "figures.md"
_BEGIN = """\
# The figures of one whole run

`make bench` (`bench/figures.py`) writes this page and the charts; do not edit it. All rows are of the same run, or of
a later run that measured some of them again; the first lines say which.
What the rows mean, and why some targets are missed: [`performance.md`](performance.md). What each row does:
[`bench/README.md`](../bench/README.md). Medians, with the minimum and the maximum of the rounds in brackets.

"""
_HEADING = """\
| measured | kvd | beside it | ratio (rounds) | target | |
| --- | --- | --- | --- | --- | --- |
"""


def write(results: Sequence[Path], page: Path = PAGE) -> Path:
    """Write the page of a whole result. Rows that a later result measured again replace those of the whole one.

    Raises OSError, or ValueError, KeyError or TypeError for a file that is not a result.
    """
    whole, *others = (json.loads(result.read_text()) for result in results)
    facts = [f"- {name}: {text}" for name, text in _facts(whole["machine"], whole["run"]).items()]
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


def _title(record: dict[str, Any]) -> tuple[str, str]:
    """The name of a row, and of the subject beside kvd."""
    return record["name"], record["theirs"]["name"] if record["theirs"] else ""


def _facts(machine: Mapping[str, str], run: Mapping[str, Any]) -> dict[str, str]:
    """What a reader must know of the machine, without its paths."""
    interpreter = machine["interpreter"].partition(": ")[2]
    shown = (
        "cores",
        "processor",
        "load average at start",
        "interpreter built with",
        "libraries",
        "redis",
        "memcached",
    )
    facts = {name: machine[name].partition(" (/")[0] for name in shown if name in machine}
    return {"begun": run["started"][:16] + " UTC", "rounds": str(run["rounds"]), "interpreter": interpreter} | facts


def _row(record: dict[str, Any]) -> Row:
    """The row that this JSON was written from."""
    ours, theirs = (
        record[side] and Samples(record[side]["name"], tuple(record[side]["values"])) for side in ("ours", "theirs")
    )
    target = record["target"] and Target(**record["target"])
    return Row(record["name"], record["unit"], ours, theirs, target, record["note"])


def _line(row: Row) -> str:
    cells = report.cells_of(row)
    if cells[-1].startswith("missed"):
        cells[-1] = f"**{cells[-1]}**"
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
