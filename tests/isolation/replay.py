"""Runs a recorded history again, one transaction after the other, and compares everything that was read.

It knows which transactions committed, and under which versions. So nothing must be inferred: the order is that of the
versions, and each read of a key or of a range has one correct answer.

    at the snapshot      every transaction, even a refused or read-only one, saw exactly the state of that version
    at the commit        a transaction that wrote would have seen the same keys and ranges right before its commit
    in real time         no snapshot is older than a version that had been acknowledged before the transaction began

Together that is strict serializability, including ranges: the order of versions is the serial order.
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
    """A list of errors, each with a name and a sentence."""

    @property
    def names(self) -> set[str]:
        """The names of all errors in the list."""
        return {name for name, _ in self}

    def add(self, name: str, text: str) -> None:
        """Add an error, unless there are MAX_FINDINGS of that name already."""
        if sum(other == name for other, _ in self) < MAX_FINDINGS:
            self.append((name, text))


def acknowledged(history: Sequence[Txn]) -> dict[Identity, int]:
    """Return the versions from the replies. If no outcome is unknown, these are all commits."""
    return {txn.identity: txn.version for txn in history if txn.ok and txn.version is not None}


def replay(history: Sequence[Txn], versions: Versions) -> Findings:
    """Return everything that does not fit; nothing for a strictly serializable history."""
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
    """Apply a commit to ``state``."""
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
    texts = []
    for key, seen in txn.reads.items():
        expected: tuple[Value, int] = state.get(key, (None, 0))
        if tuple(seen) != expected:
            texts.append(f"{key} was {expected}, and was read as {seen}")
    for start, end, items in txn.ranges:
        expected_items: list[Item] = [(key, *state[key]) for key in sorted(state) if start <= key < end]
        if [tuple(item) for item in items] != expected_items:
            texts.append(f"{start} to {end} was {expected_items}, and was read as {items}")
    return texts


def _compare_with_time(history: Sequence[Txn], versions: Versions, findings: Findings) -> None:
    """Check that each transaction sees all that earlier transactions, which had ended before it began, saw or did."""
    ended = sorted((txn.end, _place(txn, versions), txn.identity) for txn in history if txn.end is not None)
    highest, by, at = -1, (0, 0), 0
    for txn in sorted(history, key=lambda txn: txn.start):
        while at < len(ended) and ended[at][0] < txn.start:
            if ended[at][1] > highest:
                _, highest, by = ended[at]
            at += 1
        first_version = txn.snapshot if txn.snapshot is not None else versions.get(txn.identity, highest + 1) - 1
        if first_version < highest:
            findings.add("stale", f"{txn.identity} began at {first_version}, although {by} had ended at {highest}")


def _place(txn: Txn, versions: Versions) -> int:
    """Return the place of ``txn`` in the order of versions; -1 if it has none."""
    return versions.get(txn.identity, -1 if txn.snapshot is None else txn.snapshot)


def compare_outcomes(history: Sequence[Txn], committed: Mapping[Identity, Sequence[int]]) -> Findings:
    """Compare the replies with the daemon's own history, which has the versions of each transaction's marker."""
    findings = Findings()
    for txn in history:
        real = committed.get(txn.identity, ())
        if len(real) > 1:
            findings.add("applied twice", f"{txn.identity} at {real}")
        if txn.ok is False and real:
            findings.add("applied though refused", f"{txn.identity} at {real}")
        if txn.ok and txn.writes and not real:
            findings.add("lost", f"{txn.identity} was acknowledged as {txn.version}")
        if txn.ok and txn.writes and real and txn.version not in real:
            findings.add("wrong version", f"{txn.identity} was acknowledged as {txn.version}, but has {real}")
    for identity in committed.keys() - {txn.identity for txn in history}:
        findings.add("stray", f"{identity} at {committed[identity]}")
    return findings


def compare_conflicts(history: Sequence[Txn], versions: Versions, pids: Mapping[int, int]) -> tuple[Findings, int]:
    """Check the reasons of all conflicts: the version that was read, the version that was found, and its author."""
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
    """The true history, commit by commit: the state of every version, below every prefix."""

    def __init__(self, history: Sequence[Txn], versions: Versions) -> None:
        self.changes: dict[int, dict[str, Value]] = {}
        self.process: dict[int, int] = {}
        self._of_key: dict[str, tuple[list[int], list[Value]]] = {}
        state: State = {}
        committed = [txn for txn in history if txn.identity in versions]
        for txn in sorted(committed, key=lambda txn: versions[txn.identity]):
            version = versions[txn.identity]
            # Deleting an absent key changes nothing.
            changed = {key: value for key, value in txn.writes.items() if value is not None or key in state}
            self.changes[version], self.process[version] = changed, txn.process
            apply(changed, version, state)
            for key, value in changed.items():
                numbers, values = self._of_key.setdefault(key, ([], []))
                numbers.append(version)
                values.append(value)

    def with_prefix(self, prefix: str) -> list[int]:
        """Return the versions of all commits that changed keys with ``prefix``, in order."""
        versions = chain.from_iterable(numbers for key, (numbers, _) in self._of_key.items() if key.startswith(prefix))
        return sorted(set(versions))

    def state(self, prefix: str, version: int) -> State:
        """Return all keys with ``prefix``, as they were at ``version``."""
        state: State = {}
        for key, (numbers, values) in self._of_key.items():
            at = bisect_left(numbers, version + 1) - 1
            value = values[at] if at >= 0 else None
            if value is not None and key.startswith(prefix):
                state[key] = value, numbers[at]
        return state
