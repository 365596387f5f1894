"""Print rows on a terminal, and keep them in a file."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from bench.paired import Comparison, Paired
from bench.rows import Json, Row, Samples, Target

_WIDTHS = (52, 24, 36, 20, 8)
_COMPARED_WIDTHS = (10, 12, 12, 7, 15, 15)
_RESULTS = Path(__file__).parent / "results"


class Record(Protocol):
    """A row of any kind, which can be written as JSON."""

    def as_json(self) -> Json: ...


def heading() -> str:
    """Return the line above the rows."""
    return _line("measured", "kvd: median (min-max)", "beside it", "ratio (rounds)", "target", "verdict")


def line(row: Row) -> str:
    """Return one row as a line."""
    *cells, verdict = cells_of(row)
    return _line(*cells, f"{verdict}  {row.note}" if verdict and row.note else verdict or row.note)


def cells_of(row: Row) -> list[str]:
    """The cells of a row; the verdict is the last one."""
    theirs = f"{row.theirs.name} {spread(row.theirs, row.unit)}" if row.theirs else ""
    ratio = f"{row.ratio:.2f} ({min(row.round_ratios):.2f}-{max(row.round_ratios):.2f})" if row.ratio else ""
    return [row.name, spread(row.ours, row.unit), theirs, ratio, target_text(row.target, row.unit), row.verdict]


def spread(samples: Samples, unit: str) -> str:
    """The median with the minimum and the maximum, in one unit."""
    scale, sign = _scale(samples.median, unit)
    middle, low, high = (_digits(figure / scale) for figure in (samples.median, samples.low, samples.high))
    return f"{middle} {sign}" if len(samples.values) == 1 else f"{middle} {sign} ({low}-{high})"


def target_text(target: Target | None, unit: str) -> str:
    """The target as a ratio or an amount."""
    if target is None:
        return ""
    sign = "≥" if target.bound == ">=" else "≤"
    return f"{sign} {target.limit:g}{' ' + unit if target.of == 'value' else ' x'}"


def _scale(figure: float, unit: str) -> tuple[float, str]:
    if unit != "/s":
        return 1, unit
    return (1e6, "M/s") if figure >= 1e6 else (1e3, "k/s")


def _digits(figure: float) -> str:
    """Three significant digits."""
    return f"{figure:.0f}" if figure >= 100 else f"{figure:#.3g}"


def comparison_lines(rows: Sequence[Comparison]) -> list[str]:
    """The rows of two checkouts as lines, with a heading above and the descriptions below."""
    heading = ("row", "ours", "theirs", "ratio", "quartiles", "min-max", "parts: ours / theirs (ratio)")
    lines = [_columns(_COMPARED_WIDTHS, heading)]
    for row in rows:
        ours, theirs = (f"{_digits(figure)} {row.unit}" for figure in row.cost.medians)
        spread = row.cost.spread
        quartiles = f"{spread.first_quartile:.3f}-{spread.third_quartile:.3f}"
        cells = (row.name, ours, theirs, f"{spread.median:.3f}", quartiles, f"{spread.low:.3f}-{spread.high:.3f}")
        lines.append(_columns(_COMPARED_WIDTHS, (*cells, _parts(row))))
    lines += ["", *(f"{row.name}: {row.description}" for row in rows)]
    return lines


def _parts(row: Comparison) -> str:
    def text(name: str, part: Paired) -> str:
        ours, theirs = map(_digits, part.medians)
        return f"{name} {ours} / {theirs} ({part.spread.median:.3f})"

    return ", ".join(text(name, part) for name, part in row.parts.items())


def new_path(started: datetime) -> Path:
    """The default path of the result of a run."""
    return _RESULTS / f"{started:%Y%m%dT%H%M%SZ}.json"


def write_json(path: Path, machine: Mapping[str, str], run: Mapping[str, object], rows: Sequence[Record]) -> None:
    """Write the whole result, with all samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": dict(machine), "run": dict(run), "rows": [row.as_json() for row in rows]}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _line(*cells: str) -> str:
    return _columns(_WIDTHS, cells)


def _columns(widths: Sequence[int], cells: Sequence[str]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
    return " ".join([*padded, *cells[len(widths) :]]).rstrip()
