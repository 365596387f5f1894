"""Is what was read and written one register? All writes of a key have different values, so each read names its write.

A write and its reads are a *cluster*. What counts of it: ``first_end``, the earliest end of any of its calls (by then
its value was current), and ``last_start``, the latest start (it still was). If the first lies before the second, the
value was current from the one to the other (a forward zone), and no other cluster's may have been in between; otherwise
its calls all overlap, and it fits in anywhere but into a forward zone that encloses it. That is enough: P. Gibbons and
E. Korach, *Testing Shared Memories*, SIAM J. Comput. 26 (1997). O(n log n); keys are judged one by one.
"""

from collections.abc import Iterable
from itertools import pairwise

import msgspec

INFINITY = 1 << 62


class Write(msgspec.Struct, array_like=True):
    """``end`` is INFINITY if it is not known whether it was made."""

    key: str
    value: str
    start: int
    end: int


class Reads(msgspec.Struct, array_like=True):
    """All reads of one value by one thread, which makes them one after the other. ``value`` None: there was no key."""

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
    """What cannot be, in words; nothing if every key is a register."""
    keys: dict[str, dict[str | None, Cluster]] = {}
    for write in writes:
        clusters = keys.setdefault(write.key, _unwritten())
        assert write.value not in clusters, "each value is written once"
        clusters[write.value] = Cluster(write.value, write.start, write.end, write.start)
    found = []
    for each in reads:
        cluster = keys.setdefault(each.key, _unwritten()).get(each.value)
        if cluster is None:
            found.append(f"{each.key}: {each.value} was read and never written")
            continue
        cluster.first_end = min(cluster.first_end, each.first_end)
        cluster.last_start = max(cluster.last_start, each.last_start)
        cluster.read_first = min(cluster.read_first, each.first_end)
    for key, clusters in keys.items():
        known = [each for each in clusters.values() if each.first_end < INFINITY]
        found += [f"{key}: {problem}" for problem in _problems(known)]
    return found


def _unwritten() -> dict[str | None, Cluster]:
    """Before all writes there is no key."""
    return {None: Cluster(None, -1, -1, -1)}


def _problems(clusters: list[Cluster]) -> list[str]:
    found = [f"{each.value} was read before it was written" for each in clusters if each.read_first < each.written]
    forward = sorted((each for each in clusters if each.first_end < each.last_start), key=lambda each: each.first_end)
    for one, other in pairwise(forward):
        if other.first_end < one.last_start:
            late_us = (one.last_start - other.first_end) / 1_000
            found.append(f"{one.value} was read {late_us:.0f} us after {other.value} was current")
    backward = sorted(
        (each for each in clusters if each.first_end >= each.last_start), key=lambda each: each.last_start
    )
    at = 0
    for each in backward:
        while at < len(forward) and forward[at].last_start < each.last_start:
            at += 1
        if at < len(forward) and forward[at].first_end < each.last_start and each.first_end < forward[at].last_start:
            found.append(f"{each.value} was current while {forward[at].value} was")
    return found
