"""What a commit is about to write, as the steps around it see it."""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Protocol


class Writes(Protocol):
    """Keys with their values, None for a key that is deleted. Every mapping is one."""

    def __iter__(self) -> Iterator[str]: ...

    def __len__(self) -> int: ...

    def values(self) -> Iterable[bytes | None]:
        """The values, in the order of the keys."""


class Batch:
    """The writes of several commits, which are put together only if a step asks for them."""

    __slots__ = ("commits",)

    def __init__(self, commits: list[dict[str, bytes]]) -> None:
        self.commits = commits

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self.commits)

    def __len__(self) -> int:
        return sum(map(len, self.commits))

    def values(self) -> Iterator[bytes]:
        """The values, in the order of the keys."""
        return chain.from_iterable(map(dict.values, self.commits))
