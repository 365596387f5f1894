"""Scopes: what begins and ends, and belongs to one client in one process. Snapshots, transactions, pipelines, locks.

Each scope is a class of procedures (``_enter``, ``_leave`` and its own), mixed with WithBlock for programs that block,
or with AsyncWithBlock (``kv/aio/scopes.py``) for asyncio.
"""

from __future__ import annotations

import os

from kv.errors import ForkedClient

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Any, TypeVar

    from kv.api.procedures import Pages, Procedure

    T = TypeVar("T")


class ProcessBound:
    """A scope of the process that made it: a forked child must not use it."""

    _what = "this"

    def __init__(self) -> None:
        self._process = os.getpid()

    @property
    def _forked(self) -> bool:
        return os.getpid() != self._process

    def _check_process(self) -> None:
        if self._forked:
            raise ForkedClient(self._what)


class ClientScope(ProcessBound):
    """A scope that ``_enter`` begins and ``_leave`` ends."""

    def __init__(self, client: Any) -> None:  # noqa: ANN401  # of either kind
        super().__init__()
        self._client = client

    def _enter(self) -> Procedure[Any]:
        """The steps at the beginning of a ``with`` block; their result is what ``as`` names."""
        raise NotImplementedError

    def _leave(self, failed: bool) -> Procedure[None]:
        """The steps at the end of a ``with`` block. ``failed``: by an exception, which goes on afterwards."""
        raise NotImplementedError

    def _around(self, inner: Callable[[], Procedure[T]]) -> Procedure[T]:
        """The steps of ``inner`` inside the scope, as a ``with`` block does it."""
        self._check_process()
        yield from self._enter()
        try:
            result = yield from inner()
        except GeneratorExit:
            raise  # the procedure is abandoned: no step can be done any more
        except BaseException:
            if not self._forked:  # the child's own exception matters more than a ForkedClient
                yield from self._leave(failed=True)
            raise
        self._check_process()
        yield from self._leave(failed=False)
        return result


class WithBlock(ClientScope):
    """A scope for ``with``."""

    def __enter__(self) -> Any:  # noqa: ANN401  # each kind has its own
        return self._run_steps(self._enter())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not self._forked:  # a child's own exception matters more than a ForkedClient
            self._run_steps(self._leave(kind is not None))

    def _run_steps(self, steps: Procedure[T]) -> T:
        self._check_process()
        result: T = self._client._run_steps(steps)
        return result

    def _iterate(self, steps: Pages[T]) -> Iterator[T]:
        self._check_process()
        iterator: Iterator[T] = self._client._iterate(steps)
        return iterator
