"""Points in the history: VERSION or TIME on the command line, and the version that was current then."""

import time

from kv.cli.failures import UsageError
from kv.cli.times import maybe_time_us, show_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.blocking.client import Client

_HIGHEST = (1 << 63) - 1
HELP = """\
Where a command takes VERSION|TIME, this is understood:

  1234                 a version, as 'kv log', 'kv history' and 'kv ls --long' show them
  now                  the current version
  5m  1h30m  '5m ago'  so long ago; units: w, d, h, m, s, ms
  10:00  10:00:30      the last time the clock showed it
  2026-11-23           a day's beginning
  2026-11-23T10:00:00  a date and a time; with a zone (Z, +01:00), or without one in local time
  @1795428000          seconds since the epoch

A time means the version that was current then, by the daemon's clock. Each commit makes a version, the later the
higher; they may have gaps. Old ones stay readable for a while ('kv status' names the oldest). What has left the
history is an error, never a guess."""


class HistoryPoint:
    """A point as the command line names it; ``version`` asks the daemon which version it is."""

    def __init__(self, text: str, name: str) -> None:
        """Raises UsageError, which says ``name``, if ``text`` is neither a version nor a time in the past."""
        self.text = text
        self._version = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
        self._time_us = None if self._version is not None or text == "now" else maybe_time_us(text)
        if self._version is not None and self._version > _HIGHEST:
            raise UsageError(f"{name}: there is no version as high as {text}")
        if self._version is None and self._time_us is None and text != "now":
            raise UsageError(
                f"{name} is a version or a time, such as 1234, 5m, 10:00, or now, not {text!r}; see 'kv help times'"
            )
        if self._time_us is not None and self._time_us > time.time_ns() // 1000:
            raise UsageError(f"{name}: {text} is in the future ({show_time(self._time_us)} here)")

    @property
    def version_or_time_us(self) -> tuple[int | None, int | None]:
        """A version, or a time in µs since the epoch; neither for now."""
        return self._version, self._time_us

    def version(self, client: "Client") -> int:
        """Return the version of this point. Raises KvdError: SnapshotGone if the point is older than the history."""
        if self._version is not None:
            return self._version
        return client.version() if self._time_us is None else client.version_at(self._time_us)
