"""What a commit of many keys needs, prepared in steps, so that the commit itself, which is one step, is short.

        prepare   for each key: the head that it has now, and a head without value and version to supersede it
        commits   of others, meanwhile: the heads that they wrote are superseded instead
        publish   the heads get their values and one version, and become current, dict by dict

The store takes the heads from the draft in the step of the commit (``Contents._commit``); a commit of other keys in
that step, such as of evictions, ignores it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from kvd.store.following import Commits
from kvd.store.heads import Head
from kvd.store.steps import STEP_KEYS, Steps, chunks

if TYPE_CHECKING:
    from kvd.store.contents import Contents

Result = TypeVar("Result")


class Draft:
    """The heads that a commit of ``keys`` will make. It is a context, in which the store notes its commits for it."""

    def __init__(self, store: "Contents", keys: Collection[str]) -> None:
        self._store = store
        self._keys = keys
        self._commits = Commits(store)
        self._heads: dict[str, Head] = {}
        # The heads of keys that exist, by the part of the keyspace that has them: keys never move between parts.
        self._by_part: dict[int, dict[str, Head]] = {}

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

    def parts(self, heads: list[Head]) -> Iterator[tuple[int, Mapping[str, Head]]]:
        """Yield those of ``heads`` whose keys exist, by the number of the part that has them."""
        if len(heads) == len(self._heads):
            yield from self._by_part.items()
            return
        chosen = {head.key for head in heads}
        for number, part in self._by_part.items():
            yield number, {key: head for key, head in part.items() if key in chosen}

    def _follow(self, head: Head) -> None:
        if head.key not in self._heads:
            return
        if head.previous is None:  # a key that was gone in between may have come to another part
            for part in self._by_part.values():
                part.pop(head.key, None)
        self._supersede(head.key, head)

    def _supersede(self, key: str, head: Head | None) -> None:
        if head is None:
            self._heads[key] = Head(key, None, 0, None)
            return
        # Keep the key object that the keyspace has; the one of the request can be freed with the request.
        self._heads[key] = new = Head(head.key, None, 0, head)
        number = self._store.part_of(head.key)
        part = self._by_part.get(number)
        if part is None:
            self._by_part[number] = {head.key: new}
        else:
            part[head.key] = new
