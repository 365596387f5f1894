"""Counts and queues the keys that are there for new rules, in steps, while other commits go on.

        parts       done   done   [=====>    ]   to come   to come …
        a commit    counts counts  only keys       does not count: the key is counted when its part is done
                                   already seen

So each key is counted once, with the head that it has when its part is visited or that a later commit gives it.
"""

from collections.abc import Iterable

from kvd.engine.quotas import Quotas
from kvd.store.heads import Head
from kvd.store.steps import STEP_KEYS, Steps, chunks
from kvd.store.store import Store
from kvd.store.window import Group


class Counting:
    """Fills ``quotas``, which are new, with the keys of ``store``. ``on_commit`` must be told of each commit."""

    def __init__(self, store: Store, quotas: Quotas) -> None:
        self._store = store
        self.quotas = quotas
        self._part = -1  # the part that is visited now
        self._seen: set[str] = set()  # the keys of that part which are counted

    def run(self) -> Steps[None]:
        """Count all keys."""
        for number, part in enumerate(self._store.parts()):
            self._part, self._seen = number, set()
            for keys in chunks(list(part), STEP_KEYS):
                new = [key for key in keys if key not in self._seen]
                self._seen.update(new)
                self.quotas.take_in([head for key in new if (head := part.get(key)) is not None])
                yield
        self._part += 1

    def on_commit(self, groups: Iterable[Group]) -> None:
        """Count what commits have changed of the keys that are counted already."""
        for group in groups:
            heads = tuple(filter(self._is_counted, group.heads))
            if heads:
                self.quotas.on_commit([Group(group.time, group.author, heads, group.commits, 0, False)])

    def _is_counted(self, head: Head) -> bool:
        part = self._store.part_of(head.key)
        if part == self._part and head.previous is None:
            self._seen.add(head.key)  # because the list of the part's keys was made before
        return part < self._part or (part == self._part and head.key in self._seen)
