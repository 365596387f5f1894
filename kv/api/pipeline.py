"""Pipelines: many calls in one frame, and so in one round trip."""

from __future__ import annotations

from kv.api.methods import Calls, Deferred
from kv.api.scopes import ClientScope, WithBlock
from kv.wire.exchange import Exchange
from kv.wire.operations import Generic, T

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from kv.api.procedures import Procedure
    from kv.wire.operations import Operation


class Result(Generic[T]):
    """What a call in a pipeline comes to, once the pipeline's block has ended."""

    __slots__ = ("_number", "_pipeline")

    def __init__(self, pipeline: PipelineCalls, number: int) -> None:
        self._pipeline = pipeline
        self._number = number

    def result(self) -> T:
        """The call's result. Raises its error; RuntimeError if the pipeline was not sent (yet)."""
        result: T = self._pipeline._result(self._number)
        return result


class PipelineCalls(Calls, Deferred, ClientScope):
    """Collects calls; they run in order when the block ends, other clients' in between. Not a transaction."""

    _what = "a pipeline"

    def __init__(self, client: Any) -> None:  # noqa: ANN401
        super().__init__(client)
        self._operations: list[Operation[Any]] = []
        self._delivery: Exchange | None = None

    def _call(self, operation: Operation[T]) -> Result[T]:
        self._check_process()
        if self._delivery is not None:
            raise RuntimeError("the pipeline has been sent; begin another")
        self._operations.append(operation)
        return Result(self, len(self._operations) - 1)

    def _result(self, number: int) -> Any:  # noqa: ANN401
        if self._delivery is None or not self._delivery.done:
            raise RuntimeError("a pipeline has its results when its 'with' block has ended without an exception")
        return self._delivery.result(number)

    def _enter(self) -> Procedure[Self]:
        return self
        yield  # a procedure of no steps

    def _leave(self, failed: bool) -> Procedure[None]:
        if failed or not self._operations:
            return
        self._delivery = yield Exchange(self._operations)
        if self._delivery is not None and self._delivery.failure is not None:
            raise self._delivery.failure


class Pipeline(PipelineCalls, WithBlock):
    """``with db.pipeline() as p: a = p.get("a")``, and then ``a.result()``."""

    if TYPE_CHECKING:

        def __enter__(self) -> Self: ...
