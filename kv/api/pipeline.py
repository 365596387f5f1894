"""Pipelines: many calls in one frame, and so in one round trip."""

from __future__ import annotations

from kv.api.result import Result
from kv.api.scopes import ClientScope, WithBlock
from kv.methods import Calls, Deferred
from kv.wire.exchange import Exchange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self, TypeVar

    from kv.api.procedures import Procedure
    from kv.wire.operations import Operation

    T = TypeVar("T")


class PipelineCalls(Calls, Deferred, ClientScope):
    """Collects calls. They run in order when the block ends, with other clients' in between. Not a transaction."""

    _what = "a pipeline"

    def __init__(self, client: Any) -> None:  # noqa: ANN401
        super().__init__(client)
        self._operations: list[Operation[Any]] = []
        self._exchange: Exchange | None = None

    def _call(self, operation: Operation[T]) -> Result[T]:
        self._check_process()
        if self._exchange is not None:
            raise RuntimeError("the pipeline has been sent; begin another")
        self._operations.append(operation)
        return Result(self, len(self._operations) - 1)

    def _result(self, number: int) -> Any:  # noqa: ANN401
        if self._exchange is None or not self._exchange.done:
            raise RuntimeError("a pipeline has its results when its 'with' block has ended without an exception")
        return self._exchange.result(number)

    def _enter(self) -> Procedure[Self]:
        return self
        yield  # makes this a procedure, of no steps

    def _leave(self, failed: bool) -> Procedure[None]:
        if failed or not self._operations:
            return
        self._exchange = yield Exchange(self._operations)
        if self._exchange is not None and self._exchange.failure is not None:
            raise self._exchange.failure


class Pipeline(PipelineCalls, WithBlock):
    """``with db.pipeline() as p: a = p.get("a")``, and then ``a.result()``."""

    if TYPE_CHECKING:

        def __enter__(self) -> Self: ...
