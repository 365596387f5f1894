"""What a commit of many keys needs, prepared in steps, so that the commit itself, which is one step, is short.

        prepare   for each key: the head that it has now, and a head without value and version to supersede it
        commits   of others, meanwhile: the heads that they wrote are superseded instead
        publish   the heads get their values and one version, and become current, dict by dict

The store takes the heads from the draft in the step of the commit (``Contents._commit``); a commit of other keys in
that step, such as of evictions, ignores it.
"""

from collections.abc import Callable, Collection, Set
from itertools import chain
from typing import TYPE_CHECKING, Protocol, TypeVar

from kvd.store.following import Commits, Followed
from kvd.store.heads import Head
from kvd.store.sharded import MASK
from kvd.store.steps import STEP_KEYS, Steps, chunks

if TYPE_CHECKING:
    from kvd.store.keyspace import Keyspace

Result = TypeVar("Result")


class Drafted(Followed, Protocol):
    """A store that takes the heads of a commit from a draft."""

    draft: "Draft | None"

    def part_of(self, key: str) -> int:
        """Return which part of the keyspace holds ``key``, which must be there."""


class Draft:
    """The heads that a commit of ``keys`` will make. It is a context, in which the store notes its commits for it."""

    def __init__(self, store: Drafted, keys: Collection[str]) -> None:
        self._store = store
        self._keys = keys
        self._commits = Commits(store)
        self._heads: dict[str, Head] = {}
        # The heads of keys that exist, by the part of the keyspace that has them: keys never move between parts. Those
        # of absent keys by the shard that would take them.
        self._by_part: dict[int, dict[str, Head]] = {}
        self._absent: dict[int, dict[str, Head]] = {}
        # What the heads supersede: tombstones, how many values, and their bytes.
        self._tombstones: dict[str, None] = {}
        self._values = 0
        self._value_bytes = 0
        # Of each key: where its head is of the dicts above, and the size of the value that it supersedes.
        self._place: dict[str, dict[str, Head]] = {}
        self._size: dict[str, int] = {}

    def __enter__(self) -> "Draft":
        self._commits.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._commits.__exit__()

    def prepare(self) -> Steps[None]:
        """Prepare the heads, in steps."""
        for chunk in chunks(self._keys):
            for key, head in zip(chunk, self._store.find_all(chunk), strict=True):
                self._supersede(key, head)
            yield
        for number, head in enumerate(self._commits.take(), 1):
            self._follow(head)
            if not number % STEP_KEYS:
                yield

    def commit(self, write: Callable[[], Result]) -> Result:
        """Call ``write``, which makes the commit. It must be called in the step in which ``prepare`` has returned.

        Or in a later one, if few commits were made since.
        """
        self._store.draft = self
        try:
            return write()
        finally:
            self._store.draft = None

    def take(self, keys: Collection[str]) -> list[Head] | None:
        """Return the heads for ``keys``, without values and versions; None if one of them was not prepared.

        ``previous`` of each is the current head of its key. They must become current in the same step.
        """
        for head in self._commits.take():
            self._follow(head)
        heads = list(map(self._heads.get, keys))
        return heads if all(heads) else None  # type: ignore[return-value]  # heads are always true

    def publish(self, keyspace: "Keyspace", heads: list[Head]) -> tuple[list[str], int, int]:
        """Make ``heads``, which were taken, current. Return new keys, and how many values go, and bytes."""
        is_all = len(heads) == len(self._heads)
        chosen = self._heads.keys() if is_all else {head.key for head in heads}
        for key in self._tombstones.keys() & chosen if self._tombstones else ():
            head = self._heads[key]
            if keyspace.find(key) is not head.previous:  # the tombstone was forgotten meanwhile
                head.previous = None
                del self._place[key][key]
                self._put(head, self._absent.setdefault(hash(key) & MASK, {}))
        if not is_all:
            self._leave_only(chosen)
        parts = keyspace.parts()
        for number, part in self._by_part.items():
            parts[number].update(part)
        new = list(chain.from_iterable(self._absent.values()))
        keyspace.add_by_shard(self._absent, len(new))
        return new, self._values, self._value_bytes

    def _leave_only(self, chosen: Set[str]) -> None:
        """Leave out all heads but those of the keys ``chosen``."""
        for parts in (self._by_part, self._absent):
            for number, part in parts.items():
                if not part.keys() <= chosen:
                    parts[number] = {key: part[key] for key in part.keys() & chosen}
        sizes = [size for key, size in self._size.items() if key in chosen]
        self._values, self._value_bytes = len(sizes), sum(sizes)

    def _follow(self, head: Head) -> None:
        if head.key in self._heads:
            self._forget(head.key)
            self._supersede(head.key, head)

    def _supersede(self, key: str, head: Head | None) -> None:
        if head is None:
            self._heads[key] = new = Head(key, None, 0, None)
            self._put(new, self._absent.setdefault(hash(key) & MASK, {}))
            return
        # Keep the key object that the keyspace has; the one of the request can be freed with the request.
        key, value = head.key, head.value
        self._heads[key] = new = Head(key, None, 0, head)
        self._put(new, self._by_part.setdefault(self._store.part_of(key), {}))
        if value is None:
            self._tombstones[key] = None
        else:
            self._values += 1
            self._value_bytes += len(value)
            self._size[key] = len(value)

    def _put(self, head: Head, place: dict[str, Head]) -> None:
        place[head.key] = head
        self._place[head.key] = place

    def _forget(self, key: str) -> None:
        """Forget the head that was prepared for ``key``."""
        del self._heads[key], self._place.pop(key)[key]
        self._tombstones.pop(key, None)
        size = self._size.pop(key, None)
        if size is not None:
            self._values -= 1
            self._value_bytes -= size
