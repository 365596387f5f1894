"""The result of a call that is sent later."""

from __future__ import annotations

from kv.wire.operations import Generic, T

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Result(Generic[T]):
    """The result of a call in a pipeline, once the pipeline's block has ended."""

    __slots__ = ("_number", "_read")

    def __init__(self, read: Callable[[int], T], number: int) -> None:
        self._read = read
        self._number = number

    def result(self) -> T:
        """Return the call's result. Raises its error, or RuntimeError if the pipeline has not been sent."""
        return self._read(self._number)
