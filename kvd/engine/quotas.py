"""What the keys of each prefix take, and which of them may go: the rules that limit or evict keys.

Each rule with a limit counts its keys and their bytes. Each rule that evicts has a queue of its keys, from which SIEVE
takes those to go (``store/sieve.py``). Both follow the commits.
"""

from collections.abc import Callable, Iterable, Sequence

from kvd.engine.writes import Writes
from kvd.store.authors import EVICTED
from kvd.store.errors import OutOfMemory
from kvd.store.heads import Head
from kvd.store.keyspace import KEY_BYTES
from kvd.store.prefixes import NO_RULES, PrefixRule, PrefixRules
from kvd.store.sieve import KEY_BYTES as QUEUE_BYTES
from kvd.store.sieve import Marks, Sieve
from kvd.store.steps import Steps, slices
from kvd.store.store import Store
from kvd.store.window import Group

# A key, and the value that it is to have; None deletes it.
Write = tuple[str, bytes | None]


class Quota:
    """What the keys of one rule take: keys with a value, their bytes, and the queue in which they wait to go."""

    def __init__(self, rule: PrefixRule, sieve: Sieve | None) -> None:
        self.rule = rule
        self.sieve = sieve
        self.keys = 0
        self.bytes = 0

    @property
    def is_limited(self) -> bool:
        """Whether what the keys take has to be counted."""
        return bool(self.rule.max_bytes or self.rule.max_keys)

    def add(self, key: str, value: bytes | None) -> None:
        """Count ``key`` with this value; None counts nothing."""
        if value is not None:
            self.keys += 1
            self.bytes += size_of(key, value)

    def subtract(self, key: str, value: bytes | None) -> None:
        """Stop counting ``key`` with this value."""
        if value is not None:
            self.keys -= 1
            self.bytes -= size_of(key, value)

    def excess(self, keys: int, size: int) -> tuple[int, int]:
        """How many keys and bytes there would be over the limits, with this many more."""
        rule = self.rule
        keys_over = self.keys + keys - rule.max_keys if rule.max_keys and keys > 0 else 0
        bytes_over = self.bytes + size - rule.max_bytes if rule.max_bytes and size > 0 else 0
        return max(keys_over, 0), max(bytes_over, 0)

    def excess_now(self) -> tuple[int, int]:
        """How many keys and bytes there are over the limits."""
        rule = self.rule
        keys_over = self.keys - rule.max_keys if rule.max_keys else 0
        bytes_over = self.bytes - rule.max_bytes if rule.max_bytes else 0
        return max(keys_over, 0), max(bytes_over, 0)

    def check_alone(self, writes: list[Write]) -> None:
        """Raise OutOfMemory if ``writes`` are more than the rule allows, whatever is evicted for them."""
        rule = self.rule
        sizes = [size_of(key, value) for key, value in writes if value is not None]
        if rule.max_keys and len(sizes) > rule.max_keys:
            text = f"there may be {rule.max_keys} keys under {rule.prefix!r}, and these alone are {len(sizes)}"
            raise OutOfMemory(text)
        if rule.max_bytes and (size := sum(sizes)) > rule.max_bytes:
            text = f"the keys under {rule.prefix!r} may take {rule.max_bytes} bytes, and this alone is {size}"
            raise OutOfMemory(text)

    def full(self) -> OutOfMemory:
        """The error that says which limit is reached."""
        rule = self.rule
        if rule.max_keys and self.keys >= rule.max_keys:
            return OutOfMemory(f"there are {self.keys} keys under {rule.prefix!r}, and there may be {rule.max_keys}")
        return OutOfMemory(f"the keys under {rule.prefix!r} take {self.bytes} bytes, and may take {rule.max_bytes}")


