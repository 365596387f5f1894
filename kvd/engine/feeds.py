"""Feeds: which events a watch gets, in which order, and what becomes of a watch that cannot keep up.

A feed has a position in the history window, and nothing else: no queue of its own that could overflow. Its next events
are read from the window when its connection can take them.

        oldest_readable            position                     version
             │  sent already           │  still to be sent           │
        ─────┴─────────────────────────┴─────────────────────────────┴──▶
             └─ a position before this: the window has moved on. Send everything there is at a pinned version
                ("reset", "item"…, "live"), and go on with the changes after it.

So a slow watch costs the daemon nothing, and the client learns that it was too slow. Nothing here knows connections:
a connection takes the events when it can.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Protocol

from kvd.engine.database import Database
from kvd.engine.errors import EngineError
from kvd.store.errors import SnapshotGone
from kvd.store.heads import FORGOTTEN, Head
from kvd.store.store import Store
from kvd.store.window import Group

Event = tuple[object, ...]

# One batch of events looks at about this many keys, and holds about this many bytes of them.
BATCH_KEYS = 4_096
BATCH_BYTES = 64 * 1024
# A watch gets the version from time to time although the commits concern other keys: a place from which to go on.
BOOKMARK_VERSIONS = 1_024
_EVENT_BYTES = 64


class EventSource(Protocol):
    """What a connection needs of a feed or of a backup."""

    @property
    def is_drained(self) -> bool:
        """Whether there are no events now."""

    def next_events(self) -> list[Event]:
        """The next events, in order; perhaps none."""

    def close(self) -> None:
        """Give back what the source holds: its connection has ended."""


class Feed:
    """One watch's view of the commits that concern ``prefix``.

    It has no event of a commit that is not ``visible`` yet. ``expire_step`` expires some of the keys that are due, and
    returns whether these were all that were due when it was first called.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        from_version: int | None,
        visible: Callable[[], int] | None = None,
        expire_step: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store = store
        self._visible = visible or (lambda: store.version)
        self._expire_step = expire_step
        self.prefix = prefix
        # A version that this store never had is another store's: the watch needs everything.
        known = from_version is not None and from_version <= store.version
        self._position: int = store.version if from_version is None else from_version if known else -1
        self._live = -1  # the last version of a "live" event
        self._next_item: str | None = None  # where the resynchronisation goes on, while one runs
        self._snapshot: int | None = None
        self._is_reset_sent = False

    @property
    def is_drained(self) -> bool:
        """Whether there are no events now."""
        visible = self._visible()
        if self._snapshot is not None:
            return self._snapshot > visible
        return self._position >= visible and (self._live >= 0 or self._position > visible)

    def next_events(self) -> list[Event]:
        """The next batch, in order; empty if nothing happened that concerns this watch."""
        if self._snapshot is None and self._position <= self._visible():
            try:
                return self._changes(self._visible())
            except SnapshotGone:
                if self._expire_step():  # else the next call expires more of it first
                    self._reset()
        if self._snapshot is None:
            return []
        return [] if self._snapshot > self._visible() else self._items(self._snapshot)

    def close(self) -> None:
        """Give back the snapshot of a resynchronisation: the watch has ended."""
        if self._snapshot is not None:
            self._store.unpin(self._snapshot)
            self._snapshot = None

    # ------------------------------------------------------------------ changes

    def _changes(self, visible: int) -> list[Event]:
        """The changes up to ``visible``, or some of them. Raises SnapshotGone if the next one has left the history."""
        events: list[Event] = []
        remaining_keys, budget_bytes = BATCH_KEYS, BATCH_BYTES
        for group in self._store.window.since(self._position):
            for version, heads in group.each():
                if version <= self._position:
                    continue
                if version > visible:
                    return events + self._up_to(visible)
                if remaining_keys <= 0 or budget_bytes <= 0:
                    return events
                mine = [head for head in heads if head.key.startswith(self.prefix)]
                if any(head.value is FORGOTTEN for head in mine):
                    if not events:
                        raise SnapshotGone(self._position, version)
                    return events
                self._position = version
                remaining_keys -= len(heads)
                if mine:
                    events.append(_change(group, version, mine))
                    budget_bytes -= sum(len(head.value or b"") + len(head.key) for head in mine) + _EVENT_BYTES
        # Only a group that is still to come can have a version beyond those of the window.
        return events + self._up_to(visible)

    def _up_to(self, visible: int) -> list[Event]:
        """Go on to ``visible``, up to which everything was sent; send that version now and then."""
        self._position = max(self._position, visible)
        if self._live < 0 or self._position - self._live >= BOOKMARK_VERSIONS:
            return [self._live_event()]
        return []

    def _live_event(self) -> Event:
        self._live = self._position
        return "live", self._position

    # ------------------------------------------------------------------ resynchronisation

    def _reset(self) -> None:
        self._snapshot = self._store.pin()
        self._next_item = self.prefix
        self._is_reset_sent = False

    def _items(self, snapshot: int) -> list[Event]:
        assert self._next_item is not None
        try:
            page = self._store.scan(self._next_item, None, BATCH_KEYS, at=snapshot, max_bytes=BATCH_BYTES)
        except SnapshotGone:  # the client was too slow, and the history had to go: once more from the beginning
            self.close()
            return []
        events: list[Event] = [] if self._is_reset_sent else [("reset", snapshot)]
        self._is_reset_sent = True
        for item in page.items:
            if not item.key.startswith(self.prefix):
                return [*events, self._end_of_items(snapshot)]
            events.append(("item", item.key, item.value, item.version))
        self._next_item = page.next
        done = page.next is None or not page.next.startswith(self.prefix)
        return [*events, self._end_of_items(snapshot)] if done else events

    def _end_of_items(self, snapshot: int) -> Event:
        self.close()
        self._position = snapshot
        return self._live_event()


def _change(group: Group, version: int, heads: list[Head]) -> Event:
    return "change", version, group.time, group.author, {head.key: head.value for head in heads}


class Feeds:
    """All feeds: how many watches each user has, and which feeds a commit wakes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sources: dict[Hashable, EventSource] = {}  # by owner
        self._users: dict[Hashable, Hashable] = {}  # of each owner of a watch
        self._watches: Counter[Hashable] = Counter()  # of each user

    def __len__(self) -> int:
        return len(self._sources)

    def open(self, owner: Hashable, user: Hashable, prefix: str, from_version: int | None, limit: int) -> Feed:
        """Open a feed for the connection ``owner``, whose ``user`` may have ``limit`` of them. Raises EngineError."""
        if self._watches[user] >= limit:
            raise EngineError("busy", f"there are {limit} watches of this user already; end some first")
        database = self._database
        feed = Feed(database.store, prefix, from_version, lambda: database.visible, database.expirer.backlog())
        self.add(owner, feed)
        self._users[owner] = user
        self._watches[user] += 1
        return feed

    def add(self, owner: Hashable, source: EventSource) -> None:
        """Take in any other source of events for the connection ``owner``."""
        self._sources[owner] = source

    def subscribe(self, source: EventSource, wake: Callable[[], None]) -> None:
        """Call ``wake`` whenever ``source`` may have more events, until its connection is closed."""
        self._database.wakeups.add(source, wake)

    def close(self, owner: Hashable) -> None:
        """End the feed of the connection ``owner``, if it has one."""
        source = self._sources.pop(owner, None)
        if source is None:
            return
        source.close()
        self._database.wakeups.remove(source)
        if owner in self._users:
            user = self._users.pop(owner)
            self._watches[user] -= 1
            if not self._watches[user]:
                del self._watches[user]
