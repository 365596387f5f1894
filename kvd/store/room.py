"""How much may be in memory, and what goes when it is full.

Counted are keys, values, history and what the connections hold, in bytes of CPython objects. A write that would not fit
finds room in this order, and is refused before anything of it is made if there is none:

        1. history that no snapshot needs        oldest first
        2. keys that may be evicted              as SIEVE says (``store/sieve.py``), in a commit of their own
        3. history that snapshots need           they end: snapshot_gone

So an evicted value is gone at once, and whoever asks for it at an older version is told that this has left the history.
Commits that nobody may be shown yet stay, whatever happens. Deletions and reads need no room.
"""

from collections.abc import Callable, Collection, Iterable

from kvd.store.authors import EVICTED
from kvd.store.errors import OutOfMemory
from kvd.store.heads import Head
from kvd.store.keyspace import KEY_BYTES
from kvd.store.prefixes import NO_RULES, PrefixRule, PrefixRules
from kvd.store.sieve import KEY_BYTES as QUEUE_BYTES
from kvd.store.sieve import Marks, Sieve
from kvd.store.store import Store
from kvd.store.window import GROUP_BYTES, PLACE_BYTES, SUPERSEDED_BYTES, Group

# Room is made for a little more than is needed, so that not each write has to, with a commit of evictions.
_MOST_SPARE_BYTES = 256 * 1024
_SPARE_PART = 1_024
# One commit of evictions takes no more keys than this.
EVICTED_KEYS = 256
# What a key costs that expires or is ephemeral, and a remembered write.
_DEADLINE_BYTES = 300
_OUTCOME_BYTES = 250


class Quota:
    """What the keys of one rule take: keys with a value, their bytes, and the queue in which they wait to go."""

    def __init__(self, rule: PrefixRule, sieve: Sieve | None) -> None:
        self.rule = rule
        self.sieve = sieve
        self.keys = 0
        self.bytes = 0

    @property
    def is_limited(self) -> bool:
        """Whether what they take has to be counted."""
        return bool(self.rule.max_bytes or self.rule.max_keys)

    def over(self, keys: int, size: int) -> tuple[int, int]:
        """How many keys and bytes there would be too many, if there were so many more."""
        rule = self.rule
        keys_over = self.keys + keys - rule.max_keys if rule.max_keys and keys > 0 else 0
        bytes_over = self.bytes + size - rule.max_bytes if rule.max_bytes and size > 0 else 0
        return max(keys_over, 0), max(bytes_over, 0)


