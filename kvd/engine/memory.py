"""How much may be in memory, and what goes when it is full.

Counted are keys, values, history and what waits for the disk, in bytes of CPython objects. A write that would not fit
finds room in this order. If there is no room, the write is refused before any of it is made:

        1. history that no snapshot needs        oldest first
        2. keys that may be evicted              as SIEVE says (``store/sieve.py``), in a commit of their own
        3. history that snapshots need           they end: snapshot_gone

Room for a large write, and what a lowered limit leaves over, is made in steps of one commit of evictions each
(``kvd/store/steps.py``): other clients come between them.

So an evicted value is gone at once, and a read of it at an older version fails with ``snapshot_gone``. Commits that may
not be shown yet stay in any case. With a commit log, evictions are among these until the disk has them: their room is
given away before that, up to a limit, because otherwise one write would evict everything in vain.
Deletions and reads need no room.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from kvd.engine.counting import Counting
from kvd.engine.quotas import Quota, Quotas, Write, growth_of, largest_of_each, size_of
from kvd.engine.scheduler import Background, NullScheduler, Scheduler
from kvd.engine.writes import Writes
from kvd.store.errors import OutOfMemory
from kvd.store.heads import Head
from kvd.store.idempotency import IdempotencyCache
from kvd.store.keyspace import KEY_BYTES
from kvd.store.prefixes import PrefixRules
from kvd.store.steps import Steps, run_to_end
from kvd.store.store import Store
from kvd.store.window import GROUP_BYTES, PLACE_BYTES, SUPERSEDED_BYTES, Group

# A little more room is made than is needed, so that not every write has to, with a commit of evictions.
_MAX_SPARE_BYTES = 256 * 1024
_SPARE_PART = 1_024
# One commit of evictions takes no more keys than this.
EVICTED_KEYS = 256
# Room for this number of bytes can be made by one commit of evictions, or two.
QUICK_BYTES = EVICTED_KEYS * KEY_BYTES
# One step drops about this number of keys of history.
TRIMMED_KEYS = 2_048
# The keys of a smaller store are counted for new rules at once.
COUNTED_KEYS = 4_096
# This part of the limit may be taken beyond it while evictions may not be shown yet.
_UNSHOWN_PART = 4
# What a key costs that expires or is ephemeral, and a remembered write.
_DEADLINE_BYTES = 300
_OUTCOME_BYTES = 250


class MemoryManager:
    """Makes room for what is written. ``evict`` deletes the keys of heads in a commit of its own.

    ``visible`` gives the newest version that may be shown, ``engine_bytes`` what waits for the disk and the
    table of near caches. ``buffer_bytes``, what the connections hold, is only told: it has a budget of its own, and no
    data goes and no write is refused for it. While
    ``unshown_bytes`` of evictions may not be shown yet, ``release_history`` is to be called when more may be shown.
    """

    def __init__(
        self,
        store: Store,
        outcomes: IdempotencyCache,
        evict: Callable[[list[Head]], None],
        visible: Callable[[], int],
        buffer_bytes: Callable[[], int],
        engine_bytes: Callable[[], int],
        scheduler: Scheduler | None = None,
    ) -> None:
        self._store = store
        self._background = Background(scheduler or NullScheduler())
        self._lifetimes = store.lifetimes
        self._outcomes = outcomes
        self._evict = evict
        self._visible = visible
        self._connection_bytes = buffer_bytes
        self._engine_bytes = engine_bytes
        self.max_bytes = 0
        self.max_keys = 0
        self._pressure_threshold = 2**64  # below this any write fits
        # Evictions that may not be shown yet: the version, and the bytes that go with the history after that.
        self._unshown: deque[tuple[int, int]] = deque()
        self.unshown_bytes = 0
        # For how many large writes room is being made, by evictions below one prefix, or anywhere (None).
        self._claims: Counter[Quota | None] = Counter()
        self.is_shrinking = False  # whether more is there than is allowed since limits were lowered
        self.on_commit: Callable[[list[Group]], None] = _ignore_commits
        self._apply(Quotas(store))

    # ------------------------------------------------------------------ what is allowed

    def configure(self, max_bytes: int, max_keys: int, max_write_bytes: int) -> None:
        """Set the limits, 0 for none. ``max_write_bytes``: of one frame."""
        self.max_bytes = max_bytes
        self.max_keys = max_keys
        # Connections may hold a tenth of it, and a write may take more in memory than on the wire.
        self._pressure_threshold = max_bytes * 9 // 10 - 4 * max_write_bytes if max_bytes else 2**64

    def set_rules(self, rules: PrefixRules, *, at_once: bool = False) -> None:
        """Let these rules hold, also for what is there already; in a large store once all keys are counted for them.

        Until then the rules before them hold. Later rules replace those that do not hold yet.
        """
        self._background.run(self._set_rules(rules), at_once=at_once or len(self._store) <= COUNTED_KEYS)

    def _set_rules(self, rules: PrefixRules) -> Steps[None]:
        counting = Counting(self._store, Quotas(self._store, rules))
        try:
            if counting.quotas.all:
                self.tracks_commits = True
                self.on_commit = self._count_for_both(counting)
                yield from counting.run()
            self._store.retention.set_rules(rules)
            self._quotas = counting.quotas
        finally:
            self._apply(self._quotas)
        yield from self._shrink()

    def _count_for_both(self, counting: Counting) -> Callable[[list[Group]], None]:
        quotas = self._quotas

        def count(groups: list[Group]) -> None:
            if quotas.all:
                quotas.on_commit(groups)
            counting.on_commit(groups)

        return count

    def shrink(self) -> None:
        """Begin to evict, step by step, what lowered limits leave over."""
        self._background.run(self._shrink())

    def _shrink(self) -> Steps[None]:
        self.is_shrinking = True
        try:
            for quota in self._limited:
                while any(excess := quota.excess_now()) and self._evict_for_quota(quota, *excess):
                    yield
            while self.max_keys and (excess_keys := self._store.counters.keys - self.max_keys) > 0:
                if not self._evict_some(self._quotas.all.values(), excess_keys, 0):
                    break
                yield
            if self.max_bytes:
                yield from self._free_bytes(0)
        finally:
            self.is_shrinking = False

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
        return self._data_bytes() + self._connection_bytes()

    def _data_bytes(self) -> int:
        return self._store_bytes() + self._engine_bytes()

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
            "buffers": self._connection_bytes() + self._engine_bytes(),
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
        return used >= self._pressure_threshold or bool(self._limited or self.max_keys or self._claims)

    # ------------------------------------------------------------------ before a write

    def is_quick(self, keys: int, size: int) -> bool:
        """Whether ``reserve`` is short for a write of this many keys, and bytes of them and their values."""
        return not self.is_under_pressure or (keys <= EVICTED_KEYS and size <= QUICK_BYTES and not self.is_shrinking)

    def make_room(self, writes: Writes, *, with_expiry: bool = False) -> Steps[None]:
        """Make room for a large write in steps, so that ``reserve`` is short if it follows at once.

        Meanwhile each other write evicts as much as it adds, so that it takes none of this room. Raises OutOfMemory.
        """
        claimed: set[Quota | None] = set()

        def claim(quota: Quota | None) -> None:
            if quota not in claimed:
                claimed.add(quota)
                self._claims[quota] += 1

        try:
            yield from self._make_room(writes, claim, with_expiry=with_expiry)
        finally:
            self._claims = +(self._claims - Counter(claimed))

    def reserve(self, writes: Writes, *, with_expiry: bool = False) -> None:
        """Make room for ``writes``. Raises OutOfMemory.

        ``with_expiry``: each of the keys may get a deadline, or an owner.
        """
        run_to_end(self._make_room(writes, _ignore, with_expiry=with_expiry))
        if self._claims:
            self._evict_as_much(writes)

    def _make_room(self, writes: Writes, claim: Callable[[Quota | None], None], *, with_expiry: bool) -> Steps[None]:
        if self._limited or self.max_keys:
            largest = largest_of_each(writes)

            def evict(quota: Quota, keys: int, size: int) -> list[Head]:
                claim(quota)
                return self._evict_for_quota(quota, keys, size)

            if self._limited:
                yield from self._quotas.make_room(largest, evict)
            if self.max_keys:
                yield from self._free_keys(largest, claim)
        if self.max_bytes:
            size = _bytes_of(writes, with_expiry=with_expiry)
            if size:
                yield from self._make_room_for(size, claim)

    def _evict_as_much(self, writes: Writes) -> None:
        """Evict as much as ``writes`` add where room is being made for large writes."""
        for rule, keys in self.rules.by_rule(list(writes)):
            quota = None if rule is None else self._quotas.all.get(rule.prefix)
            if quota in self._claims and quota is not None:
                self._evict_for_quota(quota, len(keys), 0)
        if None in self._claims:
            size = _bytes_of(writes, with_expiry=True)
            self._evict_some(self._quotas.all.values(), len(writes), size, forget=bool(self.max_bytes))
            if self.max_bytes:
                self._store.trim_history(size, self._visible(), TRIMMED_KEYS, even_pinned=True)

    def reserve_deadlines(self, keys: Sequence[str]) -> None:
        """Make room for each of ``keys`` to get a deadline. Raises OutOfMemory."""
        run_to_end(self.make_room_for_deadlines(keys))

    def make_room_for_deadlines(self, keys: Sequence[str]) -> Steps[None]:
        """Make room in steps, so that ``reserve_deadlines`` is short if it follows at once. Raises OutOfMemory."""
        if self.max_bytes:
            new = self._lifetimes.deadlines_of(keys).count(None)
            size = GROUP_BYTES + (PLACE_BYTES + SUPERSEDED_BYTES) * len(keys) + _DEADLINE_BYTES * new
            yield from self._make_room_for(size, _ignore)

    def _evict_for_quota(self, quota: Quota, keys: int, size: int) -> list[Head]:
        rule = quota.rule
        return self._evict_some([quota], *_with_spare(keys, size, rule.max_keys, rule.max_bytes))

    def _free_keys(self, writes: list[Write], claim: Callable[[Quota | None], None]) -> Steps[None]:
        counters = self._store.counters
        if counters.keys + len(writes) <= self.max_keys:
            return
        values = dict(writes)
        more, _ = yield from growth_of(self._store, writes)
        while more > 0 and (excess := counters.keys + more - self.max_keys) > 0:
            count = sum(value is not None for _, value in writes)
            if count > self.max_keys:
                raise OutOfMemory(f"there may be {self.max_keys} keys, and these alone are {count}")
            claim(None)
            victims = self._evict_some(self._quotas.all.values(), *_with_spare(excess, 0, self.max_keys, 0))
            if not victims:
                raise OutOfMemory(f"there are {counters.keys} keys, and there may be {self.max_keys}")
            more += sum(head.key in values for head in victims)
            yield

    def _make_room_for(self, size: int, claim: Callable[[Quota | None], None]) -> Steps[None]:
        if size > self.max_bytes:
            raise OutOfMemory(f"this would take {size} bytes of memory, and all may take {self.max_bytes}")
        if self._excess(size) > 0:
            claim(None)
            yield from self._free_bytes(size)
        used = self._data_bytes()
        if self._excess(size) > 0:
            raise OutOfMemory(f"{used} bytes of memory are taken of {self.max_bytes}, and this needs {size}")
        if self._unshown and used + size > self.max_bytes + self.max_bytes // _UNSHOWN_PART:
            text = f"{used} bytes of memory are taken of {self.max_bytes} until the disk has what was evicted"
            raise OutOfMemory(f"{text}, and this needs {size}")

    def _free_bytes(self, size: int) -> Steps[None]:
        """Drop history, and evict keys, until ``size`` more bytes fit or nothing is left that may go."""
        visible = self._visible
        while (excess := self._excess(size)) > 0:
            _, wanted = _with_spare(0, excess, 0, self.max_bytes)
            if self._store.trim_history(wanted, visible(), TRIMMED_KEYS, even_pinned=False):
                if (excess := self._excess(size)) <= 0:
                    return
                _, wanted = _with_spare(0, excess, 0, self.max_bytes)
                if self._store.trim_history(wanted, visible(), TRIMMED_KEYS, even_pinned=False):
                    yield  # there is much of it
                    continue
            victims = self._evict_some(self._quotas.all.values(), 0, wanted, forget=True)
            trimmed = self._store.trim_history(self._excess(size), visible(), TRIMMED_KEYS, even_pinned=True)
            if not victims and not trimmed:
                return
            yield

    def _excess(self, size: int) -> int:
        """How many bytes too many there are with ``size`` more, without those that go once they may be shown."""
        shown = max(self._visible(), self._store.window.oldest_readable)
        while self._unshown and self._unshown[0][0] <= shown:
            self.unshown_bytes -= self._unshown.popleft()[1]
        return self._data_bytes() - self.unshown_bytes + size - self.max_bytes

    # ------------------------------------------------------------------ what goes

    def release_history(self, changed: int = 0) -> None:
        """Drop history that is too much, after a change that reserves no room, or once more of it may be shown.

        ``changed``: how many keys changed. What is left of the excess is dropped with the next change.
        """
        if self.max_bytes and (excess := self._data_bytes() - self.max_bytes) > 0:
            self._store.trim_history(excess, self._visible(), TRIMMED_KEYS + changed, even_pinned=False)

    def _evict_some(self, quotas: Iterable[Quota], keys: int, size: int, *, forget: bool = False) -> list[Head]:
        """Evict at least this many keys and bytes, or as many as one commit takes. Return what was evicted.

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
        evicted = list(victims)
        if evicted:
            before = self._store.version
            self._evict(evicted)
            for group in self._store.window.newest_since(before):
                if forget:
                    self._store.retention.forget_evicted(group)
                self._note_unshown(group)
        return evicted

    def _note_unshown(self, group: Group) -> None:
        """Count what is left of the keys that ``group`` evicted: it goes with the history once it may be shown."""
        if self.max_bytes and self._store.version > self._visible():
            freed = group.size + sum(KEY_BYTES + len(head.key) for head in group.heads)
            self._unshown.append((self._store.version, freed))
            self.unshown_bytes += freed


def _ignore_commits(_: list[Group]) -> None:
    """Count nothing."""


def _ignore(_: Quota | None) -> None:
    """Claim nothing: the write follows in the same step."""


def _bytes_of(writes: Writes, *, with_expiry: bool) -> int:
    """What ``writes`` may take in memory, with what they supersede; 0 if they only delete."""
    stored = _without_deletions(writes)
    if not len(stored):
        return 0
    each = PLACE_BYTES + SUPERSEDED_BYTES + KEY_BYTES + (_DEADLINE_BYTES if with_expiry else 0)
    values = sum(map(len, filter(None, stored.values())))
    return GROUP_BYTES + each * len(stored) + sum(map(len, stored)) + values


def _without_deletions(writes: Writes) -> Writes:
    if None not in writes.values():
        return writes
    return {key: value for key, value in zip(writes, writes.values(), strict=True) if value is not None}


def _with_spare(keys: int, size: int, max_keys: int, max_bytes: int) -> tuple[int, int]:
    """Add headroom to each excess, and leave at zero what is within its limit."""
    spare_bytes = min(max_bytes // _SPARE_PART, _MAX_SPARE_BYTES)
    return keys and keys + max_keys // _SPARE_PART, size and size + spare_bytes
