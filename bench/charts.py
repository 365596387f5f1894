"""Draw the charts of a result as SVG: `python -m bench --charts RESULTS.json` writes them into docs/charts/.

The colours are readable on a white and on a dark page; a chart has no background of its own. A chart whose rows are
missing in the result is not written, and its old file stays.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

CHARTS = Path(__file__).parent.parent / "docs" / "charts"
_WIDTH, _LABEL, _FIGURE = 760, 230, 130
_ROW, _BAR, _TOP = 30, 16, 56
_OURS, _THEIRS, _TEXT, _WHISKER = "#d97706", "#8fb0d3", "#7d8590", "#5b6470"
_FONT = "font-family='system-ui, sans-serif'"


@dataclass(frozen=True)
class Bar:
    """One subject: its median, and the minimum and maximum of its rounds."""

    label: str
    median: float
    low: float
    high: float
    ours: bool


@dataclass(frozen=True)
class Chart:
    """Bars, one below the other. ``mark`` is a value that is drawn as a line through all of them."""

    name: str
    title: str
    subtitle: str
    bars: Sequence[Bar]
    logarithmic: bool = False
    mark: float | None = None
    unit: str = "/s"


def write(result: Path, directory: Path = CHARTS) -> list[Path]:
    """Draw the charts of a result and return their files. Raises OSError, or ValueError if it is not a result."""
    rows = json.loads(result.read_text())["rows"]
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for chart in _charts(rows):
        path = directory / f"{chart.name}.svg"
        path.write_text(svg(chart))
        paths.append(path)
    return paths


def _charts(rows: list[dict[str, Any]]) -> Iterator[Chart]:
    """Yield the charts whose rows are in the result."""
    if bars := _subjects(rows, "repeated get of one key"):
        title = "Reading one key again and again, one Python process"
        yield Chart("reads", title, "gets a second, more is better; logarithmic", bars, logarithmic=True)
    if bars := _subjects(rows, "95 % get, 5 % set, 10,000"):
        title = "95 % reads, 5 % writes of 10,000 keys (zipf), 4 Python processes"
        yield Chart("hot", title, "operations a second of all four together, more is better", bars)
    if bars := list(_ratios(rows)):
        subtitle = (
            "kvd's operations a second to Redis's (the line), 32 connections, load generator in C; thin: the rounds"
        )
        yield Chart("redis", "Over the socket, beside Redis", subtitle, bars, mark=1.0, unit="x")
    if bars := _subjects(rows, "p99.9 of single gets"):
        rate = next(row["name"] for row in rows if row["name"].startswith("p99.9 of single gets")).split(", ")[1]
        subtitle = f"µs from when it was due, at {rate} for each (half of what kvd can do); less is better"
        yield Chart("tail", "99.9 % of single gets are answered within", subtitle, bars, unit="us")


def _bar(samples: dict[str, Any], *, ours: bool) -> Bar:
    values = sorted(samples["values"])
    middle = len(values) // 2
    median = values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
    return Bar(samples["name"], median, values[0], values[-1], ours)


def _subjects(rows: list[dict[str, Any]], prefix: str) -> list[Bar]:
    """The subjects of the rows whose names have this prefix: ours first, then the others by median."""
    matches = [row for row in rows if row["name"].startswith(prefix) and row["theirs"]]
    if not matches:
        return []
    others = [_bar(row["theirs"], ours=row["theirs"]["name"].startswith("kvd")) for row in matches]
    return [_bar(matches[0]["ours"], ours=True), *sorted(others, key=lambda bar: -bar.median)]


def _ratios(rows: list[dict[str, Any]]) -> Iterator[Bar]:
    """The ratio of kvd to Redis, for each workload over the socket."""
    for row in rows:
        if " | " in row["name"] and row["theirs"] and row["theirs"]["name"] == "redis":
            rounds = row["round_ratios"]
            yield Bar(row["name"].split(" | ")[0], row["ratio"], min(rounds), max(rounds), True)


def svg(chart: Chart) -> str:
    """The chart as the text of an SVG file."""
    height = _TOP + _ROW * len(chart.bars) + (22 if chart.mark else 8)
    place = _scale(chart)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {height}' width='{_WIDTH}' height='{height}' "
        f"role='img' aria-label='{escape(chart.title)}' {_FONT}>",
        _text(0, 18, chart.title, size=15, weight=600),
        _text(0, 38, chart.subtitle, size=12),
    ]
    for number, bar in enumerate(chart.bars):
        parts += _draw(bar, _TOP + _ROW * number, place, chart.unit)
    if chart.mark is not None:
        x, bottom = place(chart.mark), _TOP + _ROW * len(chart.bars)
        parts.append(f"<path d='M{x:.1f} {_TOP - 4}V{bottom}' stroke='{_TEXT}' stroke-dasharray='4 3'/>")
        parts.append(_text(x, bottom + 14, f"{chart.mark:g} {chart.unit}", size=11, anchor="middle"))
    return "\n".join([*parts, "</svg>", ""])


def _scale(chart: Chart) -> "Any":  # noqa: ANN401 - a function of a value
    """Return the function from a value to its horizontal position."""
    span = _WIDTH - _LABEL - _FIGURE
    highest = max([bar.high for bar in chart.bars] + [chart.mark or 0])
    if not chart.logarithmic:
        return lambda value: _LABEL + span * value / highest
    lowest = 10 ** math.floor(math.log10(min(bar.low for bar in chart.bars)) - 0.3)
    return lambda value: _LABEL + span * math.log(value / lowest) / math.log(highest / lowest)


def _draw(bar: Bar, y: float, place: "Any", unit: str) -> list[str]:  # noqa: ANN401 - a function of a value
    colour = _OURS if bar.ours else _THEIRS
    middle, end = y + _BAR / 2, place(bar.median)
    low, high = place(bar.low), place(bar.high)
    return [
        _text(_LABEL - 10, middle + 4, bar.label, size=12, anchor="end"),
        f"<rect x='{_LABEL}' y='{y}' width='{max(end - _LABEL, 1):.1f}' height='{_BAR}' rx='2' fill='{colour}'/>",
        _whisker(low, high, middle),
        _text(max(end, high) + 8, middle + 4, _figure(bar.median, unit), size=12, weight=600),
    ]


def _whisker(low: float, high: float, y: float) -> str:
    """A line from the lowest round to the highest."""
    return f"<path d='M{low:.1f} {y}H{high:.1f}M{low:.1f} {y - 4}v8M{high:.1f} {y - 4}v8' stroke='{_WHISKER}'/>"


def _figure(value: float, unit: str) -> str:
    if unit != "/s":
        return f"{value:.2f} x" if unit == "x" else f"{value:,.0f} µs"
    for step, sign in ((1e6, " M/s"), (1e3, " k/s")):
        if value >= step:
            return f"{value / step:.3g}{sign}"
    return f"{value:.3g} /s"


def _text(x: float, y: float, text: str, *, size: int, anchor: str = "start", weight: int = 400) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' font-weight='{weight}' text-anchor='{anchor}' "
        f"fill='{_TEXT}'>{escape(text)}</text>"
    )
