"""The rules of writes: each one commit, and those that send a write twice."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from kvd.store.authors import Author
from kvd.store.errors import KeysNotFound, NotANumber, OutcomeUnknown
from kvd.store.lifetimes import KEEP_TTL
from tests.engine.machine import (
    IDS,
    KEYS,
    OWNERS,
    DrawnExpiry,
    Machine,
    authors,
    counted_rule,
    entries,
    expiries,
    keys,
    reached,
    values,
)
from tests.engine.model import Unknown


class Writing(Machine):
    """All writes except transactions."""

    # ------------------------------------------------------------------ plain writes

    @rule(entries=entries, author=authors, drawn=expiries)
    @counted_rule
    def set(self, entries: dict[str, bytes], author: Author, drawn: DrawnExpiry) -> None:
        self.prepare_write()
        life, modelled = self.life(drawn)
        assert self.database.set(entries, author, life) == self.model.write(dict(entries), author, *modelled)

    @rule(entries=entries, author=authors)
    @counted_rule
    def set_plainly(self, entries: dict[str, bytes], author: Author) -> None:
        self.prepare_write()
        assert self.database.set(entries, author) == self.model.write(dict(entries), author, None, False, None)

    @rule(batch=st.lists(st.dictionaries(keys, values, min_size=0, max_size=2), max_size=4), author=authors)
    @counted_rule
    def set_each(self, batch: list[dict[str, bytes]], author: Author) -> None:
        self.prepare_write()
        wanted = [self.model.write(dict(entries), author, None, False, None) for entries in batch]
        assert self.database.set_each(batch, author) == wanted

    @precondition(lambda self: len(self.model.live) > 1)
    @rule(data=st.data(), author=authors)
    @counted_rule
    def replace_each(self, data: st.DataObject, author: Author) -> None:
        self.expire_all_due()
        live = sorted(self.model.live) or KEYS
        chosen = data.draw(st.lists(st.sampled_from(live), min_size=1, max_size=5, unique=True))
        self.set_each([{key: b"new"} for key in chosen], author)

    @rule(chosen=st.lists(keys, max_size=4), missing_ok=st.booleans(), author=authors)
    @counted_rule
    def delete(self, chosen: list[str], missing_ok: bool, author: Author) -> None:
        self.prepare_write()
        there = {key: None for key in chosen if key in self.model.live}
        if len(there) < len({*chosen}) and not missing_ok:
            with pytest.raises(KeysNotFound):
                self.database.delete(chosen, author, missing_ok=False)
            return
        wanted = self.model.write(dict(there), author, None, False, None), len(there)
        assert self.database.delete(chosen, author, missing_ok=missing_ok) == wanted

    @rule(key=keys, by=st.integers(-5, 5) | st.just(2**63 - 1), author=authors, drawn=st.none() | expiries)
    @counted_rule
    def increment(self, key: str, by: int, author: Author, drawn: DrawnExpiry | None) -> None:
        self.prepare_write()
        life, modelled = (KEEP_TTL, (None, True, None)) if drawn is None else self.life(drawn)
        value = self.model.live.get(key, (b"0", 0))[0]
        is_number = value.removeprefix(b"-").isdigit() and len(value) < 20
        if not is_number or not -(2**63) <= int(value) + by < 2**63:
            reached["not a number"] += 1
            with pytest.raises(NotANumber):
                self.database.increment(key, by, author, life)
            return
        total = int(value) + by
        wanted = total, self.model.write({key: b"%d" % total}, author, *modelled)
        assert self.database.increment(key, by, author, life) == wanted

    @rule(chosen=st.lists(keys, max_size=4), ttl_us=st.none() | st.integers(1, 300), author=authors)
    @counted_rule
    def touch(self, chosen: list[str], ttl_us: int | None, author: Author) -> None:
        self.prepare_write()
        wanted = self.model.touch(chosen, None if ttl_us is None else self.even + ttl_us, author)
        assert self.database.touch(chosen, ttl_us, author) == wanted

    @rule(owner=st.sampled_from(OWNERS), author=authors)
    @counted_rule
    def delete_owned(self, owner: str, author: Author) -> None:
        if owner in self.model.owners.values():
            self.expire_all_due()  # the database does so itself, but the model must follow
            self.model.advance(self.wall)
        owned = [key for key, who in self.model.owners.items() if who == owner]
        assert self.database.count_owned(owner) == len(owned)
        self.database.delete_owned(owner, author)
        if owned:
            reached["buried"] += 1
            self.model.write(dict.fromkeys(owned), author, None, False, None)

    # ------------------------------------------------------------------ exactly once

    @rule(who=st.sampled_from([1, None]), id_=st.sampled_from(IDS), data=st.data(), author=authors)
    @counted_rule
    def send_with_id(self, who: int | None, id_: bytes, data: st.DataObject, author: Author) -> None:
        self.expire_all_due()
        since = data.draw(st.none() | st.just(0) | st.integers(0, self.model.version + 1))
        try:
            known = self.model.find((who, id_), since)
        except Unknown:
            reached["outcome unknown"] += 1
            with pytest.raises(OutcomeUnknown):
                self.database.run_once(who, id_, since, lambda: self.database.set({"a": b"unknown"}, author))
            return
        answer: object
        if known is not None:
            reached["answered again"] += 1
            answer = known
        else:
            reached["done once"] += 1
            self.model.advance(self.wall)
            answer = self.model.write({"a": b"once", "b": id_[:1]}, author, None, False, None)
            self.model.remember((who, id_), self.model.version, answer)
        done = self.database.run_once(who, id_, since, lambda: self.database.set({"a": b"once", "b": id_[:1]}, author))
        assert done == answer

    @rule(ids=st.lists(st.sampled_from(IDS), min_size=1, max_size=3), data=st.data(), author=authors)
    @counted_rule
    def send_many_with_ids(self, ids: list[bytes], data: st.DataObject, author: Author) -> None:
        self.expire_all_due()
        since = data.draw(st.none() | st.just(0) | st.integers(0, self.model.version + 1))
        batch = [{key: id_[:1]} for key, id_ in zip(KEYS, ids, strict=False)]
        made = self.database.set_each_once(1, [(id_, since) for id_ in ids], batch, author)
        try:
            fresh = all(self.model.find((1, id_), since) is None for id_ in ids) and len({*ids}) == len(ids)
        except Unknown:
            fresh = False
        if not fresh:
            assert made is None
            return
        reached["many done once"] += 1
        self.model.advance(self.wall)
        wanted = [self.model.write(dict(entries), author, None, False, None) for entries in batch]
        for id_, version in zip(ids, wanted, strict=True):
            self.model.remember((1, id_), version, version)
        assert made == wanted
