"""The rules of transactions: what they read, and whether they may commit, found by brute force over the versions."""

from collections import Counter

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from kvd.store.authors import Author
from kvd.store.errors import Conflict, SnapshotGone
from kvd.store.isolation import Range
from tests.engine.machine import (
    DrawnExpiry,
    Machine,
    Txn,
    authors,
    counted_rule,
    expiries,
    keys,
    ranges,
    reached,
    wide,
    writes,
)
from tests.engine.model import Gone, Writes


class Transacting(Machine):
    """Transactions with and without reads, and rolling back."""

    # ------------------------------------------------------------------ transactions

    def check_commit(
        self, writes: Writes, reads: dict[str, int], ranges: list[Range], snapshot: int, author: Author,
        drawn: DrawnExpiry = (None, False, None),
    ) -> None:  # fmt: skip
        """Commit in the database, and compare with what the model decides."""
        self.expire_all_due()
        life, modelled = self.life(drawn)

        def commit() -> int:
            return self.database.commit(writes, reads, ranges, snapshot, author, life)

        try:
            conflicts = self.model.conflicts(reads, ranges, snapshot)
        except Gone:
            reached["range at a snapshot gone"] += 1
            with pytest.raises(SnapshotGone):
                commit()
            return
        if conflicts:
            reached["conflict"] += 1
            with pytest.raises(Conflict) as refused:
                commit()
            assert {change.key: change for change in refused.value.changes} == conflicts
            assert len(refused.value.changes) == len(conflicts)
            return
        reached["committed with reads"] += bool(reads or ranges) and bool(writes)
        self.model.advance(self.wall)
        wanted = self.model.write(writes, author, *modelled)
        assert commit() == wanted

    @rule(writes=writes, author=authors, drawn=expiries)
    @counted_rule
    def commit_blindly(self, writes: Writes, author: Author, drawn: DrawnExpiry) -> None:
        self.check_commit(writes, {}, [], 0, author, drawn)

    @rule(writes=writes, chosen=st.lists(keys, max_size=3), ranges=ranges, data=st.data(), author=authors)
    @counted_rule
    def commit_arbitrary_reads(
        self, writes: Writes, chosen: list[str], ranges: list[Range], data: st.DataObject, author: Author
    ) -> None:
        """Commit with reads that no transaction could have made, too."""
        self.expire_all_due()
        version = self.model.version
        at = st.integers(max(0, self.model.oldest - 3), version) | st.just(version)
        reads = {key: self.model.seen(key, data.draw(at)) for key in chosen}
        self.check_commit(writes, reads, ranges, data.draw(at), author)

    @precondition(lambda self: len(self.txns) < 4)
    @rule(pinned=st.booleans())
    @counted_rule
    def begin(self, pinned: bool) -> None:
        self.expire_all_due()
        if pinned:
            assert self.store.pin() == self.model.version
            self.pins[self.model.version] += 1
            if self.store.window.limits.max_pinned_bytes == wide:
                self.promised.add(self.model.version)
        self.txns.append(Txn(self.model.version, pinned))

    @precondition(lambda self: self.txns)
    @rule(data=st.data(), chosen=st.lists(keys, min_size=1, max_size=3))
    @counted_rule
    def read_in_a_txn(self, data: st.DataObject, chosen: list[str]) -> None:
        self.expire_all_due()
        txn = data.draw(st.sampled_from(self.txns))
        found = self.check_fetch(chosen, txn.snapshot)
        if found is not None:
            txn.reads |= {key: version for key, (_, version, _) in zip(chosen, found, strict=True)}

    @precondition(lambda self: self.txns)
    @rule(data=st.data(), start=st.just("") | keys, end=st.none() | keys, limit=st.integers(1, 4))
    @counted_rule
    def scan_in_a_txn(self, data: st.DataObject, start: str, end: str | None, limit: int) -> None:
        self.expire_all_due()
        txn = data.draw(st.sampled_from(self.txns))
        found = self.check_scan(start, end, limit, txn.snapshot)
        if found is not None:
            txn.ranges.append((start, end))

    @precondition(lambda self: self.txns)
    @rule(data=st.data(), writes=writes, author=authors, drawn=expiries, is_wanted=st.sampled_from([True, True, False]))
    @counted_rule
    def end_a_txn(
        self, data: st.DataObject, writes: Writes, author: Author, drawn: DrawnExpiry, is_wanted: bool
    ) -> None:
        txn = data.draw(st.sampled_from(self.txns))
        if is_wanted:
            self.check_commit(writes, txn.reads, txn.ranges, txn.snapshot, author, drawn)
        self.txns.remove(txn)
        if txn.pinned:
            self.store.unpin(txn.snapshot)
            self.pins[txn.snapshot] -= 1
            self.pins += Counter()  # forget those at zero
            self.promised &= self.pins.keys()

    @rule(chosen=st.lists(keys, min_size=1, max_size=4, unique=True), data=st.data(), author=authors)
    @counted_rule
    def roll_back(self, chosen: list[str], data: st.DataObject, author: Author) -> None:
        """Give keys the values of a version, if no other client has changed them meanwhile."""
        self.expire_all_due()
        at = data.draw(st.integers(self.model.oldest, self.model.version))
        then = self.check_fetch(chosen, at)
        if then is None:
            return  # it is within the window, so a value is not known any more
        reads = {key: self.model.seen(key, self.model.version) for key in chosen}
        self.check_commit({key: value for key, (value, _, _) in zip(chosen, then, strict=True)}, reads, [], 0, author)
        after = self.store.get_many(chosen)
        self.gets += len(chosen)
        assert after == [self.model.snapshots[at].get(key, (None, 0))[0] for key in chosen]
