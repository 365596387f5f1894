"""Is a recording of calls that of registers? Each write of a key has another value, so a read names its write.

A write and its reads are a *cluster*. Two times of it matter: ``first_end``, the earliest end of any of its calls (the
value was current by then), and ``last_start``, the latest start (the value still was current). If ``first_end`` is
before ``last_start``, the value was current from the one to the other (a forward zone), and no other value may have
been current in between. Otherwise all calls of the cluster overlap, and it fits anywhere but inside a forward zone.
This is sufficient: P. Gibbons and E. Korach, *Testing Shared Memories*, SIAM J. Comput. 26 (1997). It takes O(n log n);
keys are judged one by one.
"""

from collections.abc import Iterable
from itertools import pairwise

import msgspec

INFINITY = 1 << 62


class Write(msgspec.Struct, array_like=True):
    """``end`` is INFINITY if the outcome of the write is unknown."""

    key: str
    value: str
    start: int
    end: int


class Reads(msgspec.Struct, array_like=True):
    """All reads of one value by one thread, one after the other. ``value`` None: there was no key."""

    key: str
    value: str | None
    first_end: int
    last_start: int
    count: int


class Cluster(msgspec.Struct):
    """A write and all reads of its value."""

    value: str | None
    written: int
    first_end: int
    last_start: int
    read_first: int = INFINITY


def violations(writes: Iterable[Write], reads: Iterable[Reads]) -> list[str]:
    """Return the violations in words; none if every key is a register."""
    keys: dict[str, dict[str | None, Cluster]] = {}
    for write in writes:
        clusters = keys.setdefault(write.key, _unwritten())
        assert write.value not in clusters, "each value is written once"
        clusters[write.value] = Cluster(write.value, write.start, write.end, write.start)
    problems = []
    for each in reads:
        cluster = keys.setdefault(each.key, _unwritten()).get(each.value)
        if cluster is None:
            problems.append(f"{each.key}: {each.value} was read and never written")
            continue
        cluster.first_end = min(cluster.first_end, each.first_end)
        cluster.last_start = max(cluster.last_start, each.last_start)
        cluster.read_first = min(cluster.read_first, each.first_end)
    for key, clusters in keys.items():
        known = [each for each in clusters.values() if each.first_end < INFINITY]
        problems += [f"{key}: {problem}" for problem in _problems(known)]
    return problems


def _unwritten() -> dict[str | None, Cluster]:
    """The cluster of the reads before all writes, when there is no key."""
    return {None: Cluster(None, -1, -1, -1)}


def _problems(clusters: list[Cluster]) -> list[str]:
    problems = [f"{each.value} was read before it was written" for each in clusters if each.read_first < each.written]
    forward = sorted((each for each in clusters if each.first_end < each.last_start), key=lambda each: each.first_end)
    for one, other in pairwise(forward):
        if other.first_end < one.last_start:
            late_us = (one.last_start - other.first_end) / 1_000
            problems.append(f"{one.value} was read {late_us:.0f} us after {other.value} was current")
    backward = sorted(
        (each for each in clusters if each.first_end >= each.last_start), key=lambda each: each.last_start
    )
    at = 0
    for each in backward:
        while at < len(forward) and forward[at].last_start < each.last_start:
            at += 1
        if at < len(forward) and forward[at].first_end < each.last_start and each.first_end < forward[at].last_start:
            problems.append(f"{each.value} was current while {forward[at].value} was")
    return problems
