"""The steps of procedures that the blocking client does without the daemon, and retries for programs that block."""

from __future__ import annotations

from time import sleep

from kv.api.procedures import CallUser, NextChange, Pause, run_effects
from kv.api.retry import retry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from kv.api.procedures import Procedure

    T = TypeVar("T")


def do_step(step: object) -> Any:  # noqa: ANN401  # each kind of step has its own result
    """Wait, call a function, or wait for a watch; return what the step results in."""
    if isinstance(step, Pause):
        return sleep(step.seconds)
    if isinstance(step, CallUser):
        return step.function(*step.arguments)
    assert isinstance(step, NextChange)
    return step.watch.wait(step.seconds)


def retry_on_conflict(function: Callable[[], T], attempts: int) -> T:
    """Call ``function`` until it raises no Conflict or SnapshotGone, ``attempts`` times at most; return its result.

    Raises the last of these errors.
    """

    def attempt() -> Procedure[T]:
        result: T = yield CallUser(function)
        return result

    return run_effects(retry(attempt, attempts), do_step)
