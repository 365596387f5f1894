"""The database: the store with a clock.

The one place that says what happens around a commit, and in which order: the time of the batch, then the change in
memory. (A commit log will stand between the two.)
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping

from kvd.store.store import Store
from kvd.store.window import WindowLimits

GROWTH_KEYS = 65_536


def wall_clock_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


class Database:
    """What the commands work on. ``clock`` returns microseconds since the epoch."""

    def __init__(self, limits: WindowLimits | None = None, clock: Callable[[], int] = wall_clock_us) -> None:
        self.store = Store(limits)
        # Tells clients that what they remember of versions belongs to another store: memory starts anew each time.
        self.store_id = os.urandom(8).hex()
        self._clock = clock
        # Called each time the store has grown by GROWTH_KEYS beyond what it ever held.
        self.on_growth: Callable[[], None] | None = None
        self._grown_at = GROWTH_KEYS
        # Called once, when the first commit enters an empty history: from then on there is something to grow old.
        self.on_history: Callable[[], None] | None = None

    def set(self, entries: Mapping[str, bytes], author: str) -> int:
        """Store all entries in one commit; its version."""
        self._advance()
        return self.store.set(entries, author)

    def set_each(self, batch: list[dict[str, bytes]], author: str) -> list[int]:
        """Store each mapping in a commit of its own; their versions."""
        self._advance()
        return self.store.set_each(batch, author)

    def delete(self, keys: Iterable[str], author: str, *, missing_ok: bool) -> tuple[int, int]:
        """Delete all keys in one commit; its version and how many there were. Raises KeysNotFound."""
        self._advance()
        return self.store.delete(keys, author, missing_ok=missing_ok)

    def _advance(self) -> None:
        self.store.advance(self._clock())
        if self.on_history is not None:
            call, self.on_history = self.on_history, None
            call()
        if self.store.counters.keys >= self._grown_at and self.on_growth is not None:
            self._grown_at = self.store.counters.keys + GROWTH_KEYS
            self.on_growth()

    def history_due_us(self) -> int | None:
        """In how many microseconds the oldest commit will be too old; None without any."""
        window = self.store.window
        if not window.groups:
            return None
        return max(0, window.groups[0].time + window.limits.max_age_us - self._clock())

    def tidy(self, budget_keys: int) -> bool:
        """Drop history that has grown too old while nobody wrote; whether there may be more to drop."""
        self.store.advance(self._clock())
        return self.store.drop_history(budget_keys) > 0

    def metrics(self) -> list[tuple[str, int]]:
        """Name and value, the five that the original had first."""
        store = self.store
        counters, window = store.counters, store.window
        return [
            ("keys_stored", counters.keys),
            ("value_bytes_stored", counters.value_bytes),
            ("set_operations", counters.set_operations),
            ("get_operations", counters.get_operations),
            ("delete_operations", counters.delete_operations),
            ("version", store.version),
            ("oldest_readable_version", window.oldest_readable),
            ("history_commits", window.commits),
            ("history_bytes", window.bytes),
        ]
