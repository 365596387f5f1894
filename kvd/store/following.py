"""What is true of many keys now: found in steps, and exact at the end, whatever was committed between the steps.

        find      [a b c] · [d e f] · [g h]           a step each; other commits come between them
        commits            b          a, h            noted by the store, in order
        catch up                               b a h  what was found earlier gives way to what is newer

No history is needed, and nothing is pinned. Of what was committed meanwhile all but a little is looked at in steps,
too, so the last one is short.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from kvd.store.heads import Head
from kvd.store.steps import STEP_KEYS, Steps, chunks

Found = TypeVar("Found")


class Followed(Protocol):
    """A store that notes its commits for those who follow them."""

    followers: list[deque[tuple[Head, ...]]]
    find_all: Callable[[Sequence[str]], list[Head | None]]


class Commits:
    """The commits of ``store`` since this context began, as far as they were not looked at."""

    def __init__(self, store: Followed) -> None:
        self._store = store
        self._noted: deque[tuple[Head, ...]] = deque()

    def __enter__(self) -> "Commits":
        self._store.followers.append(self._noted)
        return self

    def __exit__(self, *_: object) -> None:
        followers = self._store.followers
        followers[:] = [noted for noted in followers if noted is not self._noted]

    def take(self) -> Iterator[Head]:
        """Yield the new heads in order, one after the other, until there are no more."""
        while self._noted:
            yield from self._noted.popleft()


class Following(Generic[Found]):
    """Finds something about keys by their current heads: ``pick`` gives it for some heads, None for absent keys.

    ``found``: what was found, by key. After ``find`` it is that of the present, until the next commit; ``catch_up``
    makes it so again. ``take``: that of the ``Commits`` since before.
    """

    def __init__(
        self,
        store: Followed,
        take: Callable[[], Iterator[Head]],
        pick: Callable[[Sequence[Head | None]], Collection[Found]],
    ) -> None:
        self._find_all = store.find_all
        self._take = take
        self._pick = pick
        self.found: dict[str, Found] = {}

    def find(self, keys: Collection[str]) -> Steps[None]:
        """Find it for ``keys``, in steps."""
        found, find_all, pick = self.found, self._find_all, self._pick
        for chunk in chunks(keys):
            found.update(zip(chunk, pick(find_all(chunk)), strict=True))
            yield
        for number, head in enumerate(self._take(), 1):
            self._update(head)
            if not number % STEP_KEYS:
                yield

    def catch_up(self) -> None:
        """Bring ``found`` up to the present, in one step."""
        for head in self._take():
            self._update(head)

    def _update(self, head: Head) -> None:
        if head.key in self.found:
            (self.found[head.key],) = self._pick([head])