class Room:
    """Sees to it that there is room for what is written. ``evict`` deletes the keys of heads in a commit of its own."""

    def __init__(self, store: Store, evict: Callable[[list[Head]], None], shown: Callable[[], int]) -> None:
        self._store = store
        self._evict = evict
        self._shown = shown
        self.max_bytes = 0
        self.max_keys = 0
        self._careful_from = 2**64  # below this any write fits
        self.rules: PrefixRules = NO_RULES
        self._quotas: dict[str, Quota] = {}  # by the prefix of their rule
        self._limited: list[Quota] = []
        self._sieves: list[Sieve] = []
        # What was read or written lately, for the hot path to note; None while nothing may be evicted.
        self.marks: Marks | None = None
        # What the connections hold; whoever serves them says it.
        self.buffer_bytes: Callable[[], int] = lambda: 0
        self.remembered_writes: Callable[[], int] = lambda: 0

    # ------------------------------------------------------------------ what is allowed

    def configure(self, max_bytes: int, max_keys: int, largest_write_bytes: int) -> None:
        """Set the limits, 0 for none. ``largest_write_bytes``: of one frame."""
        self.max_bytes = max_bytes
        self.max_keys = max_keys
        # Connections may hold a tenth of it, and a write take more in memory than on the wire.
        self._careful_from = max_bytes * 9 // 10 - 4 * largest_write_bytes if max_bytes else 2**64

    def set_rules(self, rules: PrefixRules) -> None:
        """Let these rules hold, also for what is there already."""
        self.rules = rules
        self._store.retention.set_rules(rules)
        evicting = any(rule.evict for rule in rules.rules)
        self.marks = Marks() if evicting else None
        self._quotas = {
            rule.prefix: Quota(rule, self._new_sieve() if rule.evict else None)
            for rule in rules.rules
            if rule.evict or rule.max_bytes or rule.max_keys
        }
        self._sieves = [quota.sieve for quota in self._quotas.values() if quota.sieve is not None]
        self._limited = [quota for quota in self._quotas.values() if quota.is_limited]
        if self._quotas:
            for part in self._store.parts():
                self._take_in(part.values())

    def _new_sieve(self) -> Sieve:
        assert self.marks is not None
        return Sieve(self._store.find_all, lambda: self._store.forgotten_keys, self.marks)

    def _take_in(self, heads: Iterable[Head]) -> None:
        for head in heads:
            quota = self._quota_of(head.key)
            if quota is not None:
                if quota.sieve is not None and (head.value is not None or not self._was_evicted(head)):
                    quota.sieve.add_all([head.key])
                if head.value is not None:
                    quota.keys += 1
                    quota.bytes += _size(head.key, head.value)

    def _quota_of(self, key: str) -> Quota | None:
        rule = self.rules.rule_of(key)
        return None if rule is None else self._quotas.get(rule.prefix)

    # ------------------------------------------------------------------ what there is

    def used_bytes(self) -> int:
        """What is in memory."""
        return self._store_bytes() + self.buffer_bytes()

    def _store_bytes(self) -> int:
        store = self._store
        return (
            store.memory_bytes
            + _DEADLINE_BYTES * len(store.lifetimes)
            + _OUTCOME_BYTES * self.remembered_writes()
            + QUEUE_BYTES * sum(map(len, self._sieves))
        )

    def by_kind(self) -> dict[str, int]:
        """What is in memory, by what takes it."""
        store = self._store
        return {
            "keys": store.key_bytes,
            "values": store.counters.value_bytes,
            "history": store.window.bytes,
            "buffers": self.buffer_bytes(),
            "other": self._store_bytes() - store.memory_bytes,
        }

    def quotas(self) -> list[tuple[str, int, int]]:
        """Prefix, keys and bytes of each rule that limits them."""
        return [(quota.rule.prefix, quota.keys, quota.bytes) for quota in self._limited]

    @property
    def takes_notes(self) -> bool:
        """Whether ``committed`` wants to know of commits."""
        return bool(self._quotas)

    def committed(self, groups: Iterable[Group]) -> None:
        """Take note of commits that were made."""
        for group in groups:
            if self._limited:
                self._count(group.heads)
            # Whoever was evicted has left the queue before.
            if self.marks is not None and group.author != EVICTED:
                self._queue(group.heads, self.marks)

    def _count(self, heads: Iterable[Head]) -> None:
        for head in heads:
            quota = self._quota_of(head.key)
            if quota is not None:
                old = head.previous
                before = None if old is None else old.value
                if before is not None:
                    quota.keys -= 1
                    quota.bytes -= _size(head.key, before)
                if head.value is not None:
                    quota.keys += 1
                    quota.bytes += _size(head.key, head.value)

    def _queue(self, heads: tuple[Head, ...], marks: Marks) -> None:
        """New keys, and evicted ones that come again, begin at the end of their queues; others have been visited."""
        new = [
            head.key
            for head in heads
            if (old := head.previous) is None or (old.value is None and self._was_evicted(old))
        ]
        if new:
            for rule, keys in self.rules.by_rule(new):
                quota = None if rule is None else self._quotas.get(rule.prefix)
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
        """Whether by this tombstone its key left the queue; what was deleted still stands in it."""
        group = self._store.window.group_of(head.version)
        return group is None or group.author == EVICTED

    # ------------------------------------------------------------------ before a write

    @property
    def is_tight(self) -> bool:
        """Whether there may be no room for a write, so that ``admit`` has to be asked."""
        return bool(self._limited or self.max_keys) or self._store.memory_bytes >= self._careful_from

    def admit(self, keys: Collection[str], values: Collection[bytes]) -> None:
        """See that there is room for ``values`` under ``keys``. Raises OutOfMemory."""
        if self._limited:
            self._admit_to_quotas(zip(keys, values, strict=True))
        if self.max_keys:
            self._admit_keys(sum(not self._store.exists(key) for key in keys))
        if self.max_bytes:
            size = GROUP_BYTES + (PLACE_BYTES + SUPERSEDED_BYTES + KEY_BYTES) * len(keys)
            self._admit_bytes(size + sum(map(len, keys)) + sum(map(len, values)))

    def relax(self) -> None:
        """Drop history that is too much; for what needs no room, as deletions do, and takes some all the same."""
        if self.max_bytes and (over := self.used_bytes() - self.max_bytes) > 0:
            self._store.squeeze_history(over, self._shown(), even_pinned=False)

    def _admit_to_quotas(self, entries: Iterable[tuple[str, bytes]]) -> None:
        wanted: dict[Quota, list[int]] = {}
        for key, value in entries:
            quota = self._quota_of(key)
            if quota is not None and quota.is_limited:
                head = self._store.find(key)
                before = None if head is None else head.value
                more = wanted.setdefault(quota, [0, 0])
                more[0] += before is None
                more[1] += _size(key, value) - (0 if before is None else _size(key, before))
        for quota, (more_keys, more_bytes) in wanted.items():
            rule = quota.rule
            if rule.max_bytes and more_bytes > rule.max_bytes:
                raise OutOfMemory(
                    f"the keys under {rule.prefix!r} may take {rule.max_bytes} bytes, and this alone is {more_bytes}"
                )
            while any(over := quota.over(more_keys, more_bytes)):
                if not self._evict_some([quota], *_and_spare(*over, rule.max_keys, rule.max_bytes)):
                    raise OutOfMemory(_full(quota))

    def _admit_keys(self, new: int) -> None:
        if new > self.max_keys:
            raise OutOfMemory(f"there may be {self.max_keys} keys, and these alone are {new}")
        while new and (over := self._store.counters.keys + new - self.max_keys) > 0:
            if not self._evict_some(self._quotas.values(), *_and_spare(over, 0, self.max_keys, 0)):
                raise OutOfMemory(f"there are {self._store.counters.keys} keys, and there may be {self.max_keys}")

    def _admit_bytes(self, size: int) -> None:
        if size > self.max_bytes:
            raise OutOfMemory(f"this would take {size} bytes of memory, and all may take {self.max_bytes}")
        over = self.used_bytes() + size - self.max_bytes
        if over <= 0:
            return
        _, wanted = _and_spare(0, over, 0, self.max_bytes)
        self._store.squeeze_history(wanted, self._shown(), even_pinned=False)
        while (over := self.used_bytes() + size - self.max_bytes) > 0:
            if not self._evict_some(self._quotas.values(), *_and_spare(0, over, 0, self.max_bytes)):
                break
            self._store.squeeze_history(over, self._shown(), even_pinned=True)
        if over > 0:
            self._store.squeeze_history(over, self._shown(), even_pinned=True)
            used = self.used_bytes()
            if used + size > self.max_bytes:
                raise OutOfMemory(f"{used} bytes of memory are taken of {self.max_bytes}, and this needs {size}")

    def _evict_some(self, quotas: Iterable[Quota], keys: int, size: int) -> bool:
        """Evict at least so many keys, and bytes, or as many as go at a time; whether any could be."""
        victims: dict[Head, None] = {}  # as the same may come twice
        sieves = [quota.sieve for quota in quotas if quota.sieve is not None]
        # From the longest queue first, so that no small prefix pays for a large one.
        for sieve in sorted(sieves, key=len, reverse=True):
            more = sieve.take_victims(keys - len(victims), size, EVICTED_KEYS - len(victims))
            victims.update(dict.fromkeys(more))
            if len(victims) >= EVICTED_KEYS:
                break
            size -= sum(_size(head.key, head.value or b"") for head in more)
        if victims:
            self._evict(list(victims))
        return bool(victims)


def _and_spare(keys: int, size: int, most_keys: int, most_bytes: int) -> tuple[int, int]:
    """Of what is over a limit a little more, of what is not over it nothing."""
    spare_bytes = min(most_bytes // _SPARE_PART, _MOST_SPARE_BYTES)
    return keys and keys + most_keys // _SPARE_PART, size and size + spare_bytes


def _size(key: str, value: bytes) -> int:
    return KEY_BYTES + len(key) + len(value)


def _full(quota: Quota) -> str:
    rule = quota.rule
    if rule.max_keys and quota.keys >= rule.max_keys:
        return f"there are {quota.keys} keys under {rule.prefix!r}, and there may be {rule.max_keys}"
    return f"the keys under {rule.prefix!r} take {quota.bytes} bytes, and may take {rule.max_bytes}"
