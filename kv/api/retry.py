"""Trying again after a conflict, with longer and longer pauses of random length."""

from __future__ import annotations

from kv.api.procedures import Pause
from kv.errors import Conflict, KvdError, SnapshotGone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from kv.api.procedures import Procedure

    T = TypeVar("T")

_FIRST_PAUSE_S = 0.002
_MAX_PAUSE_S = 0.5


def retry(attempt: Callable[[], Procedure[T]], attempts: int) -> Procedure[T]:
    """Go through the steps of ``attempt`` until they end without a conflict, ``attempts`` times at most.

    Returns their result. Raises the last Conflict or SnapshotGone.
    """
    if attempts < 1:
        raise ValueError(f"attempts is a number above 0, not {attempts}")
    for number in range(1, attempts + 1):
        try:
            return (yield from attempt())
        except (Conflict, SnapshotGone):
            if number == attempts:
                raise
        yield Pause(_pause_s(number))
    raise KvdError("not reached")


def _pause_s(attempt: int) -> float:
    """Return longer and longer pauses, and random ones, so that those who met in a conflict do not meet again."""
    from random import random

    longest: float = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2**attempt)
    return random() * longest  # noqa: S311  # no secret
