"""How much may be in memory, and what goes when it is full.

Counted are keys, values, history and what the connections hold, in bytes of CPython objects. A write that would not fit
finds room in this order, and is refused before anything of it is made if there is none:

        1. history that no snapshot needs        oldest first
        2. keys that may be evicted              as SIEVE says (``store/sieve.py``), in a commit of their own
        3. history that snapshots need           they end: snapshot_gone

So an evicted value is gone at once, and whoever asks for it at an older version is told that this has left the history.
Commits that nobody may be shown yet stay, whatever happens. With a commit log evictions are among these until the disk
has them: their room is given away before, up to a limit, as otherwise one write would evict everything in vain.
Deletions and reads need no room.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence

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
_MAX_SPARE_BYTES = 256 * 1024
_SPARE_PART = 1_024
# One commit of evictions takes no more keys than this.
EVICTED_KEYS = 256
# So much may be taken beyond the limit while evictions may not be shown yet: a part of the limit.
_UNSHOWN_PART = 4
# A key, and the value that it is to have; None deletes it.
Write = tuple[str, bytes | None]
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


class MemoryManager:
    """Sees to it that there is room for what is written. ``evict`` deletes the keys of heads in a commit of its own."""

    def __init__(self, store: Store, evict: Callable[[list[Head]], None], shown: Callable[[], int]) -> None:
        self._store = store
        self._evict = evict
        self._shown = shown
        self.max_bytes = 0
        self.max_keys = 0
        self._pressure_threshold = 2**64  # below this any write fits
        self.rules: PrefixRules = NO_RULES
        self._quotas: dict[str, Quota] = {}  # by the prefix of their rule
        self._limited: list[Quota] = []
        self._sieves: list[Sieve] = []
        # Evictions that nobody may be shown yet: the version, and the bytes that go with the history after that.
        self._unshown: deque[tuple[int, int]] = deque()
        self._unshown_bytes = 0
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
        self._pressure_threshold = max_bytes * 9 // 10 - 4 * largest_write_bytes if max_bytes else 2**64

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
    def tracks_commits(self) -> bool:
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
    def is_under_pressure(self) -> bool:
        """Whether there may be no room for a write, so that ``admit`` has to be asked."""
        store = self._store
        used = store.memory_bytes + _DEADLINE_BYTES * len(store.lifetimes)
        return bool(self._limited or self.max_keys) or used >= self._pressure_threshold

    def admit(self, keys: Collection[str], values: Collection[bytes | None], *, with_expiry: bool = False) -> None:
        """See that there is room for ``values`` (None deletes) under ``keys``. Raises OutOfMemory.

        ``with_expiry``: the keys may get a deadline, or an owner, each.
        """
        if self._limited or self.max_keys:
            largest = _largest_of_each(list(zip(keys, values, strict=True)))
            if self._limited:
                self._admit_to_quotas(largest)
            if self.max_keys:
                self._admit_keys(largest)
        if self.max_bytes:
            if None in values:
                keys = [key for key, value in zip(keys, values, strict=True) if value is not None]
                values = [value for value in values if value is not None]
            if values:
                each = PLACE_BYTES + SUPERSEDED_BYTES + KEY_BYTES + (_DEADLINE_BYTES if with_expiry else 0)
                size = GROUP_BYTES + each * len(keys)
                self._admit_bytes(size + sum(map(len, keys)) + sum(map(len, values)))  # type: ignore[arg-type]

    def admit_deadlines(self, keys: Sequence[str]) -> None:
        """See that there is room for each of ``keys`` to get a deadline. Raises OutOfMemory."""
        if self.max_bytes:
            new = self._store.lifetimes.deadlines_of(keys).count(None)
            self._admit_bytes(GROUP_BYTES + (PLACE_BYTES + SUPERSEDED_BYTES) * len(keys) + _DEADLINE_BYTES * new)

    def on_visible(self) -> None:
        """More may be shown: what was evicted, and had to stay for that, goes."""
        if self._unshown:
            self.release_history()

    def release_history(self) -> None:
        """Drop history that is too much; for what needs no room, as deletions do, and takes some all the same."""
        if self.max_bytes and (over := self.used_bytes() - self.max_bytes) > 0:
            self._store.trim_history(over, self._shown(), even_pinned=False)

    def _admit_to_quotas(self, writes: Iterable[Write]) -> None:
        of_quota: dict[Quota, list[Write]] = {}
        for write in writes:
            quota = self._quota_of(write[0])
            if quota is not None and quota.is_limited:
                of_quota.setdefault(quota, []).append(write)
        for quota, mine in of_quota.items():
            rule = quota.rule
            # Each time anew: what is evicted may be a key that is about to be written.
            while any(over := quota.over(*self._growth(mine))):
                _check_alone(rule, mine)
                if not self._evict_some([quota], *_and_spare(*over, rule.max_keys, rule.max_bytes)):
                    raise OutOfMemory(_full(quota))

    def _admit_keys(self, writes: list[Write]) -> None:
        if self._store.counters.keys + len(writes) <= self.max_keys:
            return
        while (more := self._growth(writes)[0]) > 0 and (over := self._store.counters.keys + more - self.max_keys) > 0:
            count = sum(value is not None for _, value in writes)
            if count > self.max_keys:
                raise OutOfMemory(f"there may be {self.max_keys} keys, and these alone are {count}")
            if not self._evict_some(self._quotas.values(), *_and_spare(over, 0, self.max_keys, 0)):
                raise OutOfMemory(f"there are {self._store.counters.keys} keys, and there may be {self.max_keys}")

    def _growth(self, writes: Iterable[Write]) -> tuple[int, int]:
        """How many keys and bytes of them there will be more."""
        keys = size = 0
        for key, value in writes:
            head = self._store.find(key)
            if head is not None and head.value is not None:
                keys -= 1
                size -= _size(key, head.value)
            if value is not None:
                keys += 1
                size += _size(key, value)
        return keys, size

    def _admit_bytes(self, size: int) -> None:
        if size > self.max_bytes:
            raise OutOfMemory(f"this would take {size} bytes of memory, and all may take {self.max_bytes}")
        over = self._over(size)
        if over > 0:
            _, wanted = _and_spare(0, over, 0, self.max_bytes)
            self._store.trim_history(wanted, self._shown(), even_pinned=False)
        while (over := self._over(size)) > 0:
            evicted = self._evict_some(self._quotas.values(), *_and_spare(0, over, 0, self.max_bytes), forget=True)
            self._store.trim_history(self._over(size), self._shown(), even_pinned=True)
            if not evicted:
                break
        used = self.used_bytes()
        if self._over(size) > 0:
            raise OutOfMemory(f"{used} bytes of memory are taken of {self.max_bytes}, and this needs {size}")
        if self._unshown and used + size > self.max_bytes + self.max_bytes // _UNSHOWN_PART:
            text = f"{used} bytes of memory are taken of {self.max_bytes} until the disk has what was evicted"
            raise OutOfMemory(f"{text}, and this needs {size}")

    def _over(self, size: int) -> int:
        """How many bytes there are too many for ``size`` more, without those that go once they may be shown."""
        shown = max(self._shown(), self._store.window.oldest_readable)
        while self._unshown and self._unshown[0][0] <= shown:
            self._unshown_bytes -= self._unshown.popleft()[1]
        return self.used_bytes() - self._unshown_bytes + size - self.max_bytes

    def _evict_some(self, quotas: Iterable[Quota], keys: int, size: int, *, forget: bool = False) -> bool:
        """Evict at least so many keys, and bytes, or as many as go at a time; whether any could be.

        ``forget``: their values are not kept in the history, for memory is what is short.
        """
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
            before = self._store.version
            self._evict(list(victims))
            for group in self._store.window.behind(before):
                if forget:
                    self._store.retention.forget_evicted(group)
                self._note_unshown(group)
        return bool(victims)

    def _note_unshown(self, group: Group) -> None:
        """What is left of those whom ``group`` evicted goes with the history once their end may be shown."""
        if self.max_bytes and self._store.version > self._shown():
            freed = group.size + sum(KEY_BYTES + len(head.key) for head in group.heads)
            self._unshown.append((self._store.version, freed))
            self._unshown_bytes += freed


def _and_spare(keys: int, size: int, most_keys: int, most_bytes: int) -> tuple[int, int]:
    """Of what is over a limit a little more, of what is not over it nothing."""
    spare_bytes = min(most_bytes // _SPARE_PART, _MAX_SPARE_BYTES)
    return keys and keys + most_keys // _SPARE_PART, size and size + spare_bytes


def _size(key: str, value: bytes) -> int:
    return KEY_BYTES + len(key) + len(value)


def _largest_of_each(writes: list[Write]) -> list[Write]:
    """The same with each key once: of several commits of it that are made together, the one that takes most."""
    last = dict(writes)
    if len(last) == len(writes):
        return writes
    return list(dict(sorted(writes, key=lambda write: len(write[1] or b""))).items())


def _check_alone(rule: PrefixRule, writes: list[Write]) -> None:
    """Raise OutOfMemory if ``writes`` are more than the rule allows, whatever is evicted for them."""
    sizes = [_size(key, value) for key, value in writes if value is not None]
    if rule.max_keys and len(sizes) > rule.max_keys:
        raise OutOfMemory(f"there may be {rule.max_keys} keys under {rule.prefix!r}, and these alone are {len(sizes)}")
    if rule.max_bytes and (size := sum(sizes)) > rule.max_bytes:
        text = f"the keys under {rule.prefix!r} may take {rule.max_bytes} bytes, and this alone is {size}"
        raise OutOfMemory(text)


def _full(quota: Quota) -> str:
    rule = quota.rule
    if rule.max_keys and quota.keys >= rule.max_keys:
        return f"there are {quota.keys} keys under {rule.prefix!r}, and there may be {rule.max_keys}"
    return f"the keys under {rule.prefix!r} take {quota.bytes} bytes, and may take {rule.max_bytes}"
