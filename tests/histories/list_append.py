"""Was a recorded history strictly serializable? The checker for transactions that read lists and append to them.

Each value is appended only once in the whole history. So a list that was read shows the order of the transactions that
appended to its key. These orders form a graph, and a history is strictly serializable exactly if that has no cycle. An
edge from A to B means:

    ww   B appended right after A                  wr   B read the value that A appended last
    rw   B appended right after what A had read    rt   A had ended before B began

After K. Kingsbury and P. Alvaro, *Elle: Inferring Isolation Anomalies from Experimental Observations*, VLDB 14(3),
2020; with two differences. Real time costs three edges per transaction, through a chain of virtual nodes, one for each
moment at which a transaction began. And acknowledged appends that no read has seen are placed after the longest read,
in no order among themselves: so appends that vanished are found, too.

This is not a proof: orders that no transaction observed, and reads of ranges, are not covered.
"""

import time
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

MAX_REPORTS = 8
MAX_TAIL = 64
MAX_SEARCHES = 400
NAMING_S = 30.0

Op = Sequence[Any]  # ("r", key, [value…]) or ("append", key, value)


@dataclass
class Txn:
    """One transaction. Times in ns of one clock. ``ok``: None if it is not known whether it committed."""

    start: int
    end: int | None
    ok: bool | None
    ops: Sequence[Op]
    version: int | None = None
    snapshot: int | None = None

    def appended(self, key: str) -> list[Any]:
        return [op[2] for op in self.ops if op[0] == "append" and op[1] == key]


@dataclass
class Report:
    """The anomalies of a history, each as a name and a sentence."""

    anomalies: list[tuple[str, str]] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.anomalies}

    def add(self, name: str, text: str) -> None:
        if sum(other == name for other, _ in self.anomalies) < MAX_REPORTS:
            self.anomalies.append((name, text))


def check(history: Sequence[Txn]) -> Report:
    """Report every anomaly that has a name; none for a strictly serializable history."""
    report = Report()
    writer = {(op[1], op[2]): number for number, txn in enumerate(history) for op in txn.ops if op[0] == "append"}
    bases = list(_bases(history, report))
    longest = _version_orders(history, bases, writer, report)
    committed = _committed(history, longest, writer)
    edges = _edges(history, bases, longest, committed, writer)
    _lost_updates(history, bases, report)
    _add_real_time(history, committed, edges)
    for component in _components(edges):
        _name(component, edges, len(history), report)
    return report


# ---------------------------------------------------------------------- step 1: the lists that were read


def _bases(history: Sequence[Txn], report: Report) -> Iterator[tuple[int, str, list[Any]]]:
    """Yield (transaction, key, list without its own appends) for each key that a committed transaction read."""
    for number, txn in enumerate(history):
        if txn.ok is not True:
            continue
        own: dict[str, list[Any]] = defaultdict(list)
        bases: dict[str, list[Any]] = {}
        for op in txn.ops:
            if op[0] == "append":
                own[op[1]].append(op[2])
                continue
            base, tail = _split(op[2], own[op[1]])
            if tail != own[op[1]] or set(base) & set(txn.appended(op[1])):
                report.add("internal", f"{number} read {op[2]} of {op[1]} after its own appends {own[op[1]]}")
            elif bases.setdefault(op[1], base) != base:
                report.add("internal", f"{number} read {op[1]} as {bases[op[1]]} and as {base}")
        yield from ((number, key, base) for key, base in bases.items())


def _split(values: list[Any], own: list[Any]) -> tuple[list[Any], list[Any]]:
    at = len(values) - len(own)
    return (values, []) if at < 0 else (values[:at], values[at:])


# ---------------------------------------------------------------------- step 2: the order of each key's versions


