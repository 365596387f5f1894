"""Runs a recorded history again, one transaction after the other, and compares everything that anybody saw.

Given which transactions committed and under which version, there is nothing left to guess: the order is that of the
versions, and each read of a key or of a range has one right answer.

    at its snapshot      everybody, also who was refused or only read, saw exactly the state of that version
    at its commit        and who wrote would have seen the same, key by key and range by range, right before it
    in real time         nobody's snapshot is older than what had been acknowledged when it began

Together that is strict serializability, ranges included: the order of versions is the serial order.
"""

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain

from tests.isolation.records import Identity, Item, Txn, Value

State = dict[str, tuple[bytes, int]]
Versions = Mapping[Identity, int]
MAX_FINDINGS = 20


class Findings(list[tuple[str, str]]):
    """What is wrong: a name and a sentence each."""

    @property
    def names(self) -> set[str]:
        """The kinds of what is wrong."""
        return {name for name, _ in self}

    def add(self, name: str, text: str) -> None:
        """Note it, unless there is a lot of it already."""
        if sum(found == name for found, _ in self) < MAX_FINDINGS:
            self.append((name, text))


def acknowledged(history: Sequence[Txn]) -> dict[Identity, int]:
    """The versions that the replies told: the truth, if no outcome is unknown."""
    return {txn.identity: txn.version for txn in history if txn.ok and txn.version is not None}


def replay(history: Sequence[Txn], versions: Versions) -> Findings:
    """Everything that does not fit, nothing for a strictly serializable history."""
    findings = Findings()
    writers = {versions[txn.identity]: txn for txn in history if txn.identity in versions and txn.writes}
    if len(writers) < len(versions):
        findings.add("version twice", f"{len(versions)} commits have {len(writers)} versions")
    readers = defaultdict(list)
    for txn in history:
        if txn.snapshot is not None:
            readers[txn.snapshot].append(txn)
    state: State = {}
    _compare(readers.get(0, ()), 0, state, findings)
    for version in sorted({*writers, *readers} - {0}):
        if version in writers:
            _commit(writers[version], version, state, findings)
        _compare(readers.get(version, ()), version, state, findings)
    _compare_with_time(history, versions, findings)
    return findings


def _commit(txn: Txn, version: int, state: State, findings: Findings) -> None:
    if txn.snapshot is not None:
        for text in _differences(txn, state):
            findings.add("not serializable", f"{txn.identity} at its commit {version}: {text}")
        if txn.snapshot >= version:
            findings.add("future", f"{txn.identity} committed as {version}, and read at {txn.snapshot}")
    apply(txn.writes, version, state)


def apply(writes: Mapping[str, Value], version: int, state: State) -> None:
    """What a commit does."""
    for key, value in writes.items():
        if value is None:
            state.pop(key, None)
        else:
            state[key] = value, version


def _compare(txns: Sequence[Txn], version: int, state: State, findings: Findings) -> None:
    for txn in txns:
        for text in _differences(txn, state):
            findings.add("torn snapshot", f"{txn.identity} at {version}: {text}")


def _differences(txn: Txn, state: State) -> list[str]:
    found = []
    for key, seen in txn.reads.items():
        right: tuple[Value, int] = state.get(key, (None, 0))
        if tuple(seen) != right:
            found.append(f"{key} was {right}, and was read as {seen}")
    for start, end, items in txn.ranges:
        right_items: list[Item] = [(key, *state[key]) for key in sorted(state) if start <= key < end]
        if [tuple(item) for item in items] != right_items:
            found.append(f"{start} to {end} was {right_items}, and was read as {items}")
    return found


def _compare_with_time(history: Sequence[Txn], versions: Versions, findings: Findings) -> None:
    """Whoever begins sees all that those have seen or done who had ended."""
    ended = sorted((txn.end, _place(txn, versions), txn.identity) for txn in history if txn.end is not None)
    highest, by, at = -1, (0, 0), 0
    for txn in sorted(history, key=lambda txn: txn.start):
        while at < len(ended) and ended[at][0] < txn.start:
            if ended[at][1] > highest:
                _, highest, by = ended[at]
            at += 1
        begun = txn.snapshot if txn.snapshot is not None else versions.get(txn.identity, highest + 1) - 1
        if begun < highest:
            findings.add("stale", f"{txn.identity} began at {begun}, when {by} had ended at {highest}")


