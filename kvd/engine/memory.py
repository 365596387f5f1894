"""How much may be in memory, and what goes when it is full.

Counted are keys, values, history and what the connections hold, in bytes of CPython objects. A write that would not fit
finds room in this order. If there is no room, the write is refused before any of it is made:

        1. history that no snapshot needs        oldest first
        2. keys that may be evicted              as SIEVE says (``store/sieve.py``), in a commit of their own
        3. history that snapshots need           they end: snapshot_gone

So an evicted value is gone at once, and a read of it at an older version fails with ``snapshot_gone``. Commits that may
not be shown yet stay in any case. With a commit log, evictions are among these until the disk has them: their room is
given away before that, up to a limit, because otherwise one write would evict everything in vain.
Deletions and reads need no room.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from kvd.engine.quotas import Quota, Quotas, Write, largest_of_each, size_of
from kvd.engine.writes import Writes
from kvd.store.errors import OutOfMemory
from kvd.store.heads import Head
from kvd.store.idempotency import IdempotencyCache
from kvd.store.keyspace import KEY_BYTES
from kvd.store.prefixes import PrefixRules
from kvd.store.store import Store
from kvd.store.window import GROUP_BYTES, PLACE_BYTES, SUPERSEDED_BYTES, Group

# A little more room is made than is needed, so that not every write has to, with a commit of evictions.
_MAX_SPARE_BYTES = 256 * 1024
_SPARE_PART = 1_024
# One commit of evictions takes no more keys than this.
EVICTED_KEYS = 256
# This part of the limit may be taken beyond it while evictions may not be shown yet.
_UNSHOWN_PART = 4
# What a key costs that expires or is ephemeral, and a remembered write.
_DEADLINE_BYTES = 300
_OUTCOME_BYTES = 250


class MemoryManager:
    """Makes room for what is written. ``evict`` deletes the keys of heads in a commit of its own.

    ``visible`` gives the newest version that may be shown, ``buffer_bytes`` what the connections hold. While
    ``unshown_bytes`` of evictions may not be shown yet, ``release_history`` is to be called when more may be shown.
    """

    def __init__(
        self,
        store: Store,
        outcomes: IdempotencyCache,
        evict: Callable[[list[Head]], None],
        visible: Callable[[], int],
        buffer_bytes: Callable[[], int],
    ) -> None:
        self._store = store
        self._lifetimes = store.lifetimes
        self._outcomes = outcomes
        self._evict = evict
        self._visible = visible
        self.buffer_bytes = buffer_bytes
        self.max_bytes = 0
        self.max_keys = 0
        self._pressure_threshold = 2**64  # below this any write fits
        # Evictions that may not be shown yet: the version, and the bytes that go with the history after that.
        self._unshown: deque[tuple[int, int]] = deque()
        self.unshown_bytes = 0
        self._apply(Quotas(store))

    # ------------------------------------------------------------------ what is allowed

    def configure(self, max_bytes: int, max_keys: int, max_write_bytes: int) -> None:
        """Set the limits, 0 for none. ``max_write_bytes``: of one frame."""
        self.max_bytes = max_bytes
        self.max_keys = max_keys
        # Connections may hold a tenth of it, and a write may take more in memory than on the wire.
        self._pressure_threshold = max_bytes * 9 // 10 - 4 * max_write_bytes if max_bytes else 2**64

    def set_rules(self, rules: PrefixRules) -> None:
        """Let these rules hold, also for what is there already."""
        self._store.retention.set_rules(rules)
        self._quotas.set_rules(rules)
        self._apply(self._quotas)

    def _apply(self, quotas: Quotas) -> None:
        """Keep what the hot path asks for in attributes: the rules, the marks, and whether commits are tracked."""
        self._quotas = quotas
        self.rules = quotas.rules
        self.marks = quotas.marks
        self._limited = quotas.limited
        self.tracks_commits = bool(quotas.all)
        self.on_commit = quotas.on_commit

    # ------------------------------------------------------------------ what there is

    def used_bytes(self) -> int:
        """What is in memory."""
        return self._store_bytes() + self.buffer_bytes()

    def _store_bytes(self) -> int:
        return (
            self._store.memory_bytes
            + _DEADLINE_BYTES * len(self._lifetimes)
            + _OUTCOME_BYTES * len(self._outcomes)
            + self._quotas.queue_bytes
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
    def is_under_pressure(self) -> bool:
        """Whether there may be no room for a write, so that ``reserve`` has to be called."""
        store = self._store
        used = store.memory_bytes
        if used + 2 * _DEADLINE_BYTES * store.counters.keys >= self._pressure_threshold:
            # A key has one deadline and one owner at most, so mostly they need not be counted.
            used += _DEADLINE_BYTES * len(self._lifetimes)
        return used >= self._pressure_threshold or bool(self._limited or self.max_keys)

    # ------------------------------------------------------------------ before a write

    def reserve(self, writes: Writes, *, with_expiry: bool = False) -> None:
        """Make room for ``writes``. Raises OutOfMemory.

        ``with_expiry``: each of the keys may get a deadline, or an owner.
        """
        if self._limited or self.max_keys:
            largest = largest_of_each(writes)
            if self._limited:
                self._quotas.reserve(largest, self._evict_for_quota)
            if self.max_keys:
                self._reserve_keys(largest)
        if self.max_bytes:
            stored = _without_deletions(writes)
            if len(stored):
                each = PLACE_BYTES + SUPERSEDED_BYTES + KEY_BYTES + (_DEADLINE_BYTES if with_expiry else 0)
                size = GROUP_BYTES + each * len(stored)
                self._reserve_bytes(size + sum(map(len, stored)) + sum(map(len, filter(None, stored.values()))))

    def reserve_deadlines(self, keys: Sequence[str]) -> None:
        """Make room for each of ``keys`` to get a deadline. Raises OutOfMemory."""
        if self.max_bytes:
            new = self._lifetimes.deadlines_of(keys).count(None)
            self._reserve_bytes(GROUP_BYTES + (PLACE_BYTES + SUPERSEDED_BYTES) * len(keys) + _DEADLINE_BYTES * new)

    def _evict_for_quota(self, quota: Quota, keys: int, size: int) -> bool:
        rule = quota.rule
        return self._evict_some([quota], *_with_spare(keys, size, rule.max_keys, rule.max_bytes))

    def _reserve_keys(self, writes: list[Write]) -> None:
        counters = self._store.counters
        if counters.keys + len(writes) <= self.max_keys:
            return
        while (more := self._quotas.growth(writes)[0]) > 0 and (excess := counters.keys + more - self.max_keys) > 0:
            count = sum(value is not None for _, value in writes)
            if count > self.max_keys:
                raise OutOfMemory(f"there may be {self.max_keys} keys, and these alone are {count}")
            if not self._evict_some(self._quotas.all.values(), *_with_spare(excess, 0, self.max_keys, 0)):
                raise OutOfMemory(f"there are {counters.keys} keys, and there may be {self.max_keys}")

    def _reserve_bytes(self, size: int) -> None:
        if size > self.max_bytes:
            raise OutOfMemory(f"this would take {size} bytes of memory, and all may take {self.max_bytes}")
        if (excess := self._excess(size)) > 0:
            _, wanted = _with_spare(0, excess, 0, self.max_bytes)
            self._store.trim_history(wanted, self._visible(), even_pinned=False)
        while (excess := self._excess(size)) > 0:
            _, wanted = _with_spare(0, excess, 0, self.max_bytes)
            evicted = self._evict_some(self._quotas.all.values(), 0, wanted, forget=True)
            self._store.trim_history(self._excess(size), self._visible(), even_pinned=True)
            if not evicted:
                break
        used = self.used_bytes()
        if self._excess(size) > 0:
            raise OutOfMemory(f"{used} bytes of memory are taken of {self.max_bytes}, and this needs {size}")
        if self._unshown and used + size > self.max_bytes + self.max_bytes // _UNSHOWN_PART:
            text = f"{used} bytes of memory are taken of {self.max_bytes} until the disk has what was evicted"
            raise OutOfMemory(f"{text}, and this needs {size}")

    def _excess(self, size: int) -> int:
        """How many bytes too many there are with ``size`` more, without those that go once they may be shown."""
        shown = max(self._visible(), self._store.window.oldest_readable)
        while self._unshown and self._unshown[0][0] <= shown:
            self.unshown_bytes -= self._unshown.popleft()[1]
        return self.used_bytes() - self.unshown_bytes + size - self.max_bytes

    # ------------------------------------------------------------------ what goes

    def release_history(self) -> None:
        """Drop history that is too much, after a change that reserves no room, or once more of it may be shown."""
        if self.max_bytes and (excess := self.used_bytes() - self.max_bytes) > 0:
            self._store.trim_history(excess, self._visible(), even_pinned=False)

    def _evict_some(self, quotas: Iterable[Quota], keys: int, size: int, *, forget: bool = False) -> bool:
        """Evict at least this many keys and bytes, or as many as one commit takes. Return whether there were any.

        ``forget``: their values are not kept in the history, because memory is short.
        """
        victims: dict[Head, None] = {}  # a dict, because the same head may come twice
        sieves = [quota.sieve for quota in quotas if quota.sieve is not None]
        # From the longest queue first, so that no small prefix pays for a large one.
        for sieve in sorted(sieves, key=len, reverse=True):
            more = sieve.take_victims(keys - len(victims), size, EVICTED_KEYS - len(victims))
            victims.update(dict.fromkeys(more))
            if len(victims) >= EVICTED_KEYS:
                break
            size -= sum(size_of(head.key, head.value or b"") for head in more)
        if victims:
            before = self._store.version
            self._evict(list(victims))
            for group in self._store.window.newest_since(before):
                if forget:
                    self._store.retention.forget_evicted(group)
                self._note_unshown(group)
        return bool(victims)

    def _note_unshown(self, group: Group) -> None:
        """Count what is left of the keys that ``group`` evicted: it goes with the history once it may be shown."""
        if self.max_bytes and self._store.version > self._visible():
            freed = group.size + sum(KEY_BYTES + len(head.key) for head in group.heads)
            self._unshown.append((self._store.version, freed))
            self.unshown_bytes += freed


def _without_deletions(writes: Writes) -> Writes:
    if None not in writes.values():
        return writes
    return {key: value for key, value in zip(writes, writes.values(), strict=True) if value is not None}


def _with_spare(keys: int, size: int, max_keys: int, max_bytes: int) -> tuple[int, int]:
    """Add headroom to each excess, and leave at zero what is within its limit."""
    spare_bytes = min(max_bytes // _SPARE_PART, _MAX_SPARE_BYTES)
    return keys and keys + max_keys // _SPARE_PART, size and size + spare_bytes
