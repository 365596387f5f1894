"""Wait for a daemon that is not there: for commands that wait for events, and so for a daemon, too."""

import time

from kv.cli.output import warn
from kv.errors import ConnectionLost, KvdError, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from kv.cli.context import Context

    T = TypeVar("T")

_FIRST_PAUSE_S = 0.05
_MAX_PAUSE_S = 0.5
_WARN_AFTER_S = 1.0


class Patience:
    """Tries again for up to ``limit_s`` seconds (None: for ever) from the first failure on.

    Once it has waited for a second, it says so on stderr.
    """

    def __init__(self, context: "Context | None", limit_s: float | None) -> None:
        self._is_quiet = context is None or context.options.quiet
        self._limit_s = limit_s
        self._began: float | None = None

    def until_there(self, action: "Callable[[], T]") -> "T":
        """Call ``action``, again while no daemon answers, and return its result. Raises its last error."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                result = action()
            except (Unavailable, ConnectionLost) as error:
                self._check(error)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)
            else:
                self._began = None
                return result

    def _check(self, error: KvdError) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began = now
        waited_s = now - self._began
        if self._limit_s is not None and waited_s >= self._limit_s:
            raise error
        if waited_s >= _WARN_AFTER_S and not self._is_quiet:
            self._is_quiet = True
            warn(f"waiting for a daemon: {error.message}")