def _place(txn: Txn, versions: Versions) -> int:
    """Where it stands in the order; -1 if nowhere."""
    return versions.get(txn.identity, -1 if txn.snapshot is None else txn.snapshot)


def compare_outcomes(history: Sequence[Txn], told: Mapping[Identity, Sequence[int]]) -> Findings:
    """What the replies said, against what the daemon's own history tells: the versions of each transaction's marker."""
    findings = Findings()
    for txn in history:
        real = told.get(txn.identity, ())
        if len(real) > 1:
            findings.add("applied twice", f"{txn.identity} at {real}")
        if txn.ok is False and real:
            findings.add("applied though refused", f"{txn.identity} at {real}")
        if txn.ok and txn.writes and not real:
            findings.add("lost", f"{txn.identity} was acknowledged as {txn.version}")
        if txn.ok and txn.writes and real and txn.version not in real:
            findings.add("wrong version", f"{txn.identity} was acknowledged as {txn.version}, and is {real}")
    for identity in told.keys() - {txn.identity for txn in history}:
        findings.add("stray", f"{identity} at {told[identity]}")
    return findings


def compare_conflicts(history: Sequence[Txn], versions: Versions, pids: Mapping[int, int]) -> tuple[Findings, int]:
    """Every reason given for a conflict is true: what was expected was read, and what was found was there, by whom."""
    findings = Findings()
    changes: dict[str, list[int]] = defaultdict(list)
    writer = {version: identity for identity, version in versions.items()}
    for txn in history:
        for key in txn.writes if txn.identity in versions else ():
            insort(changes[key], versions[txn.identity])
    reasons = 0
    for txn in history:
        seen = {key: version for key, (_, version) in txn.reads.items()}
        seen |= {key: version for *_, items in txn.ranges for key, _, version in items}
        for key, expected, found, _, author in txn.conflicts:
            reasons += 1
            since = changes[key][bisect_right(changes[key], txn.snapshot or 0) :]
            if not since:
                findings.add("wrong conflict", f"{txn.identity}: {key} has not changed since {txn.snapshot}")
            if expected != seen.get(key, 0):
                findings.add("wrong conflict", f"{txn.identity}: {key} was read at {seen.get(key, 0)}, not {expected}")
            if found and found not in since:
                findings.add("wrong conflict", f"{txn.identity}: {key} never was at {found}")
            if found and pids and author[1] != pids.get(writer.get(found, (0, 0))[0]):
                findings.add("wrong author", f"{txn.identity}: {key} at {found} was not by {author}")
    return findings, reasons


class Truth:
    """What happened, commit by commit: for those who want to know about any version or prefix."""

    def __init__(self, history: Sequence[Txn], versions: Versions) -> None:
        self.changes: dict[int, dict[str, Value]] = {}
        self.process: dict[int, int] = {}
        self._of_key: dict[str, tuple[list[int], list[Value]]] = {}
        state: State = {}
        committed = [txn for txn in history if txn.identity in versions]
        for txn in sorted(committed, key=lambda txn: versions[txn.identity]):
            version = versions[txn.identity]
            # A deletion of what is not there changes nothing.
            changed = {key: value for key, value in txn.writes.items() if value is not None or key in state}
            self.changes[version], self.process[version] = changed, txn.process
            apply(changed, version, state)
            for key, value in changed.items():
                numbers, values = self._of_key.setdefault(key, ([], []))
                numbers.append(version)
                values.append(value)

    def with_prefix(self, prefix: str) -> list[int]:
        """The versions of all commits that changed keys with ``prefix``, in order."""
        found = chain.from_iterable(vs for key, (vs, _) in self._of_key.items() if key.startswith(prefix))
        return sorted(set(found))

    def state(self, prefix: str, version: int) -> State:
        """All keys with ``prefix`` as of ``version``."""
        state: State = {}
        for key, (numbers, values) in self._of_key.items():
            at = bisect_left(numbers, version + 1) - 1
            value = values[at] if at >= 0 else None
            if value is not None and key.startswith(prefix):
                state[key] = value, numbers[at]
        return state