def _version_orders(
    history: Sequence[Txn],
    bases: Iterable[tuple[int, str, list[Any]]],
    writer: dict[tuple[str, Any], int],
    report: Report,
) -> dict[str, list[Any]]:
    """Return the longest list that was read of each key, if all other lists of that key are prefixes of it."""
    longest: dict[str, list[Any]] = {}
    for _, key, base in bases:
        if len(base) > len(longest.get(key, ())):
            longest[key] = base
    for key, order in longest.items():
        if len(set(order)) < len(order):
            report.add("duplicate", f"{key}: {order}")
        for value in order:
            by = writer.get((key, value))
            if by is None:
                report.add("garbage", f"{key}: no transaction appended {value}")
            elif history[by].ok is False:
                report.add("G1a", f"{key}: {value} was appended by {by}, which was refused")
    bad = set()
    for number, key, base in bases:
        if longest.get(key, [])[: len(base)] != base:
            report.add("incompatible-order", f"{key}: {number} read {base}, another {longest[key]}")
            bad.add(key)
            continue
        by = writer.get((key, base[-1]), number) if base else number
        if by != number and history[by].appended(key)[-1] != base[-1]:
            report.add("G1b", f"{key}: {number} read {base[-1]} of {by}, which appended more")
    return {key: order for key, order in longest.items() if key not in bad}


def _committed(history: Sequence[Txn], longest: dict[str, list[Any]], writer: dict[tuple[str, Any], int]) -> set[int]:
    """Return the transactions that committed: acknowledged, or of unknown outcome and seen by a reader."""
    seen = {writer[key, value] for key, order in longest.items() for value in order if (key, value) in writer}
    return {number for number, txn in enumerate(history) if txn.ok or (txn.ok is None and number in seen)}


# ---------------------------------------------------------------------- steps 3 to 5: the graph

Edges = dict[int, set[tuple[int, str]]]


def _edges(
    history: Sequence[Txn],
    bases: Iterable[tuple[int, str, list[Any]]],
    longest: dict[str, list[Any]],
    committed: set[int],
    writer: dict[tuple[str, Any], int],
) -> Edges:
    edges: Edges = defaultdict(set)

    def add(before: int | None, after: int | None, kind: str) -> None:
        if before is not None and after is not None and before != after:
            edges[before].add((after, kind))

    tails = _tails(history, longest, committed)
    by_key = {key: [writer.get((key, value)) for value in order] for key, order in longest.items()}
    for key, writers in by_key.items():
        for before, after in pairwise(writers):
            add(before, after, "ww")
        for late in tails.get(key, ()):
            add(writers[-1] if writers else None, late, "ww")
    for number, key, base in bases:
        writers = by_key.get(key, [])
        if base and key in by_key:
            add(writers[len(base) - 1], number, "wr")
        if len(base) < len(writers):
            add(number, writers[len(base)], "rw")
        elif len(base) == len(writers):
            for late in tails.get(key, ()):
                add(number, late, "rw")
    return edges


def _tails(history: Sequence[Txn], longest: dict[str, list[Any]], committed: set[int]) -> dict[str, list[int]]:
    """Return the committed appends to each key that no read saw: up to MAX_TAIL, the earliest to end first."""
    read = {key: set(order) for key, order in longest.items()}
    tails: dict[str, list[int]] = defaultdict(list)
    for number in committed:
        for op in history[number].ops:
            if op[0] == "append" and op[2] not in read.get(op[1], ()):
                tails[op[1]].append(number)
    infinite = float("inf")
    for key, numbers in tails.items():
        numbers.sort(key=lambda number: infinite if history[number].end is None else history[number].end)  # type: ignore[arg-type, return-value]
        tails[key] = numbers[:MAX_TAIL]
    return tails


def _add_real_time(history: Sequence[Txn], committed: set[int], edges: Edges) -> None:
    """Add the real-time edges, through a chain of virtual nodes, one for each moment at which a transaction began."""
    starts = sorted({history[number].start for number in committed})
    first = len(history)
    place = {start: first + at for at, start in enumerate(starts)}
    for at in range(len(starts) - 1):
        edges[first + at].add((first + at + 1, "rt"))
    for number in committed:
        txn = history[number]
        edges[place[txn.start]].add((number, "rt"))
        if txn.ok and txn.end is not None and (at := bisect_right(starts, txn.end)) < len(starts):
            edges[number].add((first + at, "rt"))


