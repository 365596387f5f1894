"""How rows look on a terminal, and the file they are kept in."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.rows import Row, Samples, Target

_WIDTHS = (52, 24, 36, 20, 8)


def heading() -> str:
    """The line above the rows."""
    return _line("measured", "kvd: median (min-max)", "beside it", "ratio (rounds)", "target", "verdict")


def line(row: Row) -> str:
    """One row."""
    *cells, verdict = cells_of(row)
    return _line(*cells, f"{verdict}  {row.note}" if verdict and row.note else verdict or row.note)


def cells_of(row: Row) -> list[str]:
    """Its cells, the verdict last."""
    theirs = f"{row.theirs.name} {spread(row.theirs, row.unit)}" if row.theirs else ""
    ratio = f"{row.ratio:.2f} ({min(row.round_ratios):.2f}-{max(row.round_ratios):.2f})" if row.ratio else ""
    return [row.name, spread(row.ours, row.unit), theirs, ratio, wanted(row.target, row.unit), row.verdict]


def spread(samples: Samples, unit: str) -> str:
    """The median with the least and the greatest, in one unit."""
    scale, sign = _scale(samples.median, unit)
    middle, low, high = (_digits(figure / scale) for figure in (samples.median, samples.low, samples.high))
    return f"{middle} {sign}" if len(samples.values) == 1 else f"{middle} {sign} ({low}-{high})"


def wanted(target: Target | None, unit: str) -> str:
    """The target: a ratio, or an amount."""
    if target is None:
        return ""
    sign = "≥" if target.bound == ">=" else "≤"
    return f"{sign} {target.limit:g}{' ' + unit if target.of == 'value' else ' x'}"


def _scale(figure: float, unit: str) -> tuple[float, str]:
    if unit != "/s":
        return 1, unit
    return (1e6, "M/s") if figure >= 1e6 else (1e3, "k/s")


def _digits(figure: float) -> str:
    """Three digits that count."""
    return f"{figure:.0f}" if figure >= 100 else f"{figure:#.3g}"


def write_json(path: Path, machine: Mapping[str, str], run: Mapping[str, object], rows: Sequence[Row]) -> None:
    """Keep everything, samples included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": dict(machine), "run": dict(run), "rows": [row.as_json() for row in rows]}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _line(*cells: str) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=False)]
    return " ".join([*padded, *cells[len(_WIDTHS) :]]).rstrip()
