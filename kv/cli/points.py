"""Points in the history: VERSION or TIME on the command line, and the version that was current then."""

import time

from kv.cli.failures import UsageError
from kv.cli.times import maybe_time_us, show_time
from kvd.protocol import Position, parse_version, position

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.blocking.client import Client

HELP = """\
Where a command takes VERSION|TIME, this is understood:

  1234                 a version, as 'kv log', 'kv history' and 'kv ls --long' show them
  1234.5f0c9e3a7b21d468
                       the same with its store, as --json has it in "position": an
                       error, or with 'kv watch' a resync, if the store is another
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
        self._version = parse_version(text)
        if self._version is None and text.isascii() and text.isdigit():
            raise UsageError(f"{name}: there is no version as high as {text}")
        self._time_us = None if self._version is not None or text == "now" else maybe_time_us(text)
        if self._version is None and self._time_us is None and text != "now":
            raise UsageError(
                f"{name} is a version or a time, such as 1234, 5m, 10:00, or now, not {text!r}; see 'kv help times'"
            )
        if self._time_us is not None and self._time_us > time.time_ns() // 1000:
            raise UsageError(f"{name}: {text} is in the future ({show_time(self._time_us)} here)")

    @property
    def version_or_time_us(self) -> tuple[int | None, int | None]:
        """A version, or a time in µs since the epoch; neither for now. Raises UsageError for a version with a store."""
        if isinstance(self._version, Position):
            raise UsageError(f"a version without its store, please: {int(self._version)} instead of {self.text}")
        return self._version, self._time_us

    def version(self, client: "Client") -> Position:
        """Return the version of this point. Raises KvdError: SnapshotGone if the point is older than the history.

        A bare number, which a person has typed, means the store that the daemon has now.
        """
        if isinstance(self._version, Position):
            return self._version
        if self._version is not None:
            return position(self._version, client.version().store)
        return client.version() if self._time_us is None else client.version_at(self._time_us)