# ---------------------------------------------------------------------- step 6: cycles


def _components(edges: Edges) -> Iterator[set[int]]:
    """Yield the strongly connected components of more than one node (R. Tarjan, 1972), without recursion."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    for root in list(edges):
        if root in index:
            continue
        work: list[tuple[int, Iterator[tuple[int, str]]]] = [(root, iter(edges[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, edges_left = work[-1]
            for other, _ in edges_left:
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    on_stack.add(other)
                    work.append((other, iter(edges.get(other, ()))))
                    break
                if other in on_stack:
                    low[node] = min(low[node], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    component = set()
                    while node not in component:
                        other = stack.pop()
                        on_stack.discard(other)
                        component.add(other)
                    if len(component) > 1:
                        yield component


# ---------------------------------------------------------------------- step 7: the names of cycles


def _name(component: set[int], edges: Edges, transactions: int, report: Report) -> None:
    """Report each kind of cycle in the component, with a short example."""
    inside = {node: [(other, kind) for other, kind in edges[node] if other in component] for node in component}
    deadline = time.monotonic() + NAMING_S
    before = len(report.anomalies)
    for suffix, real_time in (("", set[str]()), ("-rt", {"rt"})):
        for name, closing, allowed, needed in (
            ("G0", "ww", {"ww"}, set[str]()),
            ("G1c", "wr", {"ww", "wr"}, set[str]()),
            ("G-single", "rw", {"ww", "wr"}, set[str]()),
            ("G2", "rw", {"ww", "wr", "rw"}, {"rw"}),
        ):
            cycle = _find(inside, closing, allowed | real_time, needed | real_time, deadline)
            if cycle is not None:
                kinds = [kind for _, kind in cycle]
                label = name if name != "G2" else _name_of_g2(kinds)
                nodes = [str(node) for node, _ in cycle if node < transactions]
                report.add(label + suffix, f"{' → '.join(nodes)} ({', '.join(kinds)})")
        if len(report.anomalies) > before:
            return
    report.add("cycle", f"a component of {len(component)} nodes")


def _name_of_g2(kinds: list[str]) -> str:
    """Return "G2" (write skew) if two read-write edges are adjacent, ignoring real time; else it is a long fork."""
    without = [kind for kind in kinds if kind != "rt"]
    adjacent = any(a == b == "rw" for a, b in zip(without, without[1:] + without[:1], strict=True))
    return "G2" if adjacent else "G-nonadjacent"


def _find(
    inside: dict[int, list[tuple[int, str]]], closing: str, allowed: set[str], needed: set[str], deadline: float
) -> list[tuple[int, str]] | None:
    """Return a short cycle with an edge of the kind ``closing``: its nodes, each with the kind of its outgoing edge."""
    searches = 0
    for node, others in inside.items():
        for other, kind in others:
            if kind != closing:
                continue
            searches += 1
            if searches > MAX_SEARCHES or time.monotonic() > deadline:
                return None
            path = _path(inside, other, node, allowed)
            if path is not None and needed <= {other_kind for _, other_kind in path}:
                return [(node, closing), *path]
    return None


def _path(
    inside: dict[int, list[tuple[int, str]]], start: int, end: int, allowed: set[str]
) -> list[tuple[int, str]] | None:
    previous: dict[int, tuple[int, str]] = {}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        if node == end:
            path: list[tuple[int, str]] = []
            while node != start:
                node, kind = previous[node]
                path.insert(0, (node, kind))
            return path
        for other, kind in inside[node]:
            if kind in allowed and other not in previous and other != start:
                previous[other] = (node, kind)
                queue.append(other)
    return None


def _lost_updates(history: Sequence[Txn], bases: Iterable[tuple[int, str, list[Any]]], report: Report) -> None:
    """Report two transactions that read the same state of a key and both appended to it."""
    first: dict[tuple[str, Any], int] = {}
    for number, key, base in bases:
        if history[number].appended(key):
            state = (key, base[-1] if base else None)
            if state in first:
                report.add("lost-update", f"{key}: {first[state]} and {number} both append after {state[1]}")
            first[state] = number
