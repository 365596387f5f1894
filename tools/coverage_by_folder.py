"""Print how much of each folder the tests ran, from what `coverage json` wrote. Called by `make coverage`."""

import json
import os.path
import sys
from collections import defaultdict
from typing import Any


def by_folder(report: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Each folder's number of statements, and how many of them ran."""
    totals: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for path, file in report["files"].items():
        folder = os.path.dirname(path)
        statements, covered = totals[folder]
        summary = file["summary"]
        totals[folder] = (statements + summary["num_statements"], covered + summary["covered_lines"])
    return dict(totals)


def table(totals: dict[str, tuple[int, int]]) -> str:
    """One line a folder, in the order of their names, and one for all of them."""
    rows = [*sorted(totals.items()), ("all", tuple(map(sum, zip(*totals.values(), strict=True))))]
    width = max(len(folder) for folder, _ in rows)
    lines = [f"{'folder':{width}}  statements   missed  covered"]
    for folder, (statements, covered) in rows:
        share = 100 * covered / statements if statements else 100.0
        lines.append(f"{folder:{width}}  {statements:10,}  {statements - covered:7,}  {share:6.1f} %")
    return "\n".join(lines)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        print(table(by_folder(json.load(file))))