class Quotas:
    """The quotas of all rules. ``all``: by the prefix of their rule; ``limited``: those that are counted.

    ``marks``: what was read or written lately, for the hot path to note; None while no key may be evicted.
    """

    def __init__(self, store: Store, rules: PrefixRules = NO_RULES) -> None:
        self._store = store
        self.rules = rules
        self.marks = marks = Marks() if any(rule.evict for rule in rules.rules) else None
        self.all = {
            rule.prefix: Quota(rule, self._new_sieve(marks) if rule.evict and marks is not None else None)
            for rule in rules.rules
            if rule.evict or rule.max_bytes or rule.max_keys
        }
        self.sieves = [quota.sieve for quota in self.all.values() if quota.sieve is not None]
        self.limited = [quota for quota in self.all.values() if quota.is_limited]

    def _new_sieve(self, marks: Marks) -> Sieve:
        return Sieve(self._store.find_all, lambda: self._store.forgotten_keys, marks)

    def take_in(self, heads: Iterable[Head]) -> None:
        """Count and queue keys that are there already."""
        for head in heads:
            quota = self.quota_of(head.key)
            if quota is not None:
                if quota.sieve is not None and (head.value is not None or not self._was_evicted(head)):
                    quota.sieve.add_all([head.key])
                quota.add(head.key, head.value)

    def quota_of(self, key: str) -> Quota | None:
        """The quota that ``key`` counts for."""
        rule = self.rules.rule_of(key)
        return None if rule is None else self.all.get(rule.prefix)

    @property
    def queue_bytes(self) -> int:
        """What the queues take."""
        return QUEUE_BYTES * sum(map(len, self.sieves))

    # ------------------------------------------------------------------ before a write

    def make_room(self, writes: list[Write], evict: Callable[[Quota, int, int], list[Head]]) -> Steps[None]:
        """Make room below each prefix for ``writes``, each key once. Raises OutOfMemory.

        ``evict`` is given a quota, and by how many keys and bytes that is over its limits. It evicts some keys, and
        returns them.
        """
        of_quota: dict[Quota, list[Write]] = {}
        for chunk in slices(writes):
            for write in chunk:
                quota = self.quota_of(write[0])
                if quota is not None and quota.is_limited:
                    of_quota.setdefault(quota, []).append(write)
            yield
        for quota, own_writes in of_quota.items():
            keys, size = yield from growth_of(self._store, own_writes)
            values = dict(own_writes)
            while any(excess := quota.excess(keys, size)):
                quota.check_alone(own_writes)
                victims = evict(quota, *excess)
                if not victims:
                    raise quota.full()
                # An evicted key that is about to be written made no room.
                for head in victims:
                    if head.key in values and head.value is not None:
                        keys, size = keys + 1, size + size_of(head.key, head.value)
                yield

    # ------------------------------------------------------------------ after a commit

    def on_commit(self, groups: Iterable[Group]) -> None:
        """Count what commits have changed, and queue their new keys."""
        for group in groups:
            if self.limited:
                self._count(group.heads)
            # An evicted key has left the queue before.
            if self.marks is not None and group.author != EVICTED:
                self._queue(group.heads, self.marks)

    def _count(self, heads: Iterable[Head]) -> None:
        for head in heads:
            quota = self.quota_of(head.key)
            if quota is not None:
                old = head.previous
                quota.subtract(head.key, None if old is None else old.value)
                quota.add(head.key, head.value)

    def _queue(self, heads: tuple[Head, ...], marks: Marks) -> None:
        """Queue new keys, and evicted ones that come again, at the end; mark some of the others as used."""
        new = [
            head.key
            for head in heads
            if (old := head.previous) is None or (old.value is None and self._was_evicted(old))
        ]
        if new:
            for rule, keys in self.rules.by_rule(new):
                quota = None if rule is None else self.all.get(rule.prefix)
                if quota is not None and quota.sieve is not None:
                    quota.sieve.add_all(keys)
        again = [
            head.key
            for head in marks.sample(heads)
            if (old := head.previous) is not None and old.value is not None and head.value is not None
        ]
        if again:
            marks.set_all(again)

    def _was_evicted(self, head: Head) -> bool:
        """Whether the key left the queue with this tombstone; a key that was deleted still stands in it."""
        group = self._store.window.group_of(head.version)
        return group is None or group.author == EVICTED


def growth_of(store: Store, writes: Sequence[Write]) -> Steps[tuple[int, int]]:
    """Return how many keys, and bytes of them, there will be more."""
    keys = size = 0
    for chunk in slices(writes):
        for (key, value), head in zip(chunk, store.find_all([key for key, _ in chunk]), strict=True):
            if head is not None and head.value is not None:
                keys -= 1
                size -= size_of(key, head.value)
            if value is not None:
                keys += 1
                size += size_of(key, value)
        yield
    return keys, size


def size_of(key: str, value: bytes) -> int:
    """What a key with this value takes."""
    return KEY_BYTES + len(key) + len(value)


def largest_of_each(writes: Writes) -> list[Write]:
    """Return ``writes`` with each key once: of several values of a key, which its commits have, the largest."""
    pairs = list(zip(writes, writes.values(), strict=True))
    if len(dict(pairs)) == len(pairs):
        return pairs
    return list(dict(sorted(pairs, key=lambda write: len(write[1] or b""))).items())
