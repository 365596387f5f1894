"""The result of a call that is sent later."""

from __future__ import annotations

from kv.wire.operations import Generic, T

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Results(Protocol):
        """What collects calls and has their results later: a pipeline."""

        def _result(self, number: int) -> Any: ...  # noqa: ANN401


class Result(Generic[T]):
    """The result of a call in a pipeline, once the pipeline's block has ended."""

    __slots__ = ("_number", "_pipeline")

    def __init__(self, pipeline: Results, number: int) -> None:
        self._pipeline = pipeline
        self._number = number

    def result(self) -> T:
        """Return the call's result. Raises its error, or RuntimeError if the pipeline has not been sent."""
        result: T = self._pipeline._result(self._number)
        return result
