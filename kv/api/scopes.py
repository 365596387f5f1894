"""What has a beginning and an end, and belongs to one client in one process: snapshots, transactions, pipelines, locks.

Each is a class of procedures (``_enter``, ``_leave`` and its own), mixed with WithBlock for programs that block, or
with AsyncWithBlock (``aio.py``) for those that do not.
"""

from __future__ import annotations

import os

from kv.errors import ForkedClient

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Any, TypeVar

    from kv.api.procedures import Pages, Procedure

    T = TypeVar("T")


class ClientScope:
    """Begins with ``_enter``, ends with ``_leave``, in the process where it was made."""

    _what = "this"

    def __init__(self, client: Any) -> None:  # noqa: ANN401  # of one kind or the other
        self._client = client
        self._process = os.getpid()

    @property
    def _forked(self) -> bool:
        return os.getpid() != self._process

    def _check_process(self) -> None:
        if self._forked:
            raise ForkedClient(self._what)

    def _enter(self) -> Procedure[Any]:
        """The steps at the beginning of a ``with`` block; what ``as`` names."""
        raise NotImplementedError

    def _leave(self, failed: bool) -> Procedure[None]:
        """The steps at its end. ``failed``: by an exception, which goes on afterwards."""
        raise NotImplementedError


class WithBlock(ClientScope):
    """For ``with``."""

    def __enter__(self) -> Any:  # noqa: ANN401  # each kind says what
        return self._drive(self._enter())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or not self._forked:  # an exception in a child is not to be hidden behind another
            self._drive(self._leave(kind is not None))

    def _drive(self, steps: Procedure[T]) -> T:
        self._check_process()
        result: T = self._client._drive(steps)
        return result

    def _iterate(self, steps: Pages[T]) -> Iterator[T]:
        self._check_process()
        iterator: Iterator[T] = self._client._iterate(steps)
        return iterator
